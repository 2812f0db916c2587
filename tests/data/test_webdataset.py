"""Images in tar files: webdataset:SHARDS."""

import io
import json
import os
import pickle
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from jaxcls.config import DataConfig
from jaxcls.data import tar_index
from jaxcls.data.batches import train_batches
from jaxcls.data.decode import decode_image
from jaxcls.data.source import Source
from jaxcls.data.sources import open_source, prepare_source
from jaxcls.data.webdataset import find_shards
from jaxcls.system.errors import DataError

NAMES = ("cat", "dog", "newt")


def png(number: int) -> bytes:
    return cv2.imencode(".png", np.full((4, 4, 3), number, np.uint8))[1].tobytes()


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def example(number: int, label: Any = None, **more: bytes) -> list[tuple[str, bytes]]:
    """Image and label of an example; the label is text, or a list for JSON."""
    label = NAMES[number % 3] if label is None else label
    kind, content = "cls", str(label).encode()
    if isinstance(label, list):
        kind, content = "json", json.dumps({"label": label}).encode()
    extra = [(f"x/{number:03}.{name}", text) for name, text in more.items()]
    return [(f"x/{number:03}.png", png(number)), (f"x/{number:03}.{kind}", content), *extra]


def write_set(folder: Path, sizes: Mapping[str, int]) -> Path:
    """Shards of the given numbers of examples, which are numbered on."""
    first = 0
    for name, size in sizes.items():
        members = [m for number in range(first, first + size) for m in example(number)]
        write_tar(folder / name, members)
        first += size
    return folder


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return write_set(tmp_path / "set", {"train-000.tar": 12, "train-001.tar": 9, "test-000.tar": 6})


def opened(name: Path | str, split: str = "train", **fields: Any) -> Source:
    return open_source(DataConfig(source=f"webdataset:{name}", **fields), split)


def numbers(source: Source) -> list[int]:
    """The number in each image, in order, after a check of its label."""
    found = []
    for index in range(len(source)):
        record = source[index]
        number = int(decode_image(record.image, where="")[0, 0, 0])
        assert isinstance(record.label, int)
        assert source.class_names[record.label] == NAMES[number % 3]
        found.append(number)
    return found


def test_a_folder_has_the_splits_that_its_shards_are_named_after(shards: Path) -> None:
    train, test = opened(shards), opened(shards, "test")
    assert train.class_names == test.class_names == NAMES
    assert numbers(train) == list(range(21))
    assert numbers(test) == list(range(21, 27))
    assert train.class_counts().tolist() == [7, 7, 7]
    assert train.example_name(12) == f"{shards}/train-001.tar:x/012"
    assert numbers(opened(shards, "train[:25%]+test[-1:]")) == [0, 1, 2, 3, 4, 26]


@pytest.mark.parametrize("pattern", ["part-{000..001}.tar", "part-*.tar", "."])
def test_other_shards_are_split_by_share(tmp_path: Path, pattern: str) -> None:
    write_set(tmp_path, {"part-000.tar": 20, "part-001.tar": 10})
    train, test = (opened(tmp_path / pattern, split, test_share=0.3) for split in ("train", "test"))
    assert test.class_counts().tolist() == [3, 3, 3]
    assert sorted(numbers(train) + numbers(test)) == list(range(30))
    assert numbers(opened(tmp_path / pattern, "test", test_share=0.3)) == numbers(test)
    assert numbers(opened(tmp_path / pattern, "test", test_share=0.3, split_seed=5)) != numbers(
        test
    )


def test_one_shard_is_a_set(tmp_path: Path) -> None:
    write_set(tmp_path, {"all.tar": 12})
    assert len(opened(tmp_path / "all.tar")) + len(opened(tmp_path / "all.tar", "test")) == 12


def test_classes_txt_names_numbers(tmp_path: Path) -> None:
    write_tar(tmp_path / "train-0.tar", [*example(0, 2), *example(1, 0), *example(2, "dog")])
    (tmp_path / "classes.txt").write_text("cat\ndog\nnewt\nyak\n")
    source = opened(tmp_path)
    assert source.class_names == (*NAMES, "yak")
    assert [source[index].label for index in range(3)] == [2, 0, 1]


