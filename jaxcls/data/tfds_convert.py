"""Converts the TFRecord files of a prepared TFDS set to ArrayRecord, without TensorFlow.

Both hold the same serialized examples, but only ArrayRecord files have random access.
"""

import json
import os
import struct
from collections.abc import Iterator

from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath

from jaxcls.data.full_disk import disk_is_full
from jaxcls.data.tfds_folders import open_builder
from jaxcls.system.errors import DataError, one_line
from jaxcls.system.json_text import parse_json
from jaxcls.system.whole_files import replacing, write_whole


def convert_to_array_record(folder: epath.Path) -> None:
    """Converts a set that has TFRecord files only; leaves any other set unchanged.

    The new files are written beside the old ones. The description, which names the formats, is
    replaced last and in one step.

    Args:
      folder: the folder of the prepared set, with dataset_info.json.

    Raises:
      DataError: a file is damaged or missing, or cannot be written.
    """
    description = folder / "dataset_info.json"
    try:
        info = parse_json(description.read_text())
        others = info.get("alternativeFileFormats", [])
        if info["fileFormat"] != "tfrecord" or "array_record" in others:
            return
        for split in open_builder(folder).info.splits.values():
            for path in split.filepaths:
                _convert_file(path)
        info |= {"fileFormat": "array_record", "alternativeFileFormats": [*others, "tfrecord"]}
        write_whole(description, json.dumps(info, indent=2))
    except Exception as error:  # TFDS, protobuf and ArrayRecord raise many types
        if disk_is_full(error):
            raise DataError(
                f"data.source: {folder} cannot be converted to ArrayRecord: the disk is full; free "
                f"some space, then do the same again"
            ) from error
        raise DataError(
            f"data.source: {folder} cannot be converted to ArrayRecord ({one_line(error)}); fix "
            f"that, or delete the folder and prepare it again"
        ) from error


def _convert_file(path: epath.Path) -> None:
    final = path.with_name(path.name.replace(".tfrecord-", ".array_record-"))
    with replacing(final) as temporary:
        writer = ArrayRecordWriter(os.fspath(temporary), "group_size:1")  # as TFDS writes them
        try:
            for example in _read_tfrecord(path):
                writer.write(example)
        finally:
            writer.close()


def _read_tfrecord(path: epath.Path) -> Iterator[bytes]:
    """Yields the records of a TFRecord file: length (uint64), checksum, content, checksum."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        while header := file.read(12):
            length = struct.unpack("<Q", header[:8])[0] if len(header) == 12 else 0
            if len(header) < 12 or length + 4 > size - file.tell():
                raise ValueError(f"{path} is cut off")
            yield file.read(length + 4)[:-4]
