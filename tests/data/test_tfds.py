import dataclasses
import json
import pickle
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from jaxcls.config import DataConfig
from jaxcls.data import tfds as tfds_source
from jaxcls.data.decode import decode_image
from jaxcls.data.sources import open_source
from jaxcls.data.tfds import TfdsSource
from jaxcls.system.errors import DataError

IMAGE = tfds.features.Image(shape=(None, None, 3), encoding_format="png")
LABEL = tfds.features.ClassLabel(names=["cat", "dog"])


def config(folder, name="photos"):
    return DataConfig(source=f"tfds:{name}", data_dir=str(folder.parent.parent))


def fails(match, data, split="train"):
    with pytest.raises(DataError, match=match) as error:
        open_source(data, split)
    return str(error.value)


def test_reads_a_prepared_set_by_name(make_set):
    folder = make_set()
    for name in ("photos", "photos:1.2.0"):
        source = open_source(config(folder, name), "train")
        assert (source.name, source.split, len(source)) == ("photos", "train", 10)
        assert source.class_names == ("cat", "dog")
        assert source.num_classes == 2
        seen = set()
        for i in range(10):
            image = decode_image(source[i].image, where="it")
            number = image.shape[0] - 3
            assert (image == 10 * number).all()
            assert source[i].label == number % 2
            seen.add(number)
        assert seen == set(range(10))


def test_split_syntax(make_set):
    folder = make_set()
    whole, first, rest = (
        open_source(config(folder), split) for split in ("train", "train[:30%]", "train[30%:]")
    )
    assert (len(first), len(rest)) == (3, 7)
    parts = [first[i] for i in range(3)] + [rest[i] for i in range(7)]
    assert parts == [whole[i] for i in range(10)]
    assert len(open_source(config(folder), "train+validation")) == 12


def test_sources_travel_to_other_processes(make_set):
    source = open_source(config(make_set()), "train")
    copy = pickle.loads(pickle.dumps(source))
    assert [copy[i] for i in range(10)] == [source[i] for i in range(10)]


def test_newest_version_is_read(make_set):
    folder = make_set()
    shutil.copytree(folder, folder.parent / "1.10.0")
    newest = folder.parent / "1.10.0" / "dataset_info.json"
    newest.write_text(newest.read_text().replace('"1.2.0"', '"1.10.0"'))
    assert folder_of(open_source(config(folder), "train")) == "1.10.0"
    assert folder_of(open_source(config(folder, "photos:1.2.0"), "train")) == "1.2.0"
    fails(r"'2.0.0' of photos is not prepared.*1\.10\.0, 1\.2\.0", config(folder, "photos:2.0.0"))


def test_configs(make_set):
    folder = make_set()
    for name in ("small", "large"):
        shutil.copytree(folder, folder.parent / name / "1.2.0")
    shutil.rmtree(folder)
    fails("several configs; .*tfds:photos/large, tfds:photos/small", config(folder))
    assert len(open_source(config(folder, "photos/small"), "train")) == 10
    shutil.rmtree(folder.parent / "large")
    assert len(open_source(config(folder), "train")) == 10


def test_keys_by_supervision_or_kind(make_set):
    example = {"photo": cut(5), "thumbnail": cut(2), "kind": 1, "id": "a"}
    features = {"photo": IMAGE, "thumbnail": IMAGE, "kind": LABEL, "id": tfds.features.Text()}
    splits = {"train": [example]}
    supervised = make_set("a", features=features, splits=splits, supervised_keys=("photo", "kind"))
    assert decode_image(open_source(config(supervised, "a"), "train")[0].image, where="").size == 75
    assert open_source(config(supervised, "a"), "train")[0].label == 1
    unsupervised = config(make_set("b", features=features, splits=splits), "b")
    fails(r"data.image_key: b has several \(photo, thumbnail\); choose one", unsupervised)
    for data in (config(supervised, "a"), unsupervised):
        named = dataclasses.replace(data, image_key="thumbnail", label_key="kind")
        assert decode_image(open_source(named, "train")[0].image, where="").size == 12
    fails(
        r"data.label_key: 'kin' is not of type ClassLabel in a; did you mean 'kind'\? "
        r"\(features: id: Text",
        dataclasses.replace(config(supervised, "a"), label_key="kin"),
    )
    fails(
        "data.image_key: 'id' is not of type Image in b",
        dataclasses.replace(unsupervised, image_key="id"),
    )
    del features["thumbnail"], example["thumbnail"]
    single = make_set("c", features=features, splits=splits)
    assert open_source(config(single, "c"), "train")[0].label == 1


