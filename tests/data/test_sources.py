import dataclasses

import pytest

from jaxcls.config import DataConfig
from jaxcls.data.sources import open_source, prepare_source
from jaxcls.system.errors import DataError


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        ("digts", "did you mean 'digits'"),
        ("tfd:cifar10", "did you mean 'tfds'"),
        ("tfds:", "tfds:NAME"),
        ("folder:", "folder:PATH"),
        ("folders:photos", "did you mean 'folder'"),
        ("digits:1", "known: digits, "),
    ],
)
def test_unknown_source(source, hint):
    for ask in (
        lambda: open_source(DataConfig(source=source), "train"),
        lambda: prepare_source(source),
    ):
        with pytest.raises(DataError, match=f"data.source: unknown source '{source}'.*{hint}"):
            ask()


def test_sources_of_one_class_for_each_image_refuse_several_labels(make_photos, tmp_path):
    photos = make_photos({"train/cat": 1, "train/dog": 1})
    for source in ("digits", f"folder:{photos}"):
        data = DataConfig(source=source, data_dir=str(tmp_path), labels="multiple")
        with pytest.raises(DataError, match=r'^data.labels: "multiple" .*data.source csv:FILE$'):
            open_source(data, "train")
        assert not open_source(dataclasses.replace(data, labels="single"), "train").multi_label


def test_digits_in_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    data = DataConfig(source="digits", data_dir=str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"data.data_dir: cannot prepare digits in .*name a folder"):
        open_source(data, "train")


def test_prepare_says_where_a_set_lies_and_how_large_it_is(make_set, make_photos, tmp_path):
    folder = make_set()
    assert prepare_source("digits", str(tmp_path)) == (
        f"digits is ready in {tmp_path}/digits/1.0.0: train 1,442, test 355"
    )
    assert prepare_source("tfds:photos", str(tmp_path)) == (
        f"photos is ready in {folder}: train 10, validation 2"
    )
    photos = make_photos({"cat": 3, "dog": 5})
    assert prepare_source(f"folder:{photos}") == f"{photos} is ready: 2 classes, train 8"
    photos = make_photos({"train/cat": 3, "train/dog": 5, "test/dog": 2})
    assert prepare_source(f"folder:{photos}") == f"{photos} is ready: 2 classes, test 2, train 8"
