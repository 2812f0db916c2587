"""The readers of jaxcls that are given damaged files, with good files to damage.

All good files are made here. The numbers in them are few, so that damage hits what describes them.
"""

import contextlib
import csv
import dataclasses
import functools
import hashlib
import io
import json
import multiprocessing
import os
import random
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import mutations
import numpy as np
import PIL.Image
import torch_files as tf
from mutations import Damage, damage_bytes, damage_json, mostly

from jaxcls.system.errors import UserError

cv2.setNumThreads(0)  # a child would wait for OpenCV's threads, which a fork does not copy

type Files = Mapping[str, bytes]

_RECORD = "checkpoints/20/_CHECKPOINT_METADATA"
MATRIX = np.random.default_rng(0).standard_normal((3, 2)).astype("f4")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reader:
    """A reader, and what it is given.

    Attributes:
      samples: good files, each with the other files that are read with it, by their paths.
      damage: the file of a sample that is damaged, and how (several: one of them is chosen).
      read: reads the files in a folder. What it raises beside `errors` is a failure, as is an
        AssertionError.
      errors: the errors that the reader documents.
      seconds: time of computing that it may take.
      gigabytes: memory that it may take (threads of C++ reserve much that they do not use).
      alone: whether jaxcls uses it in a process of its own, whose death it reports as an error.
    """

    samples: Sequence[Files]
    damage: Mapping[str, Damage]
    read: Callable[[Path], object]
    errors: tuple[type[Exception], ...] = (UserError,)
    seconds: float = 20
    gigabytes: int = 1
    alone: bool = False


# --- Weights -------------------------------------------------------------------------------------


def _weights(samples: Sequence[bytes], damage: Damage) -> Reader:
    from jaxcls.pretrained.files import read_weights

    def read(folder: Path) -> None:
        for name, array in read_weights(folder / "w").tensors.items():
            assert isinstance(name, str)
            assert isinstance(array, np.ndarray)

    return Reader(samples=[{"w": sample} for sample in samples], damage={"w": damage}, read=read)


def pth() -> Reader:
    """What `torch.save` writes: a zip archive."""
    contents = [_state_dict(), _checkpoint()]
    written = [_written(tf.write_zip, content) for content in contents]
    pickled, storages = tf.pickled(_checkpoint(), protocol=5)
    written.append(_written(tf.write_records, pickled, storages, order="big"))
    return _weights(written, mostly(mutations.damage_record))


def pth_legacy() -> Reader:
    """What `torch.save` wrote before version 1.6: pickles one after another."""
    return _weights(
        [_written(tf.write_stream, content) for content in (_state_dict(), _checkpoint())],
        damage_bytes,
    )


def hdf5() -> Reader:
    """Files of Keras, older and newer, and of other libraries."""
    kinds = [_hdf5(), _hdf5(libver="latest"), _hdf5(chunks=(2, 2)), _hdf5(track_order=True)]
    return _in_hdf5(kinds, damage_bytes, record=None)


