import dataclasses
import os
import pickle
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from jaxcls.config import Config, DataConfig, decode, encode
from jaxcls.data import folder_index
from jaxcls.data.decode import decode_image
from jaxcls.data.folder import open_split, prepare
from jaxcls.data.listing import list_images
from jaxcls.data.sources import open_source
from jaxcls.system.errors import DataError, UserError


def opened(root, split, *, test_share=0.25, seed=0):
    data = DataConfig(test_share=test_share, split_seed=seed)
    return open_split(str(root), data, split)


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
            == f"image '{root}/train/{['cat', 'dog'][number < 4]}/{number:04}.png'"
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
        ({"val/a": 1, "test/a": 1}, "rename the one to train on to train"),
    ],
)
def test_splits_of_other_names_do_not_become_classes(make_photos, folders, mend):
    fails(f"look like splits, not classes .*; {mend}", make_photos(folders))


def test_a_folder_too_many(make_photos):
    root = make_photos({"archive/photos/cat": 2, "archive/photos/dog": 2})
    fails(f"has one class; .*; did you mean data.source folder:{root}/archive/photos?", root)


def test_names_that_are_not_utf8(make_photos):
    root = make_photos({"a": 2, "b": 2})
    with open(os.path.join(os.fsencode(root), b"a", b"caf\xe9.png"), "wb") as file:
        file.write((root / "a/0000.png").read_bytes())
    for index in ("rebuild", "reuse"):
        data = DataConfig(source=f"folder:{root}", test_share=0.25, folder_index=index)
        source = open_source(data, "train+test")
        assert len(source) == 5
        assert all(source[index].image for index in range(5))
        assert source.identity


def test_files_that_are_passed_over_are_counted(make_photos, caplog):
    root = make_photos({"a": 2, "b": 2}, suffix=".jfif")
    for name in ("README", "a/notes.txt", "b/raw.heic", "b/._0001.jfif", "loose.png"):
        (root / name).touch()
    (root / "a/back").symlink_to("..")
    assert len(opened(root, "train+test", test_share=0.5)) == 4
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == (
        f"{root}: not used: HEIC files, which must be converted to JPEG or PNG (1, for example "
        f"'b/raw.heic'); files without an image extension (2, for example 'README'); hidden names "
        f"(1, for example 'b/._0001.jfif'); symbolic links to a parent folder or to a folder that "
        f"is already listed (1, for example 'a/back'); images outside the class folders (1, for "
        f"example "
        f"'loose.png')"
    )


def test_missing_folder(tmp_path):
    fails(f"data.source: folder '{tmp_path}/gone' does not exist; name a folder", tmp_path / "gone")
    (tmp_path / "file").touch()
    fails("file' is a file; name a folder", tmp_path / "file")


def test_class_without_images(make_photos):
    root = make_photos({"cat": 2, "dog": 0, "fox": 1})
    fails(f"data.source: {root}/dog has no images; add some or remove the folder$", root)
    (root / "dog/dog.JXL").touch()
    fails(
        r"dog has no images; add .* \(it has JPEG XL files, which must be converted to JPEG", root
    )
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


def test_folder_that_may_not_be_read(make_photos, monkeypatch):
    root = make_photos({"a": 2, "b": 2})
    whole = list_images(root)
    shut = dataclasses.replace(whole, unreadable={"a": "Permission denied"})
    monkeypatch.setattr(folder_index, "list_images", lambda _: shut)
    fails(rf"'{root}/a' cannot be read \(Permission denied\); fix that, .* permissions", root)


@pytest.mark.parametrize(("split", "name"), [("test", "test"), ("train+val[:1]", "val")])
def test_a_split_without_folders_of_classes_is_named_with_what_to_do(make_photos, split, name):
    """Kaggle's layout: the test set has no labels."""
    root = make_photos({"train/cat": 5, "train/dog": 5, "test": 3, "val": 0})
    count = {"test": 3, "val": 0}[name]
    fails(rf"^split: '.*': {root}/{name} has {count} images but no class folders", root, split)
    with pytest.raises(DataError) as caught:
        opened(root, split)
    advice = re.findall(r"--data\.(\w+)-split '(.*?)'", str(caught.value))
    parts = {split: set(opened(root, part).files) for split, part in advice}
    assert len(parts["train"]) == 8
    assert len(parts["eval"]) == 2
    assert not parts["train"] & parts["eval"]


