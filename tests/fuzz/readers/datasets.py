"""Readers of data sets, and good data sets."""

import contextlib
import functools
import io
import json
import multiprocessing
import os
import shutil
import struct
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import mutations
from mutations import damage_bytes, damage_json

from readers.images import encoded
from readers.reader import Reader, assert_printable, json_bytes


def folder() -> Reader:
    """A folder of photos; its names are damaged, not its photos."""
    from jaxcls.config import DataConfig
    from jaxcls.data.folder import open_split

    with_splits = ["train/cat/1.png", "train/cat/2.png", "train/dog/1.png", "test/dog/x/3.jpg"]
    without = ["cat/1.png", "cat/2.png", "cat/=1+1.png", "dog/1.png", "dog/._1.png", "notes.txt"]

    def read(folder: Path) -> None:
        root = folder / "photos"
        names = (folder / "names").read_bytes().split(b"\n")
        for name in names[:30]:
            _touch(os.fsencode(root) + b"/" + name)
        source = open_split(str(root), DataConfig(source=f"folder:{root}"), "train")
        assert_printable(source.name, *source.class_names)
        for index in range(len(source)):
            assert_printable(source.describe(index))
            assert source[index].label in range(len(source.class_names))
            source.example_name(index)

    return Reader(
        samples=[{"names": "\n".join(names).encode()} for names in (with_splits, without)],
        damage={"names": damage_bytes},
        read=read,
    )


def _touch(path: bytes) -> None:
    """Makes an empty file of any name that can be one, inside of its folder."""
    parts = path.split(b"/")
    if b"\0" in path or b".." in parts or max(map(len, parts)) > 250 or len(path) > 3000:
        return
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        return


def folder_index() -> Reader:
    """The saved list of a folder's photos."""
    from jaxcls.config import DataConfig
    from jaxcls.data.folder import open_split
    from jaxcls.data.folder_index import _index_file

    listing = {
        "made": "2026-01-01T00:00:00+00:00",
        "folders": ["cat", "dog"],
        "files": ["cat/1.png", "cat/2.png", "cat/3.png", "dog/1.png"],
        "left_out": {"hidden names": {"count": 1, "example": "._1.png"}},
        "unreadable": {},
    }
    photos = {f"photos/{name}": b"" for name in listing["files"]}

    def read(folder: Path) -> None:
        root = folder / "photos"
        index = _index_file(root)
        index.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / "index.json", index)
        data = DataConfig(source=f"folder:{root}", folder_index="reuse")
        source = open_split(str(root), data, "train")
        assert_printable(source.name, *source.class_names)
        for index in range(len(source)):
            assert source[index].label in range(len(source.class_names))

    return Reader(
        samples=[{**photos, "index.json": json_bytes(listing)}],
        damage={"index.json": damage_json},
        read=read,
    )


def csv_file() -> Reader:
    """A list of image files, as CSV, JSON and JSON lines."""
    from jaxcls.config import DataConfig
    from jaxcls.data.source import classes_of
    from jaxcls.data.sources import open_source

    rows = [(f"{number}.png", ("cat", "dog", "cat;dog")[number % 3]) for number in range(6)]
    entries = [{"file": file, "label": label, "split": "train"} for file, label in rows]
    lists = {
        "list.csv": "file,label\n" + "".join(f'"{file}",{label}\n' for file, label in rows),
        "list.tsv": "file\tlabel\tsplit\n" + "0.png\tcat\ttrain\n1.png\tdog\ttest\n",
        "list.jsonl": "\n".join(map(json.dumps, entries)),
    }
    files = {name: text.encode() for name, text in lists.items()}
    files["list.json"] = json_bytes(entries)
    images = {f"{number}.png": b"" for number in range(6)}

    def read(folder: Path) -> None:
        (path,) = folder.glob("list.*")
        data = DataConfig(source=f"csv:{path}", labels="multiple")
        source = open_source(data, "train")
        assert_printable(source.name, *source.class_names)
        for label in source.all_labels():
            assert set(classes_of(label)) <= set(range(source.num_classes))

    damages = {"list.json": damage_json}
    return Reader(
        samples=[{**images, name: content} for name, content in files.items()],
        damage={name: damages.get(name, damage_bytes) for name in files},
        read=read,
    )