def keras() -> Reader:
    """Keras archives, with an HDF5 file inside."""

    def archive(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("metadata.json", '{"keras_version": "3.0"}')
            file.writestr("config.json", '{"module": "keras"}')
            file.writestr("model.weights.h5", _hdf5())

    return _in_hdf5([_written(archive)], mostly(mutations.damage_record), "model.weights.h5")


def _in_hdf5(samples: Sequence[bytes], damage: Damage, record: str | None) -> Reader:
    from jaxcls.pretrained.hdf5_process import DAMAGED, read
    from jaxcls.pretrained.limits import RefusedError

    return Reader(
        samples=[{"w": sample} for sample in samples],
        damage={"w": damage},
        read=lambda folder: read(folder / "w", record),
        errors=(RefusedError, *DAMAGED),
        seconds=3,
        alone=True,
    )


def safetensors() -> Reader:
    from safetensors.numpy import save

    arrays = {
        "stem.weight": MATRIX,
        "half": MATRIX.astype("f2"),
        "count": np.array(7),
        "flags": np.array([True, False]),
        "none": np.empty((0, 3), "f4"),
    }
    return _weights(
        [save(arrays, {"format": "pt"}), save({"module.a": MATRIX})],
        mostly(mutations.damage_header),
    )


def shards() -> Reader:
    """A JSON list of weights files."""
    from safetensors.numpy import save

    from jaxcls.pretrained.files import read_weights

    places = {"a": "one.safetensors", "b": "two.safetensors", "c": ["one.safetensors"]}
    index = {"metadata": {"total_size": 48}, "weight_map": places}
    files = {
        "index.json": json.dumps(index).encode(),
        "one.safetensors": save({"a": MATRIX}),
        "two.safetensors": save({"b": MATRIX}),
    }
    return Reader(
        samples=[files],
        damage={"index.json": damage_json},
        read=lambda folder: read_weights(folder / "index.json"),
    )


def jaxcls_file() -> Reader:
    """Weights of jaxcls, with the network and its preprocessing as metadata."""
    from jaxcls.inference.open_weights import _config_of
    from jaxcls.models.weights_info import WeightsInfo
    from jaxcls.pretrained.files import read_weights
    from jaxcls.pretrained.jaxcls_file import stored_info, write_weights

    def info(**changes: Any) -> WeightsInfo:
        return WeightsInfo(
            model="efficientnetv2_b0", mean=(0.1, 0.2, 0.3), std=(1, 1, 1), image_size=64, **changes
        )

    def read(folder: Path) -> None:
        if found := stored_info(read_weights(folder / "w")):
            assert_shows(*(found.class_names or ()))
            _config_of("w", found)

    variables = {"params": {"classifier": {"bias": MATRIX[0], "kernel": MATRIX}}}
    infos = [info(class_names=("cat", "dög")), info(padding="symmetric", options={"width": 3})]
    files = [_written(write_weights, variables, each) for each in infos]
    return Reader(
        samples=[{"w": file} for file in files],
        damage={"w": mostly(mutations.damage_metadata, mutations.damage_header)},
        read=read,
    )


def class_names() -> Reader:
    """A user's file of class names, as text and as JSON."""
    from jaxcls.pretrained.class_names import read_class_names

    samples = {
        "names.txt": ["cat\ndog\nö\n", "n01440764\ttench\nn01443537\tgoldfish\n"],
        "names.json": [
            '["cat", "dog"]',
            '{"0": "cat", "1": "dog"}',
            '{"cat": 0, "dog": 1}',
            '{"0": ["n01440764", "tench"], "1": ["n01443537", "goldfish"]}',
            '{"id2label": {"0": "cat", "1": "dog"}}',
        ],
    }

    def read(folder: Path) -> None:
        (path,) = folder.iterdir()
        assert_shows(*read_class_names(path))

    return Reader(
        samples=[{name: text.encode()} for name, texts in samples.items() for text in texts],
        damage={"names.txt": damage_bytes, "names.json": damage_json},
        read=read,
    )


def _state_dict() -> dict[str, Any]:
    bits = (MATRIX.view("u4") >> 16).astype("u2")
    shared = tf.Stored("m", "float32", MATRIX.reshape(-1))
    return {"a": tf.tensor(shared, (2, 2), (1, 2), 1), "b": tf.whole("h", bits, "bfloat16")}


def _checkpoint() -> dict[str, Any]:
    parameter = tf.Called("torch._utils", "_rebuild_parameter", tf.whole("p", MATRIX), True, {})
    return {
        "epoch": 3,
        "args": {"lr": 0.1, "names": ("x", None, True)},
        "state_dict": {"module.a": parameter},
        "model_ema": {"module.a": tf.whole("1", MATRIX)},
    }


def _hdf5(*, chunks: tuple[int, int] | None = None, **options: Any) -> bytes:
    import h5py

    content = io.BytesIO()
    with h5py.File(content, "w", **options) as file:
        file.attrs["layer_names"] = ["stem", "top"]
        file.create_dataset("stem/kernel:0", data=MATRIX, chunks=chunks)
        half = file.create_dataset("top", data=np.array([[b"12", b"34"]], "V2"))
        half.attrs["dtype"] = "bfloat16"
    return content.getvalue()


# --- Runs ----------------------------------------------------------------------------------------


@functools.cache
def run_files() -> dict[str, bytes]:
    """The files of a run, as a training writes them."""
    from jaxcls.config import Config, DataConfig, ModelConfig
    from jaxcls.config.augment import Mix, RandAugment, RandomCropAndResize
    from jaxcls.pretrained.resolve import resolve
    from jaxcls.runs.directory import RunInfo

    config = resolve(
        Config(
            model=ModelConfig(name="efficientnetv2_b0"),
            data=DataConfig(source="digits", image_size=32, canvas_size=40),
            augment=(RandomCropAndResize(), RandAugment(), Mix()),
            num_steps=20,
        )
    )
    info = RunInfo(config=config, class_names=("cat", "dög"), data="100 examples").to_json()
    state = {"state": "failed", "num_steps": 20, "why": "the disk is full"}
    writer = {
        "host": "machine",
        "process": 2**22,
        "since": "2026-01-01 00:00:00+00:00",
        "ended": None,
        "renewed": 1.5,
        "machine": "machine 1 pid:[1]",
        "started": "17",
        "folder": 12,
        "token": "0123456789abcdef",
    }
    record = {
        "step": 20,
        "metric": 0.5,
        "metadata": info,
        "arrays": {"params/a": {"shape": [3, 2], "dtype": "float32", "digest": "0" * 16}},
    }
    checkpoint = {
        "item_handlers": "orbax.checkpoint._src.handlers",
        "metrics": {},
        "init_timestamp_nsecs": 1767225600000000000,
        "custom_metadata": {"record": record, "sha256": _checksum(record)},
    }
    return {
        "config.json": _json(info),
        "state.json": _json(state),
        "writer.1.json": _json(writer),
        "metrics.csv": _metrics().encode(),
        _RECORD: _json(checkpoint),
        "checkpoints/verified.json": _json({"steps": [10, 20]}),
    }


def _run(
    name: str,
    damage: Damage,
    read: Callable[[Path], object],
    *,
    beside: Sequence[str] = (),
    errors: tuple[type[Exception], ...] = (UserError,),
) -> Reader:
    """A reader of one file of a run, which needs the files `beside` it."""
    files = {file: run_files()[file] for file in (name, *beside)}
    return Reader(samples=[files], damage={name: damage}, read=read, errors=errors)


def run_config() -> Reader:
    """config.json of a run."""
    from jaxcls.config import encode
    from jaxcls.runs.directory import changes_of, config_of_record, recorded_info

    def read(run: Path) -> None:
        info = recorded_info(run)
        assert info is not None
        encode(config_of_record(run / "config.json"))
        changes_of(run, info, allow_changes=False)
        _table(run)

    return _run("config.json", damage_json, read, beside=["state.json", "metrics.csv"])


def run_state() -> Reader:
    """state.json of a run."""
    from jaxcls.runs.directory import recorded_state

    return _run("state.json", damage_json, recorded_state)


def run_writer() -> Reader:
    """writer.N.json of a run."""
    from jaxcls.runs.claim import last_writer, writer_status

    def read(run: Path) -> None:
        if writer := last_writer(run):
            str(writer)
            writer_status(writer, run)

    return _run("writer.1.json", damage_json, read)


def run_metrics() -> Reader:
    """metrics.csv of a run, read for a table or curves, and to append to it."""
    from jaxcls.inference.export import _evaluation
    from jaxcls.runs.reporter import _open_csv, metric_columns, read_metrics

    def read(run: Path) -> None:
        _evaluation(run, 20)
        try:
            metric_columns(read_metrics(run / "metrics.csv"))
        finally:
            _open_csv(run / "metrics.csv", 15, start_evaluated=True).close()

    return _run("metrics.csv", damage_bytes, read, errors=(UserError, ValueError, csv.Error))


def data_digests() -> Reader:
    """data_sha256.txt of a run, with a digest that fits what is damaged."""
    from jaxcls.runs.data_digests import (
        RECORD,
        describe_changes,
        digest_of_all,
        record_digests,
        recorded_digests,
    )

    digests = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("a", "b\n", "ö\\n")}

    def damage(draw: random.Random, data: bytes) -> bytes:
        header, _, lines = data.partition(b"\n")
        lines = damage_bytes(draw, lines)
        return header[:-64] + hashlib.sha256(lines).hexdigest().encode() + b"\n" + lines

    def read(run: Path) -> None:
        found = recorded_digests(run)
        assert found is not None
        digest_of_all(found)
        assert_shows(*describe_changes(digests, found))

    with tempfile.TemporaryDirectory() as folder:
        record_digests(Path(folder), digests)
        sample = {RECORD: Path(folder, RECORD).read_bytes()}
    return Reader(samples=[sample], damage={RECORD: mostly(damage)}, read=read)


