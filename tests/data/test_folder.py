import dataclasses
import os
import pickle
import time
from pathlib import Path

import numpy as np
import pytest

from jaxcls.caches import cache_dir
from jaxcls.config import DataConfig
from jaxcls.data import folder_index
from jaxcls.data.decode import decode_image
from jaxcls.data.folder import open_folder
from jaxcls.data.folder_index import read_index
from jaxcls.data.sources import open_source
from jaxcls.errors import DataError


def opened(root, split, *, test_share=0.25, seed=0):
    return open_folder(str(root), split, test_share=test_share, seed=seed)


def fails(match, root, split="train"):
    with pytest.raises(DataError, match=match):
        opened(root, split)


def test_folders_of_splits(make_photos):
    root = make_photos({"train/dog": 4, "train/cat": 3, "test/dog": 2, "val/cat": 1})
    (root / "train/dog/notes.txt").touch()
    (root / "train/cat/.hidden.png").touch()
    (root / "readme.png").touch()  # of no class
    source = open_source(DataConfig(source=f"folder:{root}"), "train")
    assert (source.name, source.split, source.class_names) == (root.name, "train", ("cat", "dog"))
    seen = set()
    for index in range(len(source)):
        record = source[index]
        number = int(decode_image(record.image, where="it")[0, 0, 0])
        assert record.label == (number < 4)  # dogs were made first
        assert (
            source.describe(index)
            == f"image '{root}/train/{['cat', 'dog'][record.label]}/{number:04}.png'"
        )
        assert source.describe(index) == f"image {source.example_name(index)!r}"
        seen.add(number)
    assert seen == set(range(7))
    assert [len(opened(root, split)) for split in ("test", "val", "test+val")] == [2, 1, 3]
    assert opened(root, "val").class_names == ("cat", "dog")


def test_images_may_lie_deeper_and_be_of_any_kind(make_photos):
    root = make_photos({"cat": 2, "dog/spaniels/brown": 3}, suffix=".JPG")
    source = opened(root, "train+test")
    assert sorted(source.labels) == [0, 0, 1, 1, 1]
    assert decode_image(source[0].image, where="it").shape == (4, 4, 3)


def test_a_class_may_be_called_train(make_photos):
    assert opened(make_photos({"train": 4, "bus": 4}), "train").class_names == ("bus", "train")


@pytest.mark.parametrize("test_share", [0.1, 0.25, 0.5])
def test_own_split_is_stratified_and_follows_from_the_seed(make_photos, test_share):
    counts = {"a": 40, "b": 100, "c": 12, "d": 1}
    root = make_photos(counts)
    train, test = (opened(root, split, test_share=test_share) for split in ("train", "test"))
    assert not set(train.files) & set(test.files)
    assert len(train) + len(test) == 153
    for number, count in enumerate(counts.values()):
        assert abs(test.labels.count(number) - test_share * count) <= 0.5
    assert opened(root, "test", test_share=test_share) == test
    other = opened(root, "test", test_share=test_share, seed=1)
    assert set(other.files) != set(test.files)
    assert sorted(other.labels) == sorted(test.labels)


def test_the_split_does_not_depend_on_where_the_folder_lies(make_photos, tmp_path):
    root = make_photos({"a": 9, "b": 9})
    files = opened(root, "test").files
    assert opened(root.rename(tmp_path / "moved"), "test").files == files


def test_any_slice_is_stratified(make_photos):
    root = make_photos({"train/a": 30, "train/b": 60, "train/c": 10})
    whole = opened(root, "train")
    for begin, end in ((0, 50), (50, 90), (13, 33), (90, 100)):
        part = opened(root, f"train[{begin}:{end}]")
        assert part.files == whole.files[begin:end]
        for number, share in enumerate((0.3, 0.6, 0.1)):
            assert abs(part.labels.count(number) - share * len(part)) <= 1
    assert opened(root, "train[:90%]").files == whole.files[:90]
    assert opened(root, "train[90%:]+train[:1%]").files == whole.files[90:] + whole.files[:1]