def test_no_class_label(make_set):
    features = {"image": IMAGE, "label": tfds.features.Scalar(np.int64)}
    splits = {"train": [{"image": cut(3), "label": 4}]}
    folder = make_set(features=features, splits=splits, supervised_keys=("image", "label"))
    fails("photos is not an image classification set.*image: Image, label: Scalar", config(folder))


def test_label_outside_the_classes(make_set):
    folder = make_set(splits={"test": [{"image": cut(3), "label": -1}]})
    source = open_source(config(folder), "test")
    with pytest.raises(DataError, match="record 0 of photos 'test': label -1 is not one of the 2"):
        source[0]


def test_unknown_name(make_set):
    folder = make_set()
    fails("did you mean 'photos'", config(folder, "photo"))
    fails("neither prepared in .* nor known .*did you mean 'cifar10'", config(folder, "cifar1O"))


def test_not_prepared(tmp_path):
    data = DataConfig(source="tfds:cifar10", data_dir=str(tmp_path))
    fails(rf"not prepared \(looked in {tmp_path}/cifar10\)", data)
    fails(rf"jaxcls prepare tfds:cifar10 --data-dir {tmp_path}\n.*data.prepare", data)


def test_interrupted_preparation(tmp_path):
    (tmp_path / "cifar10" / "incomplete.ABCDEF_3.0.2").mkdir(parents=True)
    fails("not completely prepared", DataConfig(source="tfds:cifar10", data_dir=str(tmp_path)))


def test_prepared_as_tfrecord_only(make_set):
    folder = make_set()
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": "tfrecord"}))
    root = folder.parent.parent
    fails(rf"as tfrecord only(.|\n)*jaxcls prepare tfds:photos --data-dir {root}\n", config(folder))


@pytest.mark.parametrize("split", ["trian", "", "train[", "train[abc]", "train[:200]", "test"])
def test_unknown_split(make_set, split):
    fails(
        r"(split|data.*_split|--split): '.*photos.*splits: train 10, validation 2",
        config(make_set()),
        split,
    )


def test_nearest_split(make_set):
    fails("did you mean 'validation'", config(make_set()), "validaton[:1]")


def test_empty_split(make_set):
    fails("'train.:1%.' of photos has no examples", config(make_set()), "train[:1%]")


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("content", [None, "", "{", '{"x": 1}'])
def test_damaged_description(make_set, name, content):
    folder = make_set()
    (folder / name).unlink() if content is None else (folder / name).write_text(content)
    fails(rf"{folder} is not a complete TFDS folder.*prepare photos again", config(folder))


def test_a_template_of_names_that_is_damaged(make_set):
    folder = make_set()
    info = json.loads((folder / "dataset_info.json").read_text())
    info["splits"][0]["filepathTemplate"] = "{NOTHING}"
    (folder / "dataset_info.json").write_text(json.dumps(info))
    fails(rf"{folder} is not a complete TFDS folder", config(folder))