def checkpoint_index() -> Reader:
    """verified.json of a run's checkpoints."""
    from jaxcls.runs.restore import read_run_info

    return _run("checkpoints/verified.json", damage_json, read_run_info, beside=[_RECORD])


def checkpoint_record() -> Reader:
    """The record of a checkpoint, also with a checksum that fits what is damaged."""
    from jaxcls.runs.restore import read_run_info

    def damage(draw: random.Random, data: bytes) -> bytes:
        whole = json.loads(data)
        content = whole["custom_metadata"]
        try:
            record = json.loads(mutations.dump_json(draw, content["record"]))
            whole["custom_metadata"] = {"record": record, "sha256": _checksum(record)}
        except (ValueError, RecursionError):
            return damage_json(draw, data)
        return _json(whole)

    def read(run: Path) -> None:
        try:
            assert_shows(*read_run_info(run).class_names)
        finally:
            read_run_info(run, step="best")

    return _run(_RECORD, mostly(damage, damage_json), read)


def checkpoint_arrays() -> Reader:
    """The arrays of a checkpoint, whose files have checksums that fit what is damaged."""
    import jax

    from jaxcls.runs.checkpoint import Checkpoints

    template = {name: jax.ShapeDtypeStruct(MATRIX.shape, "float32") for name in ("a", "b")}

    def read(run: Path) -> None:
        with Checkpoints(run / "checkpoints") as checkpoints:
            checkpoints.restore(template)

    with multiprocessing.get_context("spawn").Pool(1) as pool:
        samples = pool.apply(_save_checkpoints)
    damage: dict[str, Damage] = {}
    for name in {name for files in samples for name in files}:
        if "ocdbt" in name or "/d/" in name:
            damage[name] = mostly(mutations.damage_checked)
        elif name.endswith(("_METADATA", "_sharding", "process_0")):
            damage[name] = damage_json
    return Reader(samples=samples, damage=damage, read=read, gigabytes=8)