def test_travels_to_other_processes(make_photos):
    source = opened(make_photos({"a": 3, "b": 3}), "train")
    assert pickle.loads(pickle.dumps(source)) == source


@pytest.mark.parametrize("split", ["trian", "", "train[", "train[abc]", "train[:200]", "val"])
def test_unknown_split(make_photos, split):
    root = make_photos({"a": 5, "b": 7})
    fails(rf"split: '.*{root}.*splits: train 9, test 3", root, split)


def test_an_error_names_the_field_of_its_split(make_photos):
    data = DataConfig(source=f"folder:{make_photos({'a': 5, 'b': 7})}", train_split="trian")
    with pytest.raises(DataError, match=r"^data.train_split: 'trian' of .* did you mean 'train'"):
        open_source(data, "trian")
    with pytest.raises(DataError, match=r"^--split: 'train.:200.' of (?!.*did you mean)"):
        open_source(data, "train[:200]")
    with pytest.raises(DataError, match=r"^data.eval_split: 'val' of"):
        open_source(dataclasses.replace(data, eval_split="val"), "val")


def test_empty_split(make_photos):
    fails("'train.:1%.' of .* has no examples", make_photos({"a": 5, "b": 7}), "train[:1%]")


def test_classes_without_a_test_image(make_photos, caplog):
    root = make_photos({"a": 20, "b": 2, "c": 1})
    for split in ("train", "test"):
        opened(root, split, test_share=0.1)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == (
        f"{root}: 2 of 3 classes have no image in the split test, for example 'b'; "
        f"data.test_share, 0.1, is too small for them"
    )
    root = make_photos({"a": 2, "b": 2})
    with pytest.raises(DataError, match=r"has no examples .*; data.test_share, 0.1, is too small"):
        opened(root, "test", test_share=0.1)


@pytest.mark.parametrize(
    ("folders", "mend"),
    [
        ({"Train/a": 2, "Train/b": 2, "Test/a": 1}, "rename .*/Train to train"),
        ({"training/a": 2, "validation/a": 1}, "rename .*/training to train"),
        ({"val/a": 1, "test/a": 1}, "call the one to train on train"),
    ],
)
def test_splits_of_other_names_do_not_become_classes(make_photos, folders, mend):
    fails(f"look like splits, not classes .*; {mend}", make_photos(folders))


def test_a_folder_too_many(make_photos):
    root = make_photos({"archive/photos/cat": 2, "archive/photos/dog": 2})
    fails(f"has one class; .*; is it data.source folder:{root}/archive/photos?", root)


def test_names_that_are_not_utf8(make_photos):
    root = make_photos({"a": 2, "b": 2})
    with open(os.path.join(os.fsencode(root), b"a", b"caf\xe9.png"), "wb") as file:
        file.write((root / "a/0000.png").read_bytes())
    settle(root)
    for _ in range(2):  # the second from the remembered index
        source = opened(root, "train+test")
        assert len(source) == 5
        assert all(source[index].image for index in range(5))
        assert source.identity


def test_files_that_are_passed_over_are_counted(make_photos, caplog):
    root = make_photos({"a": 2, "b": 2}, suffix=".jfif")
    for name in ("README", "a/notes.txt", "b/raw.heic"):
        (root / name).touch()
    assert len(opened(root, "train+test", test_share=0.5)) == 4
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == (
        f"{root}: 2 other files are not images by their names, for example 'a/notes.txt'; "
        f"they are left out"
    )


def test_missing_folder(tmp_path):
    fails(f"data.source: folder '{tmp_path}/gone' does not exist; name a folder", tmp_path / "gone")
    (tmp_path / "file").touch()
    fails("file' does not exist", tmp_path / "file")


