"""Reads HDF5 files, as Keras writes them: data sets by their paths."""

import math
from pathlib import Path
from typing import BinaryIO

import h5py
import numpy as np

from jaxcls.models.weights_info import WeightsError
from jaxcls.pretrained.limits import (
    MAX_DIMENSIONS,
    RefusedError,
    check_total,
    excerpt,
    single_precision,
    widen_bfloat16,
)

MAX_OBJECTS = 100_000
MAX_DEPTH = 64


def read(path: Path, content: BinaryIO | None = None) -> dict[str, np.ndarray]:
    """Reads all data sets of a file, which must be plain numbers.

    HDF5 has no bfloat16. Keras writes it as two opaque bytes, and names the type in an attribute of
    the data set; in the older format it does not name the type.

    Args:
      path: an HDF5 file, or an archive that contains one.
      content: the HDF5 file inside the archive (None: the file itself).

    Returns:
      Arrays by full path without the leading slash, such as "block1a_expand_conv/kernel:0";
      floating-point ones as float32.

    Raises:
      WeightsError: the file is damaged, or declares far too many bytes.
      RefusedError: the file refers to other files, or has data sets that are not numbers, are
        compressed, or declare more bytes than the file has.
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
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, OverflowError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(
            f"{path}: the HDF5 file is damaged or cut off ({excerpt(error, 200)}); "
            "download it again"
        ) from None
    return tensors


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
