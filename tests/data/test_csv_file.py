"""Lists of image files: csv:FILE."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from jaxcls.config import DataConfig
from jaxcls.data.batches import eval_batches
from jaxcls.data.decode import decode_image
from jaxcls.data.source import Source
from jaxcls.data.sources import open_source, prepare_source
from jaxcls.system.errors import DataError

ROWS = [(f"{i}.png", ("cat", "dog", "newt")[i % 3]) for i in range(30)]
SEVERAL = [(f"{i}.png", tuple(name for name in "abc" if (i + ord(name)) % 2)) for i in range(12)]


def write_images(folder: Path, count: int = 30) -> None:
    for number in range(count):
        image = np.full((4, 4, 3), number, np.uint8)
        (folder / f"{number}.png").write_bytes(cv2.imencode(".png", image)[1].tobytes())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_images(tmp_path)
    return tmp_path


def opened(file: Path, split: str = "train", **fields: Any) -> Source:
    return open_source(DataConfig(source=f"csv:{file}", **fields), split)


def from_text(folder: Path, text: str, name: str = "list.csv", **fields: Any) -> Source:
    (folder / name).write_text(text)
    return opened(folder / name, **fields)


def as_csv(rows: Any) -> str:
    return "file,label\n" + "".join(f"{file},{label}\n" for file, label in rows)


def content(source: Source) -> list[tuple[str, Any]]:
    """The name and the classes of each record, as a list without order."""
    found = []
    for index in range(len(source)):
        label = source[index].label
        numbers = label if isinstance(label, tuple) else (label,)
        names = tuple(source.class_names[number] for number in numbers)
        found.append((Path(source.example_name(index)).name, names))
    return sorted(found)


def test_a_list_is_split_as_a_folder_is(folder: Path) -> None:
    (folder / "list.csv").write_text(as_csv(ROWS))
    train, test = (
        opened(folder / "list.csv", split, test_share=0.2) for split in ("train", "test")
    )
    assert train.class_names == test.class_names == ("cat", "dog", "newt")
    assert test.class_counts().tolist() == [2, 2, 2]
    assert content(train) + content(test) != sorted(content(train) + content(test))
    assert sorted(content(train) + content(test)) == sorted((f, (name,)) for f, name in ROWS)
    again = opened(folder / "list.csv", "test", test_share=0.2, split_seed=1)
    assert content(again) != content(test)


def test_any_order_of_the_lines_gives_the_same_order_of_the_images(folder: Path) -> None:
    one = from_text(folder, as_csv(ROWS))
    other = from_text(folder, as_csv(ROWS[::-1]), "other.csv")
    names = [[source.example_name(i) for i in range(len(source))] for source in (one, other)]
    assert names[0] == names[1]
    assert one.identity == other.identity


def test_a_column_names_the_splits(folder: Path) -> None:
    lines = [f"{name},{i}.png,{'valid' if i < 3 else 'train'}" for i, (_, name) in enumerate(ROWS)]
    (folder / "list.csv").write_text("Label, FILE ,split\n" + "\n".join(lines))
    assert len(opened(folder / "list.csv")) == 27
    assert content(opened(folder / "list.csv", "valid")) == sorted(
        (file, (name,)) for file, name in ROWS[:3]
    )
    with pytest.raises(DataError, match=r"there is no split 'test'.*train 27, valid 3"):
        opened(folder / "list.csv", "test")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.tsv", as_csv(ROWS).replace(",", "\t")),
        ("list.CSV", "\ufeff" + as_csv(ROWS).replace("\n", "\r\n") + "\r\n\r\n"),
        ("list.csv", "id,file,label\n" + "".join(f'7,"{f}","{name}"\n' for f, name in ROWS)),
        ("list.json", json.dumps([{"file": f, "label": name, "more": 1} for f, name in ROWS])),
        ("list.jsonl", "\n".join(json.dumps({"file": f, "label": name}) for f, name in ROWS)),
    ],
    ids=lambda value: value[:8],
)
def test_forms_of_lists(folder: Path, name: str, text: str) -> None:
    expected = content(from_text(folder, as_csv(ROWS), "reference.csv"))
    assert content(from_text(folder, text, name)) == expected


def test_numbers_are_names(folder: Path) -> None:
    numbers = [(file, str(10 * i)) for i, (file, _) in enumerate(ROWS[:3])]
    source = from_text(folder, as_csv(numbers), test_share=0.01)
    assert source.class_names == ("0", "10", "20")
    text = json.dumps([{"file": file, "label": int(label)} for file, label in numbers])
    assert content(from_text(folder, text, "list.json", test_share=0.01)) == content(source)


def test_several_classes(folder: Path) -> None:
    text = as_csv((file, "; ".join(names)) for file, names in SEVERAL)
    source = from_text(folder, text, labels="multiple", test_share=0.01)
    assert source.multi_label
    assert content(source) == sorted(SEVERAL)
    as_lists = json.dumps([{"file": file, "label": names} for file, names in SEVERAL])
    other = from_text(folder, as_lists, "list.json", labels="multiple", test_share=0.01)
    assert content(other) == content(source)
    data = DataConfig(
        source="csv:", labels="multiple", image_size=4, canvas_size=4, interpolation="bilinear"
    )
    (batch,) = eval_batches(source, data, batch_size=12, rows=range(12))
    expected = np.zeros((12, 3), np.uint8)
    for row in range(12):
        label = source[row].label
        assert isinstance(label, tuple)
        expected[row, list(label)] = 1
    np.testing.assert_array_equal(batch["labels"], expected)
    np.testing.assert_array_equal(source.class_counts(), expected.sum(axis=0))


def test_each_of_several_classes_is_in_train(folder: Path) -> None:
    # Rare classes: those of one image each, some of which the split would put into `test`.
    rows = [(f"{i}.png", f"common;rare{i}" if i % 2 else "common") for i in range(30)]
    fields = {"labels": "multiple", "test_share": 0.5}
    train = from_text(folder, as_csv(rows), **fields)
    test = opened(folder / "list.csv", "test", **fields)
    assert train.class_names == tuple(sorted(["common", *(f"rare{i}" for i in range(1, 30, 2))]))
    assert len(test) > 0
    assert {names for _, names in content(test)} == {("common",)}


def test_the_labels_identify_the_data(folder: Path) -> None:
    one = from_text(folder, as_csv(ROWS))
    changed = [(ROWS[0][0], "dog"), *ROWS[1:]]
    assert from_text(folder, as_csv(changed), split="train").identity != one.identity


def test_paths_may_lead_anywhere(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    rows = [(f"../{ROWS[0][0]}", "a"), (str(folder / ROWS[1][0]), "b")]
    source = from_text(tmp_path / "lists", as_csv(rows), test_share=0.01)
    found = [decode_image(source[index].image, where="")[0, 0, 0] for index in range(2)]
    assert sorted(found) == [0, 1]


def test_a_name_that_is_not_utf8(folder: Path) -> None:
    name = b"caf\xe9.png"
    (Path(str(folder)) / "x").write_bytes(b"")
    with open(bytes(folder) + b"/" + name, "wb") as file:
        file.write((folder / "0.png").read_bytes())
    (folder / "list.csv").write_bytes(b"file,label\n" + name + b",a\n1.png,b\n")
    source = opened(folder / "list.csv", test_share=0.01)
    assert len([source[index] for index in range(2)]) == 2


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "", r"a\.csv is empty; its first line must be file,label"),
        ("a.csv", "file,label\n", "lists no images"),
        ("a.csv", "image,label\n0.png,a\n", r"must name a column 'file' once, and names 'image'"),
        ("a.csv", "file,label,label\n", "a column 'label' once"),
        ("a.csv", "file;label\n0.png;a\n", "separated by commas, not by ';'"),
        ("a.csv", "file\tlabel\n0.png\ta\n", r"separated by commas, not by '\\t'"),
        ("a.tsv", "file,label\n0.png,a\n", "separated by tabs, not by ','"),
        ("a.csv", "file,label\n0.png,a\n1.png\n", "line 3: 1 cells, but the header has 2"),
        ("a.csv", "file,label\n0.png,a,b\n", "line 2: 3 cells, .* in double quotes"),
        ("a.csv", "file,label\n0.png,\n", "line 2: the image has no class; .*data.labels"),
        ("a.csv", "file,label\n0.png,a;b\n", r"line 2: the image has 2 classes \(a, b\)"),
        ("a.csv", "file,label\n,a\n", "line 2: 'file' must be a path, got ''"),
        ("a.csv", "file,label\n0.png,a\n./0.png,a\n", r"line 3: './0.png' .* already \(line 2\)"),
        ("a.csv", "file,label\n0.png,a\n1.png,a\n", "'train' of .* has 1 class; .* two or more"),
        ("a.csv", 'file,label\n0.png,"a\n', "line 2: unexpected end of data"),
        ("a.csv", "file,label\nx.png,a\ny.png,b\n", "cannot be read .*relative to the folder"),
        ("a.csv", "file,label,split\n0.png,a,test\n", "no line with the split 'train'"),
        (
            "a.csv",
            "file,label,split\n0.png,cat,train\n1.png,dog,train\n2.png,dgo,test\n",
            "line 4: class 'dgo' has no image in the split 'train'; did you mean 'dog'",
        ),
        ("a.csv", "file,label,split\n0.png,a, \n", "line 2: 'split' must be a name"),
        ("a.json", "{", r"a\.json is not JSON"),
        ("a.json", "{}", "must be a list of objects"),
        ("a.json", "[1]", "entry 1 must be an object"),
        ("a.json", '[{"file": 1, "label": "a"}]', "entry 1: 'file' must be a path, got 1"),
        ("a.json", '[{"file": "0.png", "label": 0.5}]', "'label' must be a class name"),
        ("a.json", '[{"file": "0.png", "label": true}]', "'label' must be a class name"),
        ("a.json", '[{"file": "0.png"}]', "'label' must be a class name, .* got None"),
        (
            "a.json",
            '[{"file": "0.png", "label": "a", "split": "train"}, {"file": "1.png", "label": "b"}]',
            "entry 2: 'split' is missing",
        ),
        ("a.json", r'[{"file": "\ud800.png", "label": "a"}]', "entry 1: 'file' must be a path"),
        ("a.jsonl", '{"file": "0.png", "label": "a"}\n{', "line 2 is not JSON"),
        ("a.json", "[" * 1000 + "]" * 1000, "not JSON .nested more than 100"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_line(
    folder: Path, name: str, text: str, message: str
) -> None:
    split = "test" if "dgo" in text else "train"
    (folder / name).write_text(text)
    with pytest.raises(DataError, match=f"^data.source: .*{message}"):
        opened(folder / name, split)


def test_a_list_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.csv' cannot be read \(No such file"):
        opened(tmp_path / "none.csv")
    with pytest.raises(DataError, match="Is a directory"):
        opened(tmp_path)


def test_a_file_that_is_lost_later_is_named(folder: Path) -> None:
    source = from_text(folder, as_csv(ROWS))
    Path(source.example_name(3)).unlink()
    with pytest.raises(
        DataError, match=r"cannot be read \(No such file or directory\); restore it"
    ):
        source[3]


def test_a_name_cannot_write_to_the_terminal(folder: Path) -> None:
    rows = [("0.png", "\x1b[31mred"), ("1.png", '"two\nlines"')]
    source = from_text(folder, as_csv(rows), test_share=0.01)
    assert source.class_names == (r"\x1b[31mred", r"two\nlines")


def test_prepare_counts_the_list(folder: Path) -> None:
    (folder / "list.csv").write_text(as_csv(ROWS))
    assert prepare_source(f"csv:{folder / 'list.csv'}").endswith(
        "list.csv is ready: 3 classes, train 30"
    )
