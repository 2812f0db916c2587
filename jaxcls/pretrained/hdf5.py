"""HDF5 files, as Keras writes them: data sets by their paths, and attributes that name things."""

import json
import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5o  # pyright: ignore[reportAttributeAccessIssue]

from jaxcls.pretrained.hdf5_texts import DamagedError, TextReader
from jaxcls.pretrained.info import WeightsError
from jaxcls.pretrained.limits import MAX_DIMENSIONS, check_total, single_precision

MAX_OBJECTS = 100_000
MAX_DEPTH = 64

# Filters that come with the library; others would be looked for in files of other people's.
_FILTERS = (h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32)

# What names layers and weights in Keras's files, and who wrote them.
_NAMES = ("layer_names", "weight_names", "name")
_WRITER = ("keras_version", "backend")


class _RefusedError(Exception):
    """The message is a clause about the file."""


def read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Reads all data sets of a file that stand in it as plain numbers.

    Args:
      path: an HDF5 file.

    Returns:
      tensors: by full path without the leading slash, "block1a_expand_conv/kernel:0";
        floating-point ones as float32.
      metadata: "layer_names", "weight_names" and "name", each a JSON object from the group's path
        ("" is the file's root) to that attribute (two lists, one text), only if there are any;
        "keras_version" and "backend" as they stand.

    Raises:
      WeightsError: it is damaged, has links or storage outside, or data sets that are no numbers,
        or that declare more than the file has.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            datasets, names, metadata = _walk(file, TextReader(path.read_bytes()))
            total = 0
            for name, dataset in datasets.items():
                total += _declared(name, dataset)
            check_total(path, total)
            tensors = {}
            for name, dataset in datasets.items():
                tensors[name] = single_precision(np.asarray(dataset[()]))
    except _RefusedError as error:
        raise WeightsError(f"{path}: {error}") from None
    except (
        DamagedError,
        OSError,
        RuntimeError,
        ValueError,
        TypeError,
        KeyError,
        OverflowError,
    ) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(
            f"{path}: the HDF5 file is damaged or cut short ({str(error)[:200]}); fetch it again"
        ) from None
    for attribute, values in names.items():
        if values:
            metadata[attribute] = json.dumps(values)
    return tensors, metadata


def _walk(
    file: h5py.File, reader: TextReader
) -> tuple[dict[str, h5py.Dataset], dict[str, dict[str, Any]], dict[str, str]]:
    """All data sets, and the attributes of all groups, without following any link outside."""
    datasets: dict[str, h5py.Dataset] = {}
    names: dict[str, dict[str, Any]] = {attribute: {} for attribute in _NAMES}
    metadata: dict[str, str] = {}
    seen: set[h5py.Group] = {file}
    waiting: list[tuple[str, h5py.Group]] = [("", file)]
    while waiting:
        path, group = waiting.pop(0)
        texts = reader.read(h5o.get_info(group.id).addr)
        for attribute in _NAMES:
            value = _whole(texts, attribute)
            if value is not None:
                names[attribute][path] = value
        for attribute in _WRITER:
            value = texts.get(attribute)
            if isinstance(value, str):
                metadata.setdefault(attribute, value)
        for name in group:
            full = f"{path}/{name}" if path else str(name)
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise _RefusedError(f"{full[:80]} is a link, which may lead out of the file")
            entry = group[name]
            if entry in seen or full.count("/") > MAX_DEPTH or len(seen) > MAX_OBJECTS:
                raise _RefusedError(f"{full[:80]} is reached twice, or there are too many objects")
            if isinstance(entry, h5py.Group):
                seen.add(entry)
                waiting.append((full, entry))
            elif isinstance(entry, h5py.Dataset):
                datasets[full] = entry
            else:
                raise _RefusedError(f"{full[:80]} is neither a group nor a data set")
            if len(datasets) > MAX_OBJECTS:
                raise _RefusedError(f"it has more than {MAX_OBJECTS} data sets")
    return datasets, names, metadata


def _whole(texts: dict[str, str | list[str]], name: str) -> str | list[str] | None:
    """An attribute, or None if there is none. Keras cuts long lists into name0, name1, …."""
    if name in texts:
        return texts[name]
    parts: list[str] = []
    number = 0
    while isinstance(part := texts.get(f"{name}{number}"), list):
        parts += part
        number += 1
    return parts if number else None


def _declared(name: str, dataset: h5py.Dataset) -> int:
    """Bytes that a data set takes as an array, if it is plain numbers that lie in the file."""
    if dataset.dtype.kind not in "fiub":
        raise _RefusedError(f"data set {name[:80]} holds no numbers but {dataset.dtype}")
    if dataset.id.get_type().get_size() != dataset.dtype.itemsize:
        raise _RefusedError(f"data set {name[:80]} has numbers of an impossible size")
    plan = dataset.id.get_create_plist()
    if plan.get_layout() == h5py.h5d.VIRTUAL or plan.get_external_count():
        raise _RefusedError(f"data set {name[:80]} lies in other files")
    if dataset.shape is None or dataset.ndim > MAX_DIMENSIONS:
        raise _RefusedError(f"data set {name[:80]} has no usable shape")
    size = math.prod(dataset.shape) * dataset.dtype.itemsize
    stored = dataset.id.get_storage_size()
    filters = [plan.get_filter(number)[0] for number in range(plan.get_nfilters())]
    if not set(filters) <= set(_FILTERS):
        raise _RefusedError(f"data set {name[:80]} is packed with a filter other than gzip")
    if stored < size and not (filters and stored):
        raise _RefusedError(f"data set {name[:80]} declares {size} bytes, but has {stored}")
    if plan.get_layout() == h5py.h5d.CHUNKED:
        size = max(size, math.prod(dataset.chunks or ()) * dataset.dtype.itemsize)
    return max(size, math.prod(dataset.shape) * 4)