def _save_checkpoints() -> list[dict[str, bytes]]:
    """A checkpoint, and the same one without compression of the shapes and values."""
    import jax.numpy as jnp
    import tensorstore

    from jaxcls.runs.checkpoint import Checkpoints

    def store(folder: Path, **options: Any) -> tensorstore.KvStore:
        place = {"driver": "ocdbt", "base": f"file://{folder}/"}
        return tensorstore.KvStore.open(place | options).result()

    def files(run: Path) -> dict[str, bytes]:
        paths = [path for path in sorted(run.rglob("*")) if path.is_file()]
        return {str(path.relative_to(run)): path.read_bytes() for path in paths}

    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        state = run / "checkpoints" / "20" / "state"
        with Checkpoints(run / "checkpoints") as checkpoints:
            checkpoints.save(20, {"a": jnp.asarray(MATRIX), "b": jnp.asarray(MATRIX)}, metadata={})
        saved, packed = files(run), store(state)
        content = {key: packed.read(key).result().value for key in packed.list().result()}
        shutil.rmtree(state / "d")
        (state / "manifest.ocdbt").unlink()
        plain = store(state, config={"compression": None})
        for key, value in content.items():
            plain.write(key, value).result()
        return [saved, files(run)]


def _table(run: Path) -> None:
    from jaxcls.commands.runs import _describe, summarize
    from jaxcls.config.diff import differences

    summaries = [summarize(run, name="a"), summarize(run, name="b")]
    assert_shows(_describe(summaries, differences([each.config for each in summaries])))


def _checksum(record: Any) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _metrics() -> str:
    from jaxcls.runs.reporter import COLUMNS

    rows = [",".join(COLUMNS)]
    for step in (10, 20):
        values = [str(step), "0.5", *("0.25" for _ in COLUMNS[2:])]
        rows.append(",".join(values))
    return "\n".join(rows) + "\n"


# --- Images --------------------------------------------------------------------------------------