def test_numbers_without_classes_txt_are_names_in_their_order(tmp_path: Path) -> None:
    write_tar(tmp_path / "train-0.tar", [*example(0, 10), *example(1, 9), *example(2, 100)])
    source = opened(tmp_path)
    assert source.class_names == ("9", "10", "100")
    assert [source[index].label for index in range(3)] == [1, 0, 2]


def test_several_labels(tmp_path: Path) -> None:
    labels = [["cat", "dog"], [], ["newt"], ["dog"]]
    write_tar(tmp_path / "train-0.tar", [m for i in range(4) for m in example(i, labels[i])])
    source = opened(tmp_path, labels="multiple")
    assert source.multi_label
    assert [source[index].label for index in range(4)] == [(0, 1), (), (2,), (1,)]
    with pytest.raises(DataError, match=r"example 'x/000' has 2 classes; .*data\.labels"):
        opened(tmp_path)


def test_each_of_several_labels_is_in_train(tmp_path: Path) -> None:
    labels = [["common", f"rare{i}"] if i % 2 else ["common", "other"] for i in range(12)]
    write_tar(tmp_path / "all.tar", [m for i in range(12) for m in example(i, labels[i])])
    fields = {"labels": "multiple", "test_share": 0.5}
    train, test = (opened(tmp_path / "all.tar", split, **fields) for split in ("train", "test"))
    assert train.class_names == ("common", "other", *sorted(f"rare{i}" for i in range(1, 12, 2)))
    assert {test[index].label for index in range(len(test))} == {(0, 1)}


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_seed_and_step_with_any_workers(shards: Path, workers: int) -> None:
    source = opened(shards)
    copy = pickle.loads(pickle.dumps(source))
    assert numbers(copy) == numbers(source)
    data = DataConfig(batch_size=4, canvas_size=4, num_workers=workers)
    batches = [
        next(train_batches(source, data, seed=3, rows=range(4), start=start)) for start in (0, 7)
    ]
    for batch in batches:
        np.testing.assert_array_equal(batch["images"][:, 0, 0, 0], batch["index"])
        np.testing.assert_array_equal(batch["labels"], batch["index"] % 3)
    reference = DataConfig(batch_size=4, canvas_size=4)
    again = next(train_batches(source, reference, seed=3, rows=range(4), start=7))
    np.testing.assert_array_equal(again["images"], batches[1]["images"])


# The index


def test_the_headers_are_read_once(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = numbers(opened(shards))
    monkeypatch.setattr(tar_index, "_scan", None)
    assert numbers(opened(shards)) == first


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"stamp": 1}', b"\xff"])
def test_a_damaged_index_is_made_again(shards: Path, content: bytes) -> None:
    expected = numbers(opened(shards))
    for path in shards.iterdir():
        tar_index._index_file(path).write_bytes(content)
    assert numbers(opened(shards)) == expected


def test_an_index_that_points_out_of_the_shard_is_made_again(shards: Path) -> None:
    expected = numbers(opened(shards))
    index = tar_index._index_file(shards / "train-000.tar")
    values = json.loads(index.read_text())
    values["entries"][0][1] = 10**9
    index.write_text(json.dumps(values))
    assert numbers(opened(shards)) == expected


def test_a_shard_that_changed_is_indexed_again(shards: Path) -> None:
    before = opened(shards).identity
    write_tar(shards / "train-001.tar", [m for i in range(30, 33) for m in example(i)])
    source = opened(shards)
    assert numbers(source) == [*range(12), 30, 31, 32]
    assert source.identity != before