@pytest.mark.parametrize("place", ["image", "label", ""])
def test_a_set_cannot_name_code_to_import(make_set, place, monkeypatch, tmp_path):
    folder = make_set()
    (tmp_path / "evil_features.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    features = json.loads((folder / "features.json").read_text())
    of = features["featuresDict"]["features"][place] if place else features
    of["pythonClassName"] = "evil_features.Image"
    (folder / "features.json").write_text(json.dumps(features))
    fails(r"features.json names evil_features.Image, which is not a class of TFDS", config(folder))
    assert "evil_features" not in sys.modules


def test_class_names_that_would_move_a_terminal_go_by_codes(make_set):
    label = tfds.features.ClassLabel(names=["cat\x1b[2J", "dog"])
    source = open_source(config(make_set(features={"image": IMAGE, "label": label})), "train")
    assert source.class_names == (r"cat\x1b[2J", "dog")


def test_missing_file(make_set):
    folder = make_set()
    (file,) = folder.glob("*train*")
    file.unlink()
    fails(f"1 of 1 files of photos 'train' are missing in {folder}", config(folder))
    assert len(open_source(config(folder), "validation")) == 2


@pytest.mark.parametrize("share", [0, 0.3, 0.5, 0.9])
def test_truncated_file(make_set, share):
    folder = make_set()
    (file,) = folder.glob("*train*")
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    source = open_source(config(folder), "train")
    with pytest.raises(DataError, match=rf"record 3 of photos 'train': .*{folder}.*damaged"):
        source[3]


FAILURES = {  # what reading raises -> the reason in the message
    "a mount": (OSError(116, "Stale file handle"), "Stale file handle"),
    "a network": (TimeoutError("timed out"), "timed out"),
    "the reader": (
        RuntimeError("read() failed: Input/output error; Failed to read RiegeliPostscript"),
        "Input/output error",
    ),
    "a bucket": (RuntimeError("UNAVAILABLE: could not resolve the host"), "UNAVAILABLE"),
}


class Failing:
    """Records of which each fails."""

    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 10

    def __getitem__(self, index):
        raise self.error


@pytest.mark.parametrize("kind", FAILURES)
def test_a_disk_or_a_network_that_fails_is_not_damage(make_set, kind, monkeypatch):
    folder = make_set()
    error, reason = FAILURES[kind]
    source = dataclasses.replace(open_source(config(folder), "train"), records=Failing(error))
    with pytest.raises(DataError, match=rf"record 3 of photos 'train': .*{folder}") as reading:
        source[3]

    def fail(_):
        raise error

    messages = [str(reading.value)]
    if isinstance(error, OSError):
        monkeypatch.setattr(tfds_source, "open_builder", fail)
        messages.append(fails(f"data.source: {folder} cannot be read", config(folder)))
    for message in messages:
        assert reason in message
        assert "check the disk or the network" in message
        assert "delete" not in message


def test_a_description_that_cannot_be_read_is_not_damaged(make_set, monkeypatch):
    folder = make_set()

    def fail(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(tfds_source.epath.Path(folder)), "read_text", fail)
    message = fails(f"data.source: {folder} cannot be read .Permission denied.; ", config(folder))
    assert "delete" not in message


def test_a_shard_that_disappears_in_mid_run(make_set):
    folder = make_set()
    source = open_source(config(folder), "train")
    (file,) = folder.glob("*train*")
    file.rename(folder / "away")
    with pytest.raises(DataError, match=r"No such file or directory.*check the disk") as error:
        source[3]
    assert "delete" not in str(error.value)


@pytest.mark.parametrize("bug", [AttributeError("x"), AssertionError(), NameError("x")])
def test_a_bug_is_not_taken_for_damage(make_set, bug, monkeypatch):
    source = open_source(config(make_set()), "train")
    with pytest.raises(type(bug)):
        dataclasses.replace(source, records=Failing(bug))[3]

    def fail(*_, **__):
        raise bug

    monkeypatch.setattr(tfds_source, "choose_keys", fail)
    with pytest.raises(type(bug)):
        open_source(config(make_set("more"), "more"), "train")


def cut(size):
    return cv2.imencode(".png", np.zeros((size, size, 3), np.uint8))[1].tobytes()


def folder_of(source):
    assert isinstance(source, TfdsSource)
    return Path(source.folder).name


# Several labels

SEVERAL = {
    "list": tfds.features.Sequence(LABEL),
    "fixed": tfds.features.Sequence(LABEL, length=2),
}


@pytest.mark.parametrize("kind", SEVERAL)
def test_lists_of_labels(make_set, kind):
    labels = [[1, 0], [1, 1], [0, 0]] + ([[], [0]] if kind == "list" else [])
    features = {"image": IMAGE, "objects": SEVERAL[kind]}
    splits = {"train": [{"image": cut(3), "objects": numbers} for numbers in labels]}
    folder = make_set(features=features, splits=splits, supervised_keys=("image", "objects"))
    data = dataclasses.replace(config(folder), labels="multiple")
    source = open_source(data, "train")
    assert (source.multi_label, source.class_names) == (True, ("cat", "dog"))
    expected = [tuple(sorted(set(numbers))) for numbers in labels]
    assert sorted(source[index].label for index in range(len(labels))) == sorted(expected)
    message = r"data.labels: .* several labels \(objects: Sequence\(ClassLabel\)\); .* multiple"
    fails(message, config(folder))
    fails(message, dataclasses.replace(config(folder), label_key="objects"))


def test_one_label_of_each_image_may_be_read_as_several(make_set):
    folder = make_set()
    source = open_source(dataclasses.replace(config(folder), labels="multiple"), "train")
    assert {source[index].label for index in range(10)} == {(0,), (1,)}


def test_a_list_is_preferred_for_several_and_a_single_label_for_one(make_set):
    features = {"image": IMAGE, "objects": SEVERAL["list"], "scene": LABEL}
    splits = {"train": [{"image": cut(3), "objects": [0, 1], "scene": 1}]}
    data = config(make_set(features=features, splits=splits))
    assert open_source(data, "train")[0].label == 1
    several = dataclasses.replace(data, labels="multiple")
    assert open_source(several, "train")[0].label == (0, 1)
    assert open_source(dataclasses.replace(several, label_key="scene"), "train")[0].label == (1,)


def test_a_number_that_is_no_class_in_a_list(make_set):
    features = {"image": IMAGE, "objects": tfds.features.Sequence(LABEL)}
    folder = make_set(features=features, splits={"train": [{"image": cut(3), "objects": [0, -1]}]})
    source = open_source(dataclasses.replace(config(folder), labels="multiple"), "train")
    with pytest.raises(DataError, match="label -1 is not one of the 2"):
        source[0]
