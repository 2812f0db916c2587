"""PyTorch's files: the zip archives and the older streams that `torch.save` writes, without torch.

The formats are those of torch/serialization.py. Zip: one folder with `data.pkl`, `byteorder`, and
`data/KEY` for each storage, none compressed. Stream: pickles of a magic number, the protocol, the
machine, the object and the storages' keys; then for each key the count (int64) and the numbers,
little-endian on every machine.
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

from jaxcls.pretrained.info import WeightsError
from jaxcls.pretrained.limits import (
    MAX_BYTES,
    check_total,
    printable,
    single_precision,
    widen_bfloat16,
)
from jaxcls.pretrained.unpickling import RefusedError, Storage, Tensor, unpickle

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001

# Where training scripts put the state dict, the averaged weights first: they are those evaluated.
STATE_DICTS = (
    "state_dict_ema",
    "model_ema",
    "state_dict",
    "model",
    "model_state_dict",
    "model_state",
)
# DataParallel and AveragedModel, torch.compile, Lightning.
PREFIXES = ("module.", "_orig_mod.", "model.")
_AVERAGED = "n_averaged"  # AveragedModel's counter stands beside its "module."

_LISTED = 10
_REMEDY = "save model.state_dict() with safetensors, or with torch.save"

type _Bytes = bytes | memoryview


def read_zip(path: Path) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Reads what `torch.save` of version 1.6 and later writes.

    Args:
      path: a file that begins as a zip archive.

    Returns:
      tensors: by their names in the state dict; floating-point ones as float32.
      notes: see `_state_dict`.

    Raises:
      WeightsError: it is another archive, damaged, or holds more than a table of tensors.
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
            state, notes = _state_dict(unpickle(io.BytesIO(read("data.pkl"))))

            def read_storage(storage: Storage) -> bytes:
                record = records.get(f"{folder}data/{storage.key}")
                if record is None:
                    raise RefusedError(f"there is no record data/{printable(storage.key, 40)}")
                if record.file_size != storage.numel * _item_size(storage.kind):
                    raise RefusedError(
                        f"record data/{printable(storage.key, 40)} has {record.file_size} bytes, "
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
            f"{path}: the zip archive is damaged or cut short ({printable(error, 200)}); "
            "fetch it again"
        ) from None


def read_stream(path: Path) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Reads what `torch.save` before version 1.6 wrote, and now writes when asked for.

    Args:
      path: a file that begins as a pickle.

    Returns and raises as `read_zip`.
    """
    data = path.read_bytes()
    stream = io.BytesIO(data)
    try:
        if unpickle(stream) != MAGIC_NUMBER:
            raise RefusedError("it is a pickle, but not one of PyTorch's files")
        if unpickle(stream) != PROTOCOL:
            raise RefusedError("it has an unknown version of PyTorch's format")
        unpickle(stream)  # the machine's sizes of integers: nothing depends on them
        content = unpickle(stream)
        keys = unpickle(stream)
        state, notes = _state_dict(content)
        places = _storage_places(data, stream.tell(), keys, _all_storages(content))

        def read_storage(storage: Storage) -> memoryview:
            if storage.key not in places:
                raise RefusedError(f"there is no storage {printable(storage.key, 40)}")
            start, stop = places[storage.key]
            if stop - start != storage.numel * _item_size(storage.kind):
                raise RefusedError(f"storage {printable(storage.key, 40)} has two sizes")
            return memoryview(data)[start:stop]

        return _tensors(path, state, read_storage, big_endian=False), notes
    except RefusedError as error:
        raise WeightsError(f"{path}: {error}; {_REMEDY}") from None


def _check_records(path: Path, records: list[zipfile.ZipInfo]) -> None:
    """Refuses an archive whose records cannot be read without surprises."""
    if len({record.filename for record in records}) != len(records):
        raise RefusedError("two records of the archive have one name")
    for record in records:
        if record.compress_type != zipfile.ZIP_STORED or record.file_size != record.compress_size:
            raise RefusedError(
                f"record {printable(record.filename)} is compressed, which torch.save never does, "
                "or lies about its size"
            )
    # Records that share bytes would make much out of little.
    if sum(record.file_size for record in records) > path.stat().st_size:
        raise RefusedError("the archive's records declare more bytes than the file has")


def _folder(path: Path, records: dict[str, zipfile.ZipInfo]) -> str:
    """The archive's one folder, with its slash."""
    folders = [name.removesuffix("data.pkl") for name in records if name.count("/") == 1]
    folders = [folder for folder in folders if f"{folder}data.pkl" in records]
    if any(name.endswith("constants.pkl") or "/code/" in name for name in records):
        raise RefusedError("it is a TorchScript archive, a program with its weights")
    if any(name.endswith("model.weights.h5") for name in records):
        raise WeightsError(
            f"{path}: it is a Keras archive (.keras), a model with its weights; "
            "write model.save_weights('….weights.h5')"
        )
    if len(set(folders)) != 1:
        some = ", ".join(sorted(records)[:3])
        raise RefusedError(
            f"it is a zip archive, but not one of PyTorch's (it has {printable(some, 200)})"
        )
    return folders[0]


