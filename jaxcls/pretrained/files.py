"""Reads weights files of every format into named arrays; runs nothing, and checks everything."""

import dataclasses
import functools
import string
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import safetensors

from jaxcls.config.decoding import nearest
from jaxcls.models.weights_info import WeightsError
from jaxcls.pretrained import hdf5, pth
from jaxcls.pretrained.limits import (
    MAX_BYTES,
    RefusedError,
    excerpt,
    single_precision,
    widen_bfloat16,
)
from jaxcls.pretrained.wrappers import unwrap
from jaxcls.system.json_text import parse_json
from jaxcls.system.paths import local_path

_KERAS_WEIGHTS = "model.weights.h5"
MAX_HEADER = 32 * 2**20  # bytes of a safetensors header: 300 000 tensors

_SAFETENSORS = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "u1",
    "BOOL": "u1",
}


@dataclasses.dataclass(frozen=True)
class WeightsFile:
    """The content of a file.

    Attributes:
      path: the file.
      tensors: the network's tensors by their names in the file, without a prefix that all have;
        floating-point ones are converted to float32.
      metadata: the metadata of a safetensors file; empty for other formats.
      notes: sentences on how the tensors were found.
      outside: tensors that do not belong to the network, by their names in the file.
    """

    path: Path
    tensors: dict[str, np.ndarray]
    metadata: dict[str, str]
    notes: tuple[str, ...] = ()
    outside: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


def read_weights(path: str | Path, *, ema: bool = True) -> WeightsFile:
    """Reads a safetensors, HDF5, Keras or PyTorch file; the format is found from its first bytes.

    Weights in several files, as Keras and Hugging Face's libraries write them, are read with the
    JSON file that lists them (`.weights.json`, `.index.json`).

    Args:
      path: a file with any suffix.
      ema: if the file has both, whether to take the moving averages or the weights themselves. A
        file with moving averages only is refused if this is False.

    Raises:
      WeightsError: there is no such file, or it has another format, is damaged, cut off or
        dangerous, or has no tensors.
    """
    path = local_path(path)
    try:
        file = _reader(path, ema=ema)(path)
        if not file.tensors:
            raise WeightsError(f"{path}: contains no tensors")
        tensors, outside, notes = unwrap(file.tensors, ema=ema)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error})") from None
    except MemoryError:
        raise WeightsError(f"{path}: does not fit into memory") from None
    except RefusedError as error:
        raise WeightsError(f"{path}: {error}") from None
    return dataclasses.replace(file, tensors=tensors, outside=outside, notes=file.notes + notes)


def _reader(path: Path, *, ema: bool, within: Path | None = None) -> Callable[[Path], WeightsFile]:
    """Returns the function that reads this kind of file; `within` is the list that names it."""
    if not path.exists():
        there = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise WeightsError(f"{path}: no such file{nearest(path.name, there)}")
    if path.is_dir():
        raise WeightsError(f"{path}: is a folder; name the weights file in it")
    if not path.is_file():
        raise WeightsError(f"{path}: is not a regular file")
    size = path.stat().st_size
    if size == 0:
        raise WeightsError(f"{path}: is empty; download it again")
    if size > MAX_BYTES:
        raise WeightsError(f"{path}: has {size} bytes; at most {MAX_BYTES} are allowed")
    with path.open("rb") as file:
        start = file.read(1024)
    if start.startswith(b"\x89HDF\r\n\x1a\n"):
        return _read_hdf5
    if start.startswith(b"PK\x03\x04"):
        if _KERAS_WEIGHTS in _records(path):
            return _read_keras
        return lambda path: _read_torch(path, functools.partial(pth.read_zip, ema=ema))
    if (shards := _shards(path, start)) is not None:
        if within is not None:
            raise WeightsError(f"{path}: is another list of files, named in {within}")
        return lambda path: _read_shards(path, shards, ema=ema)
    if text := _text(start):
        raise WeightsError(f"{path}: {text}")
    if start[8:9] == b"{":
        return _read_safetensors  # checked before PyTorch's: the first byte can be 0x80 too
    if start[0] == 0x80:
        return lambda path: _read_torch(path, functools.partial(pth.read_stream, ema=ema))
    if start[257:262] == b"ustar":
        raise WeightsError(
            f"{path}: is a tar archive; unpack it and name the weights file in it. (PyTorch before "
            "0.1.10 wrote such files: load and save it again with a newer one)"
        )
    raise WeightsError(
        f"{path}: begins with {start[:8].hex(' ')}, which is neither safetensors, HDF5 nor a "
        "PyTorch file; if it was downloaded, download it again"
    )


