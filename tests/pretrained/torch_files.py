"""Writes PyTorch's two formats without torch, byte for byte as torch/serialization.py does."""

import io
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

CLASSES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}


class Named:
    """Pickled as the global of this name, which need not exist."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


class Stored:
    """Numbers that tensors view. `bits` are what is written: uint16 for bfloat16."""

    def __init__(self, key: str, kind: str, bits: np.ndarray, numel: int | None = None) -> None:
        self.key, self.kind, self.bits = key, kind, bits
        self.numel = bits.size if numel is None else numel


class Called:
    """Pickled as a call of a global: REDUCE."""

    def __init__(self, module: str, name: str, *arguments: Any) -> None:
        self.function, self.arguments = Named(module, name), arguments


def tensor(stored: Stored, shape: Any, strides: Any, offset: Any = 0) -> Called:
    """As Tensor.__reduce_ex__ describes one."""
    hooks = Called("collections", "OrderedDict")
    return Called(
        "torch._utils", "_rebuild_tensor_v2", stored, offset, shape, strides, False, hooks
    )


def whole(key: str, array: np.ndarray, kind: str | None = None) -> Called:
    """A contiguous tensor with a storage of its own."""
    strides = tuple(stride // array.itemsize for stride in array.strides)
    return tensor(Stored(key, kind or str(array.dtype), array.reshape(-1)), array.shape, strides)


_PythonPickler: Any = pickle._Pickler  # type: ignore[attr-defined]  # unlike C's it can be extended


class _Pickler(_PythonPickler):
    def __init__(self, file: io.BytesIO, protocol: int, legacy: bool) -> None:
        super().__init__(file, protocol)
        self.legacy, self.storages = legacy, {}

    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, Stored):
            self.storages[obj.key] = obj
            view = (None,) if self.legacy else ()
            return ("storage", Named("torch", CLASSES[obj.kind]), obj.key, "cpu", obj.numel, *view)
        return None

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if isinstance(obj, Named):
            self.write(f"c{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, Called):
            self.save(obj.function)
            self.save(obj.arguments)
            self.write(pickle.REDUCE)
        else:
            super().save(obj, save_persistent_id)


def pickled(content: Any, *, protocol: int = 2, legacy: bool = False) -> tuple[bytes, dict]:
    stream = io.BytesIO()
    pickler = _Pickler(stream, protocol, legacy)
    pickler.dump(content)
    return stream.getvalue(), pickler.storages


def write_zip(path: Path, content: Any, *, order: str = "little", **records: bytes) -> Path:
    """What torch.save writes; `records` are further ones, with __ for a slash."""
    data, storages = pickled(content)
    return write_records(path, data, storages, order=order, **records)


def write_records(
    path: Path, data: bytes, storages: dict[str, Stored], *, order: str = "little", **records: bytes
) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", order)
        for key, stored in storages.items():
            bits = stored.bits.astype(
                stored.bits.dtype.newbyteorder(">" if order == "big" else "<")
            )
            archive.writestr(f"archive/data/{key}", bits.tobytes())
        archive.writestr("archive/version", "3\n")
        for name, content in records.items():
            archive.writestr("archive/" + name.replace("__", "/"), content)
    return path


def write_stream(path: Path, content: Any) -> Path:
    """What torch.save(…, _use_new_zipfile_serialization=False) writes."""
    data, storages = pickled(content, legacy=True)
    return write_stream_bytes(path, data, storages)


def write_stream_bytes(path: Path, data: bytes, storages: dict[str, Stored]) -> Path:
    machine = {
        "protocol_version": 1001,
        "little_endian": True,
        "type_sizes": {"short": 2, "int": 4, "long": 4},
    }
    parts = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, machine)]
    keys = sorted(storages)
    parts += [data, pickle.dumps(keys, 2)]
    for key in keys:
        bits = storages[key].bits
        little = bits.astype(bits.dtype.newbyteorder("<")).tobytes()
        parts.append(struct.pack("<q", bits.size) + little)
    path.write_bytes(b"".join(parts))
    return path