def test_class_without_images(make_photos):
    root = make_photos({"cat": 2, "dog": 0, "fox": 1})
    (root / "dog/dog.txt").touch()
    fails(f"data.source: {root}/dog has no images; fill it or remove it", root)
    root = make_photos({"train/cat": 2, "train/dog": 2, "test/cat": 0})
    fails(f"{root}/test/cat has no images", root)


def test_fewer_than_two_classes(make_photos):
    fails("has one class; a classifier needs two or more, as PATH/CLASS", make_photos({"cat": 2}))
    root = make_photos({"cat": 0})
    (root / "cat").rmdir()
    fails("has no classes", root)
    fails("has one class", make_photos({"train/cat": 2, "test/dog": 2}))


def test_class_that_is_not_in_train(make_photos):
    root = make_photos({"train/cat": 2, "train/dog": 2, "test/cats": 1})
    fails(rf"{root}/test/cats/0004.png is of class 'cats', .* did you mean 'cat'", root, "test")
    assert len(opened(root, "train")) == 4


def test_file_that_went_away(make_photos):
    root = make_photos({"a": 2, "b": 2})
    source = opened(root, "train")
    (root / source.files[1]).unlink()
    with pytest.raises(DataError, match=rf"image '{root}/.*': cannot be read \(No such file"):
        source[1]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_folder_that_may_not_be_read(make_photos):
    root = make_photos({"a": 2, "b": 2})
    (root / "a").chmod(0)
    fails(f"{root}/a cannot be read .*mend its permissions", root)


@pytest.fixture
def scans(monkeypatch):
    """The folders that were listed anew."""
    scanned = []

    def scan(root):
        scanned.append(root)
        return SCAN(root)

    monkeypatch.setattr(folder_index, "_scan", scan)
    return scanned


SCAN = folder_index._scan


def settle(root):
    """Makes all changes so far look ten seconds old."""
    past = time.time_ns() - 10**10
    for folder in [root, *(path for path in root.rglob("*") if path.is_dir())]:
        os.utime(folder, ns=(past, past))


def test_index_is_remembered_until_a_folder_changes(make_photos, scans):
    root = make_photos({"a": 2, "b/deep": 2})
    settle(root)
    first = read_index(root)
    assert read_index(root) == first
    assert len(scans) == 1
    for change in (
        lambda: (root / "b/deep/new.png").touch(),
        lambda: (root / "b/deep/new.png").unlink(),
        lambda: (root / "c").mkdir(),
        lambda: (root / "a").rename(root / "d"),
    ):
        change()
        scans.clear()
        assert read_index(root) == SCAN(root)
        assert len(scans) == 1


def test_index_of_a_folder_in_change_is_not_remembered(make_photos, scans):
    root = make_photos({"a": 2, "b": 2})
    read_index(root)
    read_index(root)
    assert len(scans) == 2


@pytest.mark.parametrize("content", ["", "{", "[]", '{"folders": {}}'])
def test_damaged_memory_is_made_anew(make_photos, scans, content):
    root = make_photos({"a": 2, "b": 2})
    settle(root)
    expected = read_index(root)
    memory = folder_index._memory_file(root)
    assert memory.is_relative_to(cache_dir())
    memory.write_text(content)
    assert read_index(root) == expected
    assert len(scans) == 2
    assert read_index(root) == expected
    assert len(scans) == 2


def test_memory_that_cannot_be_written_does_not_matter(make_photos, monkeypatch, tmp_path):
    (tmp_path / "no_folder").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "no_folder"))
    root = make_photos({"a": 2, "b": 2})
    settle(root)
    assert read_index(root).files == tuple(sorted(read_index(root).files))


def test_the_order_is_the_same_forever(make_photos):
    """A release that changes these changes every resumed run and every test set."""
    source = opened(make_photos({"a": 4, "b": 2}), "train+test")
    assert [Path(file).stem for file in source.files] == FOREVER
    assert np.bincount(source.labels).tolist() == [4, 2]


FOREVER = ["0000", "0005", "0001", "0003", "0004", "0002"]