def test_unlabelled_images_in_a_folder_of_their_own(make_photos):
    root = make_photos({"train/cat": 2, "train/dog": 2, "test/unknown": 1})
    fails("class 'unknown', .*; if such images have no labels, evaluate on a part", root, "test")


@pytest.mark.parametrize(
    ("folders", "bare"),
    [
        ({"train": 4, "test": 4}, "test and train have"),
        ({"train": 4, "test/cat": 4, "test/dog": 4}, "train has"),
        ({"Train": 4, "Val": 4, "Test": 4}, "Test and Train and Val have"),
    ],
)
def test_flat_splits_do_not_become_classes(make_photos, folders, bare):
    fails(f"look like splits, .*, but {bare} no class folders; put", make_photos(folders))


CAFE = "caf\N{LATIN SMALL LETTER E WITH ACUTE}"
FROM_MAC = unicodedata.normalize("NFD", CAFE)


@pytest.mark.parametrize("forms", [(CAFE, FROM_MAC), (FROM_MAC, CAFE), (FROM_MAC, FROM_MAC)])
def test_classes_and_splits_are_compared_by_their_letters(make_photos, forms):
    train, test = forms
    root = make_photos(
        {f"train/{train}": 2, "train/cafz": 1, f"{test}/{test}": 3, f"{test}/cafz": 1}
    )
    assert opened(root, "train").class_names == ("cafz", CAFE)  # in NFD the other way round
    for split in forms:
        source = opened(root, split)
        assert source.class_counts().tolist() == [1, 3]
        assert all(source[index].image for index in range(4))


@pytest.mark.parametrize("above", ["", "train/"])
def test_two_folders_of_one_name_are_refused(make_photos, above):
    root = make_photos({"train/cat": 1} if above else {"cat": 1})
    for name in (CAFE, FROM_MAC):
        (root / above / name).mkdir()
    fails(
        rf"names look the same \('{CAFE}'\) but .* \('cafe\\u0301', 'caf\\xe9'\); merge",
        root,
    )


def test_two_splits_of_one_name_are_refused(make_photos):
    root = make_photos({"train/a": 1, "train/b": 1, f"{CAFE}/a": 1, f"{FROM_MAC}/a": 1})
    fails(rf"{root} has two folders whose names look the same \('{CAFE}'\)", root)


def test_deeper_folders_may_have_one_name(make_photos):
    root = make_photos({f"a/{CAFE}": 1, f"a/{FROM_MAC}": 1, "b": 1})
    assert opened(root, "train+test").class_counts().tolist() == [2, 1]


def test_classes_whose_names_are_not_utf8_go_by_text(make_photos, caplog):
    root = make_photos({"train/a": 1, "train/b": 2, "test/b": 1})
    for split in ("train", "test"):
        os.rename(root / split / "b", os.path.join(os.fsencode(root), split.encode(), b"caf\xe9"))
    for split, count in (("train", 2), ("test", 1)):
        source = opened(root, split)
        assert source.class_names == ("a", r"caf\xe9")
        assert source.class_counts()[1] == count
        assert source[0].image
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.endswith(r"written with codes, for example 'caf\xe9'")


def test_classes_whose_names_would_move_a_terminal_go_by_codes(make_photos):
    root = make_photos({"train/\x1b]0;x\x07": 1, "train/a\nb": 1})
    source = opened(root, "train")
    assert set(source.class_names) == {r"\x1b]0;x\x07", r"a\nb"}
    assert source[0].image
    root = make_photos({"train/a\nb": 1, r"train/a\nb": 1})
    fails(r"two folders whose names look the same \('a\\\\nb'\)", root)


def test_a_folder_whose_own_name_is_not_utf8(make_photos, tmp_path):
    root = make_photos({"a": 2, "b": 2}).rename(tmp_path / "caf\udce9")
    assert opened(root, "train").name == r"caf\xe9"
    assert r"caf\xe9 is ready" in prepare(str(root))
    fails(r"of .*caf\\xe9", root, "trian")
    with pytest.raises(UserError, match=r"^data.source: 'folder:.*caf\\xe9' is not UTF-8; rename"):
        decode(encode(Config(data=DataConfig(source=f"folder:{root}"), num_steps=1)))


def test_the_order_is_the_same_forever(make_photos):
    """A release that changes these changes every resumed run and every test set."""
    source = opened(make_photos({"a": 4, "b": 2}), "train+test")
    assert [Path(file).stem for file in source.files] == FOREVER
    assert np.bincount(source.labels).tolist() == [4, 2]


FOREVER = ["0000", "0005", "0001", "0003", "0004", "0002"]
