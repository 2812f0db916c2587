"""The process that reads an HDF5 file; `jaxcls.pretrained.hdf5` starts it and says why.

Usage: python -m jaxcls.pretrained.hdf5_process FILE [RECORD]

RECORD is the name of the HDF5 file in FILE, if that is a zip archive. The process writes to
standard output the length of a text (8 bytes, little-endian), the text, and the numbers of all
arrays one after another. The text is JSON: {"arrays": [[name, dtype, shape], …]}; or instead of
"arrays", "refused" with what is not allowed in the file, or "damaged" with what libhdf5 says.

It imports little, so that it starts fast.
"""

import contextlib
import io
import json
import math
import resource
import sys
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from jaxcls.pretrained.limits import (
    ALWAYS_ALLOWED,
    MAX_DIMENSIONS,
    MAX_GROWTH,
    RefusedError,
    check_total,
    excerpt,
    single_precision,
    widen_bfloat16,
)

MAX_OBJECTS = 100_000
MAX_DEPTH = 64
SECONDS = 20  # of computing for a small file
BYTES_A_SECOND = 20e6  # that any machine reads
OWN_BYTES = 4 << 30  # of address space that Python and its libraries reserve

DAMAGED = (
    OSError,
    RuntimeError,
    ValueError,
    TypeError,
    KeyError,
    OverflowError,
    EOFError,
    MemoryError,
    NotImplementedError,
    zipfile.BadZipFile,
)


def main(path: Path, record: str | None = None) -> None:
    """Reads a file and writes its arrays, or why it cannot be read, to standard output."""
    size = path.stat().st_size
    with contextlib.suppress(ValueError, OSError):  # limits of this kind are not everywhere
        _limit(resource.RLIMIT_CPU, SECONDS + int(size / BYTES_A_SECOND))
        _limit(resource.RLIMIT_AS, OWN_BYTES + max(ALWAYS_ALLOWED, MAX_GROWTH * size))
    arrays: dict[str, np.ndarray] = {}
    try:
        arrays = read(path, record)
        answer: dict[str, Any] = {
            "arrays": [[name, array.dtype.str, array.shape] for name, array in arrays.items()]
        }
    except RefusedError as error:
        answer = {"refused": str(error)}
    except DAMAGED as error:
        answer = {"damaged": excerpt(error, 200)}
    text = json.dumps(answer).encode()
    sys.stdout.buffer.write(len(text).to_bytes(8, "little") + text)
    for array in arrays.values():
        sys.stdout.buffer.write(array.tobytes() if array.ndim == 0 else array.data)
    sys.stdout.flush()


def _limit(what: int, most: int) -> None:
    _, hard = resource.getrlimit(what)
    least = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(what, (least, hard))


def read(path: Path, record: str | None = None) -> dict[str, np.ndarray]:
    """Reads all data sets of a file, which must be plain numbers.

    HDF5 has no bfloat16. Keras writes it as two opaque bytes, and names the type in an attribute of
    the data set; in the older format it does not name the type.

    Args:
      path: an HDF5 file, or an archive that contains one.
      record: the name of the HDF5 file in the archive (None: the file itself).

    Returns:
      Arrays by full path without the leading slash, such as "block1a_expand_conv/kernel:0";
      floating-point ones as float32.

    Raises:
      RefusedError: the file refers to other files, has data sets that are not numbers, are
        compressed, or declare more bytes than the file has; or the record is compressed.
      Exception: one of `DAMAGED`.
    """
    content = path if record is None else _stored(path, record)
    with h5py.File(content, "r", locking=False) as file:
        datasets = _walk(file)
        check_total(path, sum(_declared(name, dataset) for name, dataset in datasets.items()))
        return {name: _numbers(np.asarray(dataset[()])) for name, dataset in datasets.items()}


def _stored(path: Path, record: str) -> io.BytesIO:
    """Returns the content of a record of a zip archive."""
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(record)
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > path.stat().st_size:
            raise RefusedError(
                f"its {record} is compressed, which Keras never does; unpack the archive and name "
                f"that file"
            )
        return io.BytesIO(archive.read(info))


def _walk(file: h5py.File) -> dict[str, h5py.Dataset]:
    """Returns all data sets, without following links out of the file."""
    datasets: dict[str, h5py.Dataset] = {}
    seen: set[h5py.Group] = {file}
    waiting: list[tuple[str, h5py.Group]] = [("", file)]
    while waiting:
        path, group = waiting.pop(0)
        for name in group:
            full = f"{path}/{name}" if path else str(name)
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise RefusedError(f"{excerpt(full)} is a link, which may lead out of the file")
            entry = group[name]
            if entry in seen or full.count("/") > MAX_DEPTH or len(seen) > MAX_OBJECTS:
                raise RefusedError(
                    f"{excerpt(full)} is reached twice, or there are too many objects"
                )
            if isinstance(entry, h5py.Group):
                seen.add(entry)
                waiting.append((full, entry))
            elif isinstance(entry, h5py.Dataset):
                datasets[full] = entry
            else:
                raise RefusedError(f"{excerpt(full)} is neither a group nor a data set")
            if len(datasets) > MAX_OBJECTS:
                raise RefusedError(f"it has more than {MAX_OBJECTS} data sets")
    return datasets


def _declared(name: str, dataset: h5py.Dataset) -> int:
    """Returns the bytes that a data set needs as an array; checks that it is plain numbers."""
    if dataset.dtype.kind not in "fiub" and not _is_bfloat16(dataset):
        raise RefusedError(
            f"data set {excerpt(name)} has the unsupported type {_kind(dataset)}; "
            "save the model with float32 weights"
        )
    if dataset.id.get_type().get_size() != dataset.dtype.itemsize:
        raise RefusedError(f"data set {excerpt(name)} has numbers of an impossible size")
    plan = dataset.id.get_create_plist()
    if plan.get_layout() == h5py.h5d.VIRTUAL or plan.get_external_count():
        raise RefusedError(f"data set {excerpt(name)} is stored in other files")
    if dataset.shape is None or dataset.ndim > MAX_DIMENSIONS:
        raise RefusedError(f"data set {excerpt(name)} has no usable shape")
    size = math.prod(dataset.shape) * dataset.dtype.itemsize
    stored = dataset.id.get_storage_size()
    if plan.get_nfilters():  # a chunk may expand to far more than its data set declares
        raise RefusedError(
            f"data set {excerpt(name)} is compressed, which Keras never does; decompress it "
            "with h5repack -f NONE"
        )
    if stored < size:
        raise RefusedError(f"data set {excerpt(name)} declares {size} bytes, but has {stored}")
    if plan.get_layout() == h5py.h5d.CHUNKED:
        size = max(size, math.prod(dataset.chunks or ()) * dataset.dtype.itemsize)
    return max(size, math.prod(dataset.shape) * 4)


def _kind(dataset: h5py.Dataset) -> str:
    """Returns the name of the numbers' type in Keras or HDF5."""
    said = dataset.attrs.get("dtype")
    return excerpt(said) if isinstance(said, str) else str(dataset.dtype)


def _is_bfloat16(dataset: h5py.Dataset) -> bool:
    return dataset.dtype == np.dtype("V2") and _kind(dataset) in ("bfloat16", "|V2")


def _numbers(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind == "V":
        return widen_bfloat16(np.ascontiguousarray(array).view("<u2")).reshape(array.shape)
    return single_precision(array)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
