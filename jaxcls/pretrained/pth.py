"""Reads PyTorch's files without torch: the zip archives and older streams of `torch.save`.

The formats are those of torch/serialization.py. A zip archive has one folder with `data.pkl`,
`byteorder`, and `data/KEY` for each storage, all uncompressed. A stream has pickles of a magic
number, the protocol, the machine, the object and the storages' keys; then for each key the count
(int64) and the numbers, little-endian on every machine.
"""

import io
import math
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxcls.models.weights_info import WeightsError
from jaxcls.pretrained.limits import (
    MAX_BYTES,
    RefusedError,
    check_total,
    excerpt,
    single_precision,
    widen_bfloat16,
)
from jaxcls.pretrained.unpickling import Storage, Tensor, unpickle
from jaxcls.pretrained.wrappers import state_dict

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001

_REMEDY = "save model.state_dict() with safetensors, or with torch.save"

type _Bytes = bytes | memoryview


def read_zip(path: Path, *, ema: bool) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Reads a file that `torch.save` of version 1.6 or later wrote.

    Args:
      path: a file that begins like a zip archive.
      ema: whether to take the moving averages, if there are both (see `wrappers.state_dict`).

    Returns:
      tensors: by their names in the state dict; floating-point ones as float32.
      notes: sentences on where the state dict was found.

    Raises:
      WeightsError: it is another archive, is damaged, or has no table of tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            records = {record.filename: record for record in archive.infolist()}
            folder = _folder(path, records)
            _check_records(path, archive.infolist())

            def read(name: str) -> bytes:
                return archive.read(records[folder + name])

            order = read("byteorder") if f"{folder}byteorder" in records else b"little"
            if order not in (b"little", b"big"):
                raise RefusedError("its byte order is neither little nor big")
            state, notes = state_dict(unpickle(io.BytesIO(read("data.pkl"))), ema=ema)

            def read_storage(storage: Storage) -> bytes:
                record = records.get(f"{folder}data/{storage.key}")
                if record is None:
                    raise RefusedError(f"there is no record data/{excerpt(storage.key, 40)}")
                if record.file_size != storage.numel * _item_size(storage.kind):
                    raise RefusedError(
                        f"record data/{excerpt(storage.key, 40)} has {record.file_size} bytes, "
                        f"but {storage.numel} numbers are declared"
                    )
                return archive.read(record)

            return _tensors(path, state, read_storage, big_endian=order == b"big"), notes
    except RefusedError as error:
        raise WeightsError(f"{path}: {error}; {_REMEDY}") from None
    except (
        zipfile.BadZipFile,
        zlib.error,
        struct.error,
        ValueError,
        EOFError,
        NotImplementedError,
        RuntimeError,
        OverflowError,
    ) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(
            f"{path}: the zip archive is damaged or cut off ({excerpt(error, 200)}); "
            "download it again"
        ) from None


def read_stream(path: Path, *, ema: bool) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Reads a file in the format of `torch.save` before version 1.6, which is now an option.

    Args:
      path: a file that begins like a pickle.
      ema: as for `read_zip`.

    Returns and raises as `read_zip`.
    """
    data = path.read_bytes()
    stream = io.BytesIO(data)
    try:
        if unpickle(stream) != MAGIC_NUMBER:
            raise RefusedError("it is a pickle, but not one of PyTorch's files")
        if unpickle(stream) != PROTOCOL:
            raise RefusedError("it has an unknown version of PyTorch's format")
        unpickle(stream)  # the machine's integer sizes, which are not needed
        storages: dict[str, Storage] = {}
        content = unpickle(stream, storages)
        keys = unpickle(stream)
        state, notes = state_dict(content, ema=ema)
        places = _storage_places(data, stream.tell(), keys, storages)

        def read_storage(storage: Storage) -> memoryview:
            if storage.key not in places:
                raise RefusedError(f"there is no storage {excerpt(storage.key, 40)}")
            start, stop = places[storage.key]
            if stop - start != storage.numel * _item_size(storage.kind):
                raise RefusedError(f"storage {excerpt(storage.key, 40)} has two sizes")
            return memoryview(data)[start:stop]

        return _tensors(path, state, read_storage, big_endian=False), notes
    except RefusedError as error:
        raise WeightsError(f"{path}: {error}; {_REMEDY}") from None


def _check_records(path: Path, records: list[zipfile.ZipInfo]) -> None:
    """Checks an archive's records before they are read."""
    if len({record.filename for record in records}) != len(records):
        raise RefusedError("two records of the archive have the same name")
    for record in records:
        if record.compress_type != zipfile.ZIP_STORED or record.file_size != record.compress_size:
            raise RefusedError(
                f"record {excerpt(record.filename)} is compressed, which torch.save never does, "
                "or declares a wrong size"
            )
    # Records that share bytes could expand to far more than the file.
    if sum(record.file_size for record in records) > path.stat().st_size:
        raise RefusedError("the archive's records declare more bytes than the file has")


