"""Weights files of every format to named arrays. Nothing in a file is run or believed unchecked."""

import dataclasses
import json
import string
from collections.abc import Callable
from pathlib import Path

import numpy as np
import safetensors

from jaxcls.decoding import nearest
from jaxcls.paths import local_path
from jaxcls.pretrained import pth
from jaxcls.pretrained.info import WeightsError
from jaxcls.pretrained.limits import MAX_BYTES, printable, single_precision, widen_bfloat16

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
    """What a file holds.

    Attributes:
      path: the file.
      tensors: by the file's own names; floating-point ones are float32 whatever the file has.
      metadata: what a safetensors file says beside; other formats have none.
      notes: sentences on what was done to find the tensors in a PyTorch file.
    """

    path: Path
    tensors: dict[str, np.ndarray]
    metadata: dict[str, str]
    notes: tuple[str, ...] = ()


def read_weights(path: str | Path) -> WeightsFile:
    """Reads safetensors, HDF5 (Keras), or PyTorch's zip archives and streams, told by their bytes.

    Args:
      path: a file with any suffix.

    Raises:
      WeightsError: there is no such file, or it is none of these, damaged, cut short, hostile, or
        has no tensors.
    """
    path = local_path(path)
    try:
        file = _reader(path)(path)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error})") from None
    except MemoryError:
        raise WeightsError(f"{path}: does not fit into memory") from None
    if not file.tensors:
        raise WeightsError(f"{path}: holds no tensors")
    return file


def _reader(path: Path) -> Callable[[Path], WeightsFile]:
    """The function that reads this kind of file."""
    if not path.exists():
        there = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise WeightsError(f"{path}: no such file{nearest(path.name, there)}")
    if path.is_dir():
        raise WeightsError(f"{path}: is a folder; name the weights file in it")
    if not path.is_file():
        raise WeightsError(f"{path}: is no regular file")
    size = path.stat().st_size
    if size == 0:
        raise WeightsError(f"{path}: is empty; fetch it again")
    if size > MAX_BYTES:
        raise WeightsError(f"{path}: has {size} bytes; at most {MAX_BYTES} are read")
    with path.open("rb") as file:
        start = file.read(1024)
    if start.startswith(b"\x89HDF\r\n\x1a\n"):
        return _read_hdf5
    if start.startswith(b"PK\x03\x04"):
        return lambda path: _read_torch(path, pth.read_zip)
    if text := _text(start):
        raise WeightsError(f"{path}: {text}")
    if start[8:9] == b"{":
        return _read_safetensors  # before PyTorch's: its first byte can be 0x80, too
    if start[0] == 0x80:
        return lambda path: _read_torch(path, pth.read_stream)
    if start[257:262] == b"ustar":
        raise WeightsError(
            f"{path}: is a tar archive; unpack it and name the weights file in it. (PyTorch before "
            "0.1.10 wrote such files: load and save it again with a newer one)"
        )
    raise WeightsError(
        f"{path}: begins with {start[:8].hex(' ')}, which is neither safetensors, HDF5 nor a file "
        "of PyTorch's; if it was fetched, fetch it again"
    )


def _text(start: bytes) -> str | None:
    """What a text file is that somebody took for weights, from its first bytes."""
    if start.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS, not the file it stands for; run `git lfs pull`"
    text = start.decode("utf-8", errors="replace").rstrip("\N{REPLACEMENT CHARACTER}")
    if not all(character in string.whitespace or character.isprintable() for character in text):
        return None
    if "\N{REPLACEMENT CHARACTER}" in text or not text.strip():
        return None
    if text.lstrip().lower().startswith(("<!doctype html", "<html")):
        return "is a web page, such as an error or login page, saved as weights; fetch it again"
    return f"is a text file, not weights; it begins with {text[:60]!r}"


def _read_hdf5(path: Path) -> WeightsFile:
    from jaxcls.pretrained import hdf5  # h5py loads slowly, and few files need it

    return WeightsFile(path, hdf5.read(path), {})


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
            f"{path}: as safetensors its header would have {length} bytes, and at most "
            f"{MAX_HEADER} are read; it is damaged or something else: fetch it again"
        )
    if length > len(data) - 8:
        raise WeightsError(
            f"{path}: is cut short: its header has {length} bytes, the file {len(data)}; "
            "fetch it again"
        )
    try:
        entries = safetensors.deserialize(data)  # checks sizes, offsets and overlaps
        metadata = json.loads(data[8 : 8 + length]).get("__metadata__") or {}
    except (safetensors.SafetensorError, ValueError, RecursionError) as error:
        raise WeightsError(
            f"{path}: is damaged or cut short ({printable(error, 200)}); fetch it again"
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
            f"{path}: tensor {printable(name)} is of type {kind}, which is not read; "
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
        raise WeightsError(f"{path}: tensor {printable(name)} has an impossible shape") from None
