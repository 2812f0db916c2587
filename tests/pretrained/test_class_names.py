"""Files that name the classes of weights."""

import dataclasses
import json
from pathlib import Path

import pytest

from jaxcls.models.registry import model_spec
from jaxcls.models.weights_info import info_of_spec
from jaxcls.pretrained.class_names import num_classes_of, read_class_names, with_class_names
from jaxcls.pretrained.imagenet import imagenet_class_names, imagenet_wordnet_ids
from jaxcls.system.errors import UserError

AB = ("amber", "birch")


@pytest.mark.parametrize(
    "content",
    [
        b"amber\nbirch\n",
        b"amber\nbirch",
        b"amber\r\nbirch\r\n",
        b"\xef\xbb\xbfamber\r\nbirch",
        b" amber \n\tbirch\n",
        b'["amber", "birch"]',
        b'\xef\xbb\xbf {"0": "amber", "1": "birch"}\r\n',
        b'{"1": "birch", "0": "amber"}',
        b'{"birch": 1, "amber": 0}',
        b'{"0": ["n01", "amber"], "1": ["n02", "birch"]}',
        b'[["n01", "amber"], ["n02", "birch"]]',
        b'{"0": ["amber"], "1": ["birch"]}',
        b'{"model_type": "x", "id2label": {"0": "amber", "1": "birch"}, "label2id": {}}',
    ],
)
def test_every_form_is_read(tmp_path: Path, content: bytes) -> None:
    is_json = b"[" in content or b"{" in content
    for name in ("names.txt", "names.json", "names.JSON")[: 3 if is_json else 1]:
        path = tmp_path / name
        path.write_bytes(content)
        assert read_class_names(path) == AB


def test_names_may_be_any_text(tmp_path: Path) -> None:
    path = tmp_path / "names"
    path.write_text("[unk]\nGru\u0308n tea\n猫\n0\n", encoding="utf-8")
    assert read_class_names(str(path)) == ("[unk]", "Grün tea", "猫", "0")
    path.write_text('{"0": 1, "1": 0}', encoding="utf-8")  # MNIST's, the wrong way round
    assert read_class_names(path) == ("1", "0")


def test_blank_lines_at_the_end_and_ids_before_a_tab_are_no_mistake(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("n1\tcat\r\nn2\tsea lion\r\n\r\n")
    assert read_class_names(path) == ("cat", "sea lion")
    (tmp_path / "names.csv").write_text("id,name\n0,cat\n")
    with pytest.raises(
        UserError, match=r"names\.csv: is a table; write one class name on each line"
    ):
        read_class_names(tmp_path / "names.csv")


def test_pairs_whose_names_repeat_go_by_their_ids(tmp_path: Path) -> None:
    path = tmp_path / "index.json"
    path.write_text('{"0": ["n02012849", "crane"], "1": ["n03126707", "crane"]}')
    assert read_class_names(path) == ("n02012849", "n03126707")
    names = [name.partition(" (")[0].replace(" ", "_") for name in imagenet_class_names()]
    assert len(set(names)) < 1000
    pairs = zip(imagenet_wordnet_ids(), names, strict=True)
    path.write_text(json.dumps({str(number): pair for number, pair in enumerate(pairs)}))
    assert read_class_names(path) == imagenet_class_names()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", b"", "contains no class names"),
        ("a.txt", b"\n\n", "contains no class names"),
        ("a.json", b"[]", "contains no class names"),
        ("a.json", b"{}", "contains no class names"),
        ("a.txt", b"a\n\nb\n", "line 2 is empty"),
        ("a.txt", b"a\r\n \r\nb", "line 2 is empty"),
        ("a.txt", b"a\nb\na\n", r"'a' is the name of several classes \(0, 2\)"),
        ("a.txt", "é\ne\u0301\n".encode(), "'é' is the name of several classes"),
        ("a.json", b'["a", "a"]', "'a' is the name of several classes"),
        ("a.json", b'["a", ""]', "the name of class 1 is empty"),
        ("a.txt", b"caf\xe9\n", "is not UTF-8 text"),
        ("a.txt", "a\nb".encode("utf-16"), "is not UTF-8 text"),
        ("a.txt", b"a\x1b[31m\nb\n", r"the name of class 0, a\\x1b\[31m, contains a control"),
        ("a.json", b'["a\\n", "b\\nc"]', r"the name of class 1, b\\nc, contains a control"),
        ("a.json", b'["\\ud800"]', "the name of class 0, "),
        ("a.json", b'["a", ', "is not valid JSON"),
        ("a.json", b"amber\nbirch\n", "is not valid JSON"),
        ("a.json", b"[" * 100_000, "is not valid JSON"),
        ("a.json", b"3", "holds a int; expected a list"),
        ("a.json", b'["a", 3]', "3 is not a class name"),
        ("a.json", b'["a", ["b", "c", "d"]]', r'\["b", "c", "d"\] is not a class name'),
        ("a.json", b'{"0": "a", "x": "b"}', "'x' is not the number of a class"),
        ("a.json", b'{"0": "a", "-1": "b"}', "'-1' is not the number of a class"),
        ("a.json", b'{"1": "a", "2": "b"}', "names 2 classes, but not class 0; they are numbered"),
        ("a.json", b'{"0": "a", "2": "b"}', "names 2 classes, but not class 1"),
        ("a.json", b'{"a": 0, "b": 0}', "has two names for class 0"),
        ("a.json", b'{"0": "a", "00": "b"}', "has two names for class 0"),
        ("a.json", b'{"a": 0, "a": 1}', "has 'a' twice"),
        ("a.json", b'{"a": 0, "b": true}', "'a' is not the number of a class"),
    ],
)
def test_each_mistake_is_one_message(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}: {says}") as caught:
        read_class_names(path)
    assert len(str(caught.value)) < len(str(path)) + 300


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.txt: the class names cannot be read \(No such"):
        read_class_names(tmp_path / "gone.txt")
    with pytest.raises(UserError, match=r"the class names cannot be read \(Is a directory"):
        read_class_names(tmp_path)


def test_there_is_a_name_for_each_class() -> None:
    info = info_of_spec(model_spec("efficientnet_lite0"))
    named = with_class_names(info, list(AB), 2, name="w.pth")
    assert named == dataclasses.replace(info, class_names=AB)
    with pytest.raises(UserError, match=r"class_names: 2 names, but .* of 'w\.pth' has 3 classes"):
        with_class_names(info, AB, 3, name="w.pth")
    with pytest.raises(UserError, match=r"'w\.pth' has no classifier"):
        with_class_names(info, AB, num_classes_of({"params": {}}), name="w.pth")