def _folder(path: Path, records: dict[str, zipfile.ZipInfo]) -> str:
    """Returns the archive's only folder, with its slash."""
    folders = [name.removesuffix("data.pkl") for name in records if name.count("/") == 1]
    folders = [folder for folder in folders if f"{folder}data.pkl" in records]
    if any(name.endswith("constants.pkl") or "/code/" in name for name in records):
        raise RefusedError("it is a TorchScript archive, which contains a program")
    if len(set(folders)) != 1:
        some = ", ".join(sorted(records)[:3])
        raise RefusedError(
            f"it is a zip archive, but not one of PyTorch's (it has {excerpt(some, 200)})"
        )
    return folders[0]


def _storage_places(
    data: bytes, position: int, keys: Any, storages: dict[str, Storage]
) -> dict[str, tuple[int, int]]:
    """Returns start and end of each storage's numbers; the first count is at `position`."""
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise RefusedError("its list of storages is damaged")
    places: dict[str, tuple[int, int]] = {}
    for key in keys:
        if key not in storages:
            raise RefusedError(f"storage {excerpt(key, 40)} belongs to nothing")
        if position + 8 > len(data):
            raise RefusedError("it is cut off; download it again")
        (count,) = struct.unpack_from("<q", data, position)
        start = position + 8
        position = start + count * _item_size(storages[key].kind)
        if count < 0 or position > len(data):
            raise RefusedError("it is cut off or damaged; download it again")
        places[key] = start, position
    return places


def _tensors(
    path: Path,
    state: dict[str, Tensor],
    read_storage: Callable[[Storage], _Bytes],
    *,
    big_endian: bool,
) -> dict[str, np.ndarray]:
    """Checks all tensors, then reads their numbers, each storage once."""
    for name, tensor in state.items():
        _check(name, tensor)
    check_total(
        path,
        sum(math.prod(t.shape) * max(4, _item_size(t.storage.kind)) for t in state.values()),
    )
    storages: dict[Storage, np.ndarray] = {}
    tensors = {}
    for name, (storage, offset, shape, strides) in state.items():
        if storage not in storages:
            storages[storage] = _numbers(read_storage(storage), storage.kind, big_endian=big_endian)
        numbers = storages[storage]
        if math.prod(shape):
            view = np.lib.stride_tricks.as_strided(
                numbers[offset:], shape, [stride * numbers.itemsize for stride in strides]
            )
        else:
            view = np.empty(shape, numbers.dtype)
        tensors[name] = single_precision(np.array(view))  # a copy, because storages are shared
    return tensors


def _check(name: str, tensor: Tensor) -> None:
    """Checks that a view stays inside its storage and is not larger than it."""
    storage, offset, shape, strides = tensor
    numbers = (offset, *shape, *strides)
    count = math.prod(shape)
    if (
        len(shape) != len(strides)
        or min(numbers) < 0
        or (count and max(strides, default=0) > storage.numel)
        or math.prod(max(n, 1) for n in shape) * 8 > MAX_BYTES  # NumPy counts bytes where n is 0
    ):
        raise RefusedError(f"tensor {excerpt(name)} has an impossible shape, offset or stride")
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if count > storage.numel or (count and last >= storage.numel):
        raise RefusedError(f"tensor {excerpt(name)} exceeds its storage")


def _item_size(kind: str) -> int:
    return 2 if kind == "bfloat16" else np.dtype(kind).itemsize


def _numbers(data: _Bytes, kind: str, *, big_endian: bool) -> np.ndarray:
    order = ">" if big_endian else "<"
    if kind == "bfloat16":
        return widen_bfloat16(np.frombuffer(data, f"{order}u2"))
    if kind == "bool":
        return np.frombuffer(data, "u1") != 0
    return np.frombuffer(data, f"{order}{kind}")