def _images(samples: Sequence[bytes], damage: Damage = damage_bytes) -> Reader:
    from jaxcls.data.decode import decode_image, image_header

    def read(folder: Path) -> None:
        data = (folder / "image").read_bytes()
        for longest in (None, 8):
            image = decode_image(data, where="it", longest=longest)
            assert image.dtype == np.uint8
            assert image.ndim == 3
            assert image.shape[2] == 3
            assert image.size
        image_header(data)

    return Reader(
        samples=[{"image": sample} for sample in samples], damage={"image": damage}, read=read
    )


def jpeg() -> Reader:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    return _images(
        [
            *_encoded("JPEG", "RGB", "L", "CMYK"),
            *_encoded("JPEG", "RGB", progressive=True),
            *_encoded("JPEG", "RGB", exif=exif.tobytes(), subsampling=0),
            *_encoded("JPEG", "RGB", xmp=_XMP, restart_marker_rows=1),
            _encoded("JPEG", "CMYK")[0].replace(b"Adobe\0d\0\0\0\0\0", b"Adobe\0d\0\0\0\0\2"),
        ]
    )


def png() -> Reader:
    deep = (_photo().astype(np.uint16) * 257)[:, :, ::-1]
    return _images(
        [
            *_encoded("PNG", "RGB", "L", "1", "P", "RGBA", "LA", "I;16"),
            *_encoded("PNG", "P", transparency=3),
            *_encoded("PNG", "RGB", transparency=(1, 2, 3)),
            cv2.imencode(".png", deep)[1].tobytes(),
            *_encoded("PNG", "RGB", exif=b"Exif\0\0" + _EXIF, pnginfo=_png_texts()),
        ],
        mostly(mutations.damage_chunk),
    )


def bmp() -> Reader:
    return _images([*_encoded("BMP", "RGB", "L", "1", "P", "RGBA"), *_other_bmps()])


def webp() -> Reader:
    return _images(
        [
            *_encoded("WEBP", "RGB", "RGBA"),
            *_encoded("WEBP", "RGBA", lossless=True),
            *_encoded("WEBP", "RGB", exif=b"Exif\0\0" + _EXIF, xmp=_XMP),
            _animated("WEBP"),
        ]
    )


def gif() -> Reader:
    return _images(
        [*_encoded("GIF", "P", "L", "1"), *_encoded("GIF", "P", transparency=3), _animated("GIF")]
    )


def tiff() -> Reader:
    return _images(
        [
            *_encoded("TIFF", "RGB", "L", "1", "P", "RGBA", "CMYK", "I;16"),
            *_encoded("TIFF", "RGB", compression="tiff_lzw"),
            *_encoded("TIFF", "RGB", compression="tiff_adobe_deflate"),
            *_encoded("TIFF", "RGB", compression="jpeg"),
            *_encoded("TIFF", "L", compression="packbits"),
            *_encoded("TIFF", "1", compression="group4"),
        ]
    )


def avif() -> Reader:
    return _images([*_encoded("AVIF", "RGB", "RGBA"), *_encoded("AVIF", "RGB", exif=_EXIF)])


_XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description '
    b'xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></x:xmpmeta>'
)
# A TIFF header and one directory with the orientation 6.
_EXIF = b"II*\0\x08\0\0\0" + struct.pack("<HHHLHHL", 1, 0x0112, 3, 1, 6, 0, 0)


def _photo(height: int = 12, width: int = 10) -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 1.0)


def _encoded(kind: str, *modes: str, **options: Any) -> list[bytes]:
    """The photo in each of Pillow's modes."""
    encoded = []
    for mode in modes:
        image = PIL.Image.fromarray(_photo())
        file = io.BytesIO()
        image = image.convert("L").convert("I;16") if mode == "I;16" else image.convert(mode)
        image.save(file, kind, **options)
        encoded.append(file.getvalue())
    return encoded


def _animated(kind: str) -> bytes:
    frames = [PIL.Image.fromarray(np.roll(_photo(), 3 * turn, 0)) for turn in range(3)]
    file = io.BytesIO()
    frames[0].save(file, kind, save_all=True, append_images=frames[1:], duration=40)
    return file.getvalue()