def test_without_a_cache_it_works_as_well(
    shards: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(tar_index, "make_cache_dir", lambda: tmp_path / "file")
    assert numbers(opened(shards)) == list(range(21))


def test_prepare_makes_the_indexes(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = prepare_source(f"webdataset:{shards}")
    assert line == f"{shards} is ready: 3 shards, test 6, train 21"
    monkeypatch.setattr(tar_index, "_scan", None)
    assert len(opened(shards)) == 21


# What is wrong


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("x/1.cls", b"a")], r"example 'x/1' has no images \(members: cls\)"),
        ([("1.png", b"i")], "example '1' has no label; it needs a member .cls"),
        ([("1.png", b"i"), ("1.jpg", b"i"), ("1.cls", b"a")], "example '1' has 2 images"),
        ([*example(1), *example(2), *example(1)], "example 'x/001' comes twice"),
        ([("1.png", b"i"), ("1.json", b"{")], r"member \.json is damaged"),
        ([("1.png", b"i"), ("1.json", b"[]")], r"member \.json is damaged"),
        ([("1.png", b"i"), ("1.json", b"{}")], 'example .1. has no label; .* under "label"'),
        ([("1.png", b"i"), ("1.json", b'{"label": 0.5}')], "must be a class name or number.*0.5"),
        ([("1.png", b"i"), ("1.json", b'{"label": [1, " "]}')], "must be a class name or number"),
        ([("1.png", b"i"), ("1.json", b'{"class": 1}')], 'has no label; .* under "label"'),
        ([("1.png", b"i"), ("1.cls", b"\n")], "must be a class name or number"),
        ([("1.png", b"i"), ("1.cls", b"\xff")], r"member \.cls is damaged"),
        ([("1.png", b"i"), ("1.cls", b"a" * 10**5)], "too long for a label"),
        (example(1), "'train' of .* has 1 class; a classifier needs two or more"),
        ([], "has no class"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_set_that_is_not_complete_is_named(
    tmp_path: Path, members: list[tuple[str, bytes]], message: str
) -> None:
    write_tar(tmp_path / "train-0.tar", members)
    with pytest.raises(DataError, match=f"^data.source: .*{message}|has no examples"):
        opened(tmp_path)


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_compressed_shards_are_refused_with_advice(tmp_path: Path, mode: Any) -> None:
    with tarfile.open(tmp_path / "train-0.tar", mode) as archive:
        archive.addfile(tarfile.TarInfo("a"))
    with pytest.raises(DataError, match=r"train-0\.tar is compressed with .*decompress it once"):
        opened(tmp_path)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.9, 1.0])
def test_a_shard_that_is_cut_off_is_named(shards: Path, share: float) -> None:
    path = shards / "train-000.tar"
    size = 12 * 4 * 512  # of the members, without the zeros after them
    os.truncate(path, int(share * size))
    with pytest.raises(DataError, match=r"train-000\.tar.* (is damaged, cut off|has no label)"):
        opened(shards)


def test_a_shard_that_is_cut_off_later_is_named(shards: Path) -> None:
    source = opened(shards)
    os.truncate(shards / "train-001.tar", 600)
    with pytest.raises(DataError, match=r"train-001\.tar:x/020': the shard has been cut off"):
        source[20]
    (shards / "train-001.tar").unlink()
    with pytest.raises(DataError, match=r"cannot be read \(No such file or directory\)"):
        source[20]


def test_a_class_that_is_not_in_train_is_named(tmp_path: Path) -> None:
    write_set(tmp_path, {"train-0.tar": 3})
    write_tar(tmp_path / "val-0.tar", example(1, "dgo"))
    with pytest.raises(DataError, match=r"example 'x/001': class 'dgo' is not in .* mean 'dog'"):
        opened(tmp_path, "val")


@pytest.mark.parametrize("content", ["cat\n", "cat\ncat\n", ""])
def test_class_names_that_cannot_be_used(shards: Path, content: str) -> None:
    (shards / "classes.txt").write_text(content)
    with pytest.raises(DataError, match=r"classes\.txt must name two or more classes, each once"):
        opened(shards)


def test_ranges_and_names_that_do_not_fit(shards: Path) -> None:
    assert [path.name for path in find_shards(f"{shards}/train-{{000..001}}.tar")] == [
        "train-000.tar",
        "train-001.tar",
    ]
    with pytest.raises(DataError, match=r"1 of the 3 shards .* are missing, .*train-002\.tar"):
        find_shards(f"{shards}/train-{{000..002}}.tar")
    with pytest.raises(DataError, match=r"\{3\.\.1\} .* is no range of numbers"):
        find_shards(f"{shards}/train-{{3..1}}.tar")
    for name, message in (
        ("none", "does not exist"),
        ("x*.tar", "matches no files"),
        ("empty", "has no .tar files"),
    ):
        (shards / "empty").mkdir(exist_ok=True)
        with pytest.raises(DataError, match=message):
            find_shards(f"{shards}/{name}")


def test_names_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    rows = [("\x1b[31m.png", png(1)), ("\x1b[31m.cls", b"a"), *example(2), *example(3)]
    write_tar(tmp_path / "train-0.tar", rows)
    source = opened(tmp_path)
    assert "\x1b" not in source.describe(0)