def _text(start: bytes) -> str | None:
    """Describes a text file that was named as weights, by its first bytes; None if it is binary."""
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the file itself; run `git lfs pull`"
    text = start.decode("utf-8", errors="replace").rstrip("\N{REPLACEMENT CHARACTER}")
    if not all(character in string.whitespace or character.isprintable() for character in text):
        return None
    if "\N{REPLACEMENT CHARACTER}" in text or not text.strip():
        return None
    if text.lstrip().lower().startswith(("<!doctype html", "<html")):
        return "is a web page, such as an error or login page, saved as weights; download it again"
    return f"is a text file, not weights; it begins with {text[:60]!r}"


def _read_hdf5(path: Path) -> WeightsFile:
    return WeightsFile(path, hdf5.read(path), {})


def _records(path: Path) -> list[str]:
    """Returns the names in a zip archive; none if it is damaged, which its reader reports."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error):
        return []


def _read_keras(path: Path) -> WeightsFile:
    """Reads the weights in a Keras archive (`.keras`), which stores them as an HDF5 file."""
    return WeightsFile(path, hdf5.read(path, _KERAS_WEIGHTS), {})


def _shards(path: Path, start: bytes) -> list[Path] | None:
    """Returns the files that a JSON list of shards names, in order; None for any other file."""
    if not start.lstrip().startswith(b"{") or path.stat().st_size > MAX_HEADER:
        return None
    try:
        places = parse_json(path.read_bytes())["weight_map"].values()
    except (ValueError, KeyError, AttributeError, TypeError):
        return None
    names = [name for place in places for name in (place if isinstance(place, list) else [place])]
    if wrong := [name for name in names if not _is_file_name(name)]:
        raise WeightsError(f"{path}: lists {excerpt(wrong[0])}, which is not a file beside it")
    shards = [path.with_name(name) for name in dict.fromkeys(names)]
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        raise WeightsError(
            f"{path}: lists {len(shards)} files of weights, but {len(missing)} of them "
            f"{'is' if len(missing) == 1 else 'are'} not beside it, such as "
            f"{excerpt(missing[0])}; put all of them into {path.parent}"
        )
    return shards


def _is_file_name(name: object) -> bool:
    return isinstance(name, str) and name != "" and Path(name).name == name


def _read_shards(path: Path, shards: list[Path], *, ema: bool) -> WeightsFile:
    """Reads the tensors of all files in a list."""
    tensors: dict[str, np.ndarray] = {}
    notes: dict[str, None] = {}
    for shard in shards:
        part = _reader(shard, ema=ema, within=path)(shard)
        if twice := tensors.keys() & part.tensors.keys():
            raise WeightsError(
                f"{shard}: has {excerpt(min(twice))}, which another file of {path.name} has too"
            )
        tensors |= part.tensors
        notes |= dict.fromkeys(part.notes)
    return WeightsFile(path, tensors, {}, (f"read from {len(shards)} files", *notes))


def _read_torch(
    path: Path, read: Callable[[Path], tuple[dict[str, np.ndarray], tuple[str, ...]]]
) -> WeightsFile:
    tensors, notes = read(path)
    return WeightsFile(path, tensors, {}, notes)


def _read_safetensors(path: Path) -> WeightsFile:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    if length > MAX_HEADER:
        raise WeightsError(
            f"{path}: its safetensors header has {length} bytes, but at most {MAX_HEADER} are "
            "allowed; it is damaged or of another format: download it again"
        )
    if length > len(data) - 8:
        raise WeightsError(
            f"{path}: is cut off: its header has {length} bytes, the file {len(data)}; "
            "download it again"
        )
    try:
        entries = safetensors.deserialize(data)  # checks sizes, offsets and overlaps
        metadata = parse_json(data[8 : 8 + length]).get("__metadata__") or {}
    except (safetensors.SafetensorError, ValueError) as error:
        raise WeightsError(
            f"{path}: is damaged or cut off ({excerpt(error, 200)}); download it again"
        ) from None
    tensors = {}
    for name, entry in entries:
        tensors[name] = _safetensors_array(
            path, name, entry["dtype"], entry["shape"], entry["data"]
        )
    return WeightsFile(path, tensors, metadata)


def _safetensors_array(
    path: Path, name: str, kind: str, shape: list[int], data: bytes
) -> np.ndarray:
    if kind not in _SAFETENSORS:
        raise WeightsError(
            f"{path}: tensor {excerpt(name)} is of type {kind}, which is not supported; "
            "save it as float32"
        )
    numbers = np.frombuffer(data, _SAFETENSORS[kind])
    if kind == "BF16":
        numbers = widen_bfloat16(numbers)
    elif kind == "BOOL":
        numbers = numbers != 0
    try:
        return single_precision(numbers.reshape(shape).copy())
    except ValueError:
        raise WeightsError(f"{path}: tensor {excerpt(name)} has an impossible shape") from None