def shards() -> Reader:
    """A tar file of images and labels."""
    from jaxcls.config import DataConfig
    from jaxcls.data.source import classes_of
    from jaxcls.data.sources import open_source

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for number in range(3):
            name = f"{'long' * 30}/{number}" if number == 1 else str(number)
            for kind, content in (("png", b"image"), ("json", b'{"label": ["a", "b"]}')):
                member = tarfile.TarInfo(f"{name}.{kind}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))

    def read(folder: Path) -> None:
        data = DataConfig(source=f"webdataset:{folder}", labels="multiple")
        source = open_source(data, "train")
        assert_printable(source.name, *source.class_names)
        for index in range(len(source)):
            assert_printable(source.describe(index))
            assert set(classes_of(source[index].label)) <= set(range(source.num_classes))

    size = len(buffer.getvalue().rstrip(b"\0"))
    good = buffer.getvalue()[: -(-size // 512) * 512 + 1024]
    return Reader(samples=[{"train-0.tar": good}], damage={"train-0.tar": damage_bytes}, read=read)


def tfds() -> Reader:
    """A prepared set of TensorFlow Datasets."""
    from jaxcls.data.tfds import open_prepared

    def read(folder: Path) -> None:
        source = open_prepared(folder / "photos" / "1.2.0", name="photos", split="train")
        assert_printable(source.name, *source.class_names)
        for index in range(min(len(source), 20)):
            assert source[index].label in range(len(source.class_names))

    files = _tfds_files()
    damages = {".json": damage_json, ".txt": damage_bytes}
    return Reader(
        samples=[files],
        damage={name: damages.get(Path(name).suffix, mutations.damage_ends) for name in files},
        read=read,
        gigabytes=8,
    )


def tfrecord() -> Reader:
    """A set of TensorFlow Datasets that is converted from TFRecord."""
    from etils import epath

    from jaxcls.data.tfds_convert import convert_to_array_record

    content = [b"some example", b"another", b""]
    records = [struct.pack("<QI", len(each), 0) + each + bytes(4) for each in content]
    files = {
        name.replace("array_record", "tfrecord"): data.replace(b"array_record", b"tfrecord")
        for name, data in _tfds_files().items()
    }
    (shard,) = (name for name in files if ".tfrecord-" in name)
    files[shard] = b"".join(records)
    info = next(name for name in files if name.endswith("dataset_info.json"))

    def read(folder: Path) -> None:
        convert_to_array_record(epath.Path(folder / "photos" / "1.2.0"))

    return Reader(samples=[files], damage={shard: damage_bytes, info: damage_json}, read=read)


@functools.cache
def _tfds_files() -> dict[str, bytes]:
    """The files of a prepared set, as TensorFlow Datasets writes them.

    Another process prepares it, because the threads of its writer would be missing after a fork.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_prepare_set)


def _prepare_set() -> dict[str, bytes]:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import registered

    with registered.skip_registration():

        class Photos(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.2.0")
            url_infos = None

            def _info(self):
                features = {
                    "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=["cat", "dog"]),
                }
                return tfds.core.DatasetInfo(
                    builder=self, features=tfds.features.FeaturesDict(features)
                )

            def _split_generators(self, dl_manager):
                return {"train": self._generate_examples()}

            def _generate_examples(self):
                (image,) = encoded("PNG", "RGB")
                for number in range(4):
                    yield number, {"image": image, "label": number % 2}

    tfds.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(None):
        Photos(data_dir=folder).download_and_prepare(file_format="array_record")
        root = Path(folder)
        return {
            str(path.relative_to(root)): path.read_bytes()
            for path in sorted(root.rglob("*"))
            if path.is_file()
        }


READERS: dict[str, Callable[[], Reader]] = {
    "csv": csv_file,
    "folder": folder,
    "folder-index": folder_index,
    "shards-of-images": shards,
    "tfds": tfds,
    "tfrecord": tfrecord,
}