def _all_storages(content: Any) -> dict[str, Storage]:
    """Every storage of what was unpickled; the object may hold itself."""
    found: dict[str, Storage] = {}
    seen: set[int] = set()
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            value = value.storage
        if isinstance(value, Storage):
            other = found.setdefault(value.key, value)
            if other.kind != value.kind:
                raise RefusedError(f"storage {printable(value.key, 40)} has two types")
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            waiting.extend(value.values() if isinstance(value, dict) else value)
    return found


def _storage_places(
    data: bytes, position: int, keys: Any, storages: dict[str, Storage]
) -> dict[str, tuple[int, int]]:
    """Where each storage's numbers lie; the first one's count is at `position`."""
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise RefusedError("its list of storages is damaged")
    places: dict[str, tuple[int, int]] = {}
    for key in keys:
        if key not in storages:
            raise RefusedError(f"storage {printable(key, 40)} belongs to nothing")
        if position + 8 > len(data):
            raise RefusedError("it is cut short; fetch it again")
        (count,) = struct.unpack_from("<q", data, position)
        start = position + 8
        position = start + count * _item_size(storages[key].kind)
        if count < 0 or position > len(data):
            raise RefusedError("it is cut short or damaged; fetch it again")
        places[key] = start, position
    return places


def _state_dict(content: Any) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The table of tensors in what was saved, and sentences on what was done to get it.

    They say, each only if it applies, in which entry the table was, what all names began with and
    was taken off, and which other entries there are.
    """
    if isinstance(content, Tensor):
        raise RefusedError("it holds one tensor without a name")
    if not isinstance(content, dict):
        raise RefusedError(f"it holds a {type(content).__name__}, not a table of tensors")
    notes: list[str] = []
    table = content
    for key in STATE_DICTS:
        if isinstance(content.get(key), dict) and _only_tensors(content[key]):
            notes.append(f"tensors taken from the checkpoint's entry {key}")
            table = content[key]
            break
    state = _only_tensors(table)
    if not state:
        some = ", ".join(str(key)[:40] for key in list(content)[:5])
        raise RefusedError(
            f"it holds no tensors at its top or under {', '.join(STATE_DICTS)} "
            f"(it has {printable(some, 200)})"
        )
    left_out = [str(key) for key in content if table is not content and content[key] is not table]
    left_out += [str(key) for key in table if key not in state]
    prefix, state = _strip_prefix(state)
    if prefix:
        notes.append(f"prefix {prefix} taken off all names")
        if _AVERAGED in table:
            left_out.append(_AVERAGED)
    if left_out:
        some = ", ".join(printable(name, 40) for name in left_out[:_LISTED])
        more = f" and {len(left_out) - _LISTED} more" if len(left_out) > _LISTED else ""
        notes.append(f"left out of the checkpoint: {some}{more}")
    return state, tuple(notes)


def _only_tensors(table: dict[Any, Any]) -> dict[str, Tensor]:
    return {
        key: value
        for key, value in table.items()
        if isinstance(key, str) and isinstance(value, Tensor)
    }


def _strip_prefix(state: dict[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    """Takes off what wrappers put before all names."""
    inner = {name: tensor for name, tensor in state.items() if name != _AVERAGED}
    if not inner:
        return "", state
    taken = ""
    while prefix := next((p for p in PREFIXES if all(n.startswith(p) for n in inner)), ""):
        taken += prefix
        inner = {name.removeprefix(prefix): tensor for name, tensor in inner.items()}
    return (taken, inner) if taken else ("", state)


def _tensors(
    path: Path,
    state: dict[str, Tensor],
    read_storage: Callable[[Storage], _Bytes],
    *,
    big_endian: bool,
) -> dict[str, np.ndarray]:
    """Reads the tensors' numbers, each storage once, after all have been checked."""
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
        tensors[name] = single_precision(np.array(view))  # a copy: the storage may be shared
    return tensors


def _check(name: str, tensor: Tensor) -> None:
    """Refuses a view that reaches out of its storage, or shows its numbers more than once."""
    storage, offset, shape, strides = tensor
    numbers = (offset, *shape, *strides)
    count = math.prod(shape)
    if (
        len(shape) != len(strides)
        or min(numbers) < 0
        or (count and max(strides, default=0) > storage.numel)
        or math.prod(max(n, 1) for n in shape) * 8 > MAX_BYTES  # NumPy counts bytes where n is 0
    ):
        raise RefusedError(f"tensor {printable(name)} has an impossible shape, offset or stride")
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if count > storage.numel or (count and last >= storage.numel):
        raise RefusedError(f"tensor {printable(name)} reaches out of its storage")


def _item_size(kind: str) -> int:
    return 2 if kind == "bfloat16" else np.dtype(kind).itemsize


def _numbers(data: _Bytes, kind: str, *, big_endian: bool) -> np.ndarray:
    order = ">" if big_endian else "<"
    if kind == "bfloat16":
        return widen_bfloat16(np.frombuffer(data, f"{order}u2"))
    if kind == "bool":
        return np.frombuffer(data, "u1") != 0
    return np.frombuffer(data, f"{order}{kind}")
