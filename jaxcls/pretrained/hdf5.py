"""HDF5 files, as Keras writes them: data sets by their paths."""

import math
from pathlib import Path
from typing import BinaryIO

import h5py
import numpy as np

from jaxcls.models.weights_info import WeightsError
from jaxcls.pretrained.limits import (
    MAX_DIMENSIONS,
    check_total,
    printable,
    single_precision,
    widen_bfloat16,
)

MAX_OBJECTS = 100_000
MAX_DEPTH = 64


class _RefusedError(Exception):
    """The message is a clause about the file."""


def read(path: Path, content: BinaryIO | None = None) -> dict[str, np.ndarray]:
    """Reads all data sets of a file that stand in it as plain numbers.

    HDF5 has no bfloat16. Keras writes its bits as two bytes without a meaning, and says what they
    are in an attribute of the data set, or nowhere in the older format.

    Args:
      path: an HDF5 file.
      content: what to read instead of the file at `path`, which holds it.

    Returns:
      By full path without the leading slash, "block1a_expand_conv/kernel:0"; floating-point ones as
      float32.

    Raises:
      WeightsError: it is damaged, has links or storage outside, or data sets that are no numbers,
        are compressed, or declare more than the file has.
    """
    try:
        with h5py.File(content or path, "r", locking=False) as file:
            datasets = _walk(file)
            total = 0
            for name, dataset in datasets.items():
                total += _declared(name, dataset)
            check_total(path, total)
            tensors = {}
            for name, dataset in datasets.items():
                tensors[name] = _numbers(np.asarray(dataset[()]))
    except _RefusedError as error:
        raise WeightsError(f"{path}: {error}") from None
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, OverflowError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(
            f"{path}: the HDF5 file is damaged or cut short ({printable(error, 200)}); "
            "fetch it again"
        ) from None
    return tensors


def _walk(file: h5py.File) -> dict[str, h5py.Dataset]:
    """All data sets, without following any link outside."""
    datasets: dict[str, h5py.Dataset] = {}
    seen: set[h5py.Group] = {file}
    waiting: list[tuple[str, h5py.Group]] = [("", file)]
    while waiting:
        path, group = waiting.pop(0)
        for name in group:
            full = f"{path}/{name}" if path else str(name)
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise _RefusedError(f"{printable(full)} is a link, which may lead out of the file")
            entry = group[name]
            if entry in seen or full.count("/") > MAX_DEPTH or len(seen) > MAX_OBJECTS:
                raise _RefusedError(
                    f"{printable(full)} is reached twice, or there are too many objects"
                )
            if isinstance(entry, h5py.Group):
                seen.add(entry)
                waiting.append((full, entry))
            elif isinstance(entry, h5py.Dataset):
                datasets[full] = entry
            else:
                raise _RefusedError(f"{printable(full)} is neither a group nor a data set")
            if len(datasets) > MAX_OBJECTS:
                raise _RefusedError(f"it has more than {MAX_OBJECTS} data sets")
    return datasets


def _declared(name: str, dataset: h5py.Dataset) -> int:
    """Bytes that a data set takes as an array, if it is plain numbers that lie in the file."""
    if dataset.dtype.kind not in "fiub" and not _is_bfloat16(dataset):
        raise _RefusedError(
            f"data set {printable(name)} holds no numbers that are read, but {_kind(dataset)}; "
            "save the model with float32 weights"
        )
    if dataset.id.get_type().get_size() != dataset.dtype.itemsize:
        raise _RefusedError(f"data set {printable(name)} has numbers of an impossible size")
    plan = dataset.id.get_create_plist()
    if plan.get_layout() == h5py.h5d.VIRTUAL or plan.get_external_count():
        raise _RefusedError(f"data set {printable(name)} lies in other files")
    if dataset.shape is None or dataset.ndim > MAX_DIMENSIONS:
        raise _RefusedError(f"data set {printable(name)} has no usable shape")
    size = math.prod(dataset.shape) * dataset.dtype.itemsize
    stored = dataset.id.get_storage_size()
    if plan.get_nfilters():  # a chunk may inflate to far more than its data set declares
        raise _RefusedError(
            f"data set {printable(name)} is compressed, which Keras never does; save it again "
            "without: h5repack -f NONE"
        )
    if stored < size:
        raise _RefusedError(f"data set {printable(name)} declares {size} bytes, but has {stored}")
    if plan.get_layout() == h5py.h5d.CHUNKED:
        size = max(size, math.prod(dataset.chunks or ()) * dataset.dtype.itemsize)
    return max(size, math.prod(dataset.shape) * 4)


def _kind(dataset: h5py.Dataset) -> str:
    """The type of the numbers, as Keras or HDF5 calls it."""
    said = dataset.attrs.get("dtype")
    return printable(said) if isinstance(said, str) else str(dataset.dtype)


def _is_bfloat16(dataset: h5py.Dataset) -> bool:
    return dataset.dtype == np.dtype("V2") and _kind(dataset) in ("bfloat16", "|V2")


def _numbers(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind == "V":
        return widen_bfloat16(np.ascontiguousarray(array).view("<u2")).reshape(array.shape)
    return single_precision(array)
