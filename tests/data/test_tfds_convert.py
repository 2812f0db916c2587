import json
import struct

import pytest

from jaxcls.config import DataConfig
from jaxcls.data.sources import open_source, prepare_source
from jaxcls.system.errors import DataError


@pytest.fixture
def tfrecord(make_set):
    """Makes a set that is there as TFRecord only: (its folder, its records)."""
    folder = make_set()
    from array_record.python.array_record_module import ArrayRecordReader

    for path in folder.glob("*.array_record-*"):
        reader = ArrayRecordReader(str(path))
        framed = b"".join(
            struct.pack("<QI", len(record), 0) + record + struct.pack("<I", 0)
            for record in reader.read_all()
        )
        reader.close()
        path.with_name(path.name.replace("array_record", "tfrecord")).write_bytes(framed)
        path.unlink()
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    return folder


def config(folder, **fields):
    return DataConfig(source="tfds:photos", data_dir=str(folder.parent.parent), **fields)


def test_a_set_of_tfrecord_files_is_converted_once(tfrecord):
    with pytest.raises(DataError, match="as tfrecord only"):
        open_source(config(tfrecord), "train")
    root = str(tfrecord.parent.parent)
    for _ in range(2):
        assert "train 10, validation 2" in prepare_source("tfds:photos", root)
    source = open_source(config(tfrecord), "train[:4]+validation")
    assert [source[index].label in (0, 1) for index in range(6)] == [True] * 6
    assert len(list(tfrecord.glob("*.tfrecord-*"))) == len(list(tfrecord.glob("*.array_record-*")))
    assert not list(tfrecord.glob(".*"))


def test_training_converts_when_asked(tfrecord):
    assert len(open_source(config(tfrecord, prepare=True), "train")) == 10


@pytest.mark.parametrize("content", ["null", "[]", '{"fileFormat": "tfrecord", "splits": 3}'])
def test_a_damaged_description(tfrecord, content):
    (tfrecord / "dataset_info.json").write_text(content)
    with pytest.raises(DataError, match=f"{tfrecord} cannot be converted to ArrayRecord"):
        open_source(config(tfrecord, prepare=True), "train")


@pytest.mark.parametrize("left", [5, 40, -1, b"\xff" * 8, b"\0\0\0\0\0\0\0\x40"])
def test_a_file_that_is_cut_short(tfrecord, left):
    (path,) = tfrecord.glob("*train*")
    data = path.read_bytes()
    path.write_bytes(left + data[8:] if isinstance(left, bytes) else data[:left])
    with pytest.raises(
        DataError, match=r"cannot be converted to ArrayRecord \(.*is cut off\); fix"
    ):
        open_source(config(tfrecord, prepare=True), "train")
    with pytest.raises(DataError, match="as tfrecord only"):
        open_source(config(tfrecord), "train")


def test_a_disk_that_fills_up(tfrecord, monkeypatch):
    (path,) = tfrecord.glob("*train*")
    name = path.name.replace("tfrecord", "array_record")
    monkeypatch.setattr("secrets.token_hex", lambda _: "1234")
    (tfrecord / f".{name}.1234.jaxcls-tmp").symlink_to("/dev/full")
    with pytest.raises(DataError, match=f"{tfrecord} cannot be .*: the disk is full; free some"):
        open_source(config(tfrecord, prepare=True), "train")
    assert not list(tfrecord.glob(".*"))
    assert len(open_source(config(tfrecord, prepare=True), "train")) == 10