def _png_texts() -> Any:
    import PIL.PngImagePlugin

    texts = PIL.PngImagePlugin.PngInfo()
    texts.add_itxt("XML:com.adobe.xmp", _XMP.decode(), zip=True)
    digits = (b"Exif\0\0" + _EXIF).hex()
    texts.add_text("Raw profile type exif", f"\nexif\n{len(digits) // 2:8}\n{digits}\n", zip=True)
    return texts


def _other_bmps() -> Iterator[bytes]:
    """Kinds that Pillow does not write: masks of bits, run lengths, OS/2's header."""

    def bmp(bits: int, compression: int, rest: bytes, pixels: bytes) -> bytes:
        header = struct.pack("<IiiHHIIiiII", 40, 4, 4, 1, bits, compression, 0, 0, 0, 0, 0)
        offset = 14 + len(header) + len(rest)
        start = struct.pack("<2sIHHI", b"BM", offset + len(pixels), 0, 0, offset)
        return start + header + rest + pixels

    palette = bytes(range(64)) * 16
    yield bmp(16, 3, struct.pack("<III", 0xF800, 0x07E0, 0x001F), bytes(range(32)))
    yield bmp(32, 6, struct.pack("<IIII", 0xFF, 0xFF00, 0xFF0000, 0xFF << 24), bytes(range(64)))
    yield bmp(8, 1, palette, b"\4\1\0\0\0\3\1\2\3\0\0\0\0\2\1\0\2\7\0\0\4\5\0\1")
    yield bmp(4, 2, palette[:64], b"\4\x12\0\0\0\4\x12\x34\0\0\0\2\1\1\2\x55\0\1")
    yield (
        struct.pack("<2sIHHI", b"BM", 0, 0, 0, 26)
        + struct.pack("<IHHHH", 12, 4, 4, 1, 24)
        + bytes(48)
    )


# --- Data sets -----------------------------------------------------------------------------------


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
        assert_shows(source.name, *source.class_names)
        for index in range(len(source)):
            assert_shows(source.describe(index))
            assert source[index].label < len(source.class_names)
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
        assert_shows(source.name, *source.class_names)
        for index in range(len(source)):
            assert source[index].label < len(source.class_names)

    return Reader(
        samples=[{**photos, "index.json": _json(listing)}],
        damage={"index.json": damage_json},
        read=read,
    )


def tfds() -> Reader:
    """A prepared set of TensorFlow Datasets."""
    from jaxcls.data.tfds import open_prepared

    def read(folder: Path) -> None:
        source = open_prepared(folder / "photos" / "1.2.0", name="photos", split="train")
        assert_shows(source.name, *source.class_names)
        for index in range(min(len(source), 20)):
            assert source[index].label < len(source.class_names)

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
                (image,) = _encoded("PNG", "RGB")
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


# --- Helpers -------------------------------------------------------------------------------------


class UnprintableError(AssertionError):
    """A text that would do something to a terminal."""


def assert_shows(*texts: str) -> None:
    """Checks that texts do nothing to a terminal."""
    for text in texts:
        if any(c not in "\n\t" and (ord(c) < 32 or 127 <= ord(c) < 160) for c in text):
            raise UnprintableError(repr(text))


def write_files(folder: Path, files: Files) -> None:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _written(write: Callable[..., object], *arguments: Any, **options: Any) -> bytes:
    """What a function writes to a path."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder, "w"), *arguments, **options)
        return Path(folder, "w").read_bytes()


def _json(values: Any) -> bytes:
    return json.dumps(values, indent=2).encode()


READERS: dict[str, Callable[[], Reader]] = {
    "pth": pth,
    "pth-legacy": pth_legacy,
    "hdf5": hdf5,
    "keras": keras,
    "safetensors": safetensors,
    "shards": shards,
    "jaxcls": jaxcls_file,
    "class-names": class_names,
    "config.json": run_config,
    "state.json": run_state,
    "writer.json": run_writer,
    "metrics.csv": run_metrics,
    "data_sha256.txt": data_digests,
    "verified.json": checkpoint_index,
    "checkpoint": checkpoint_record,
    "checkpoint-arrays": checkpoint_arrays,
    "jpeg": jpeg,
    "png": png,
    "bmp": bmp,
    "webp": webp,
    "gif": gif,
    "tiff": tiff,
    "avif": avif,
    "folder": folder,
    "folder-index": folder_index,
    "tfds": tfds,
    "tfrecord": tfrecord,
}
