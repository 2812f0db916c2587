"""Files of weights that are damaged, or made to harm whoever reads them."""

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import safetensors.numpy
from damage import DAMAGES
from expect import require
from trial import Trial

from faults.fault import Fault

_SECONDS = 90.0  # within which a file is refused
_ARRAYS = {"conv.weight": np.ones((8, 3, 3, 3), "f4"), "conv.bias": np.zeros(8, "f4")}


def weights_hostile(trial: Trial) -> None:
    """A file that would run code, fill the memory or hang: refused, and nothing has happened."""
    name = list(_HOSTILE)[trial.number % len(_HOSTILE)]
    harmed = trial.folder / "harmed"
    path = trial.folder / name
    _HOSTILE[name](path, harmed)
    _require_refusal(trial, path)
    require(not harmed.exists(), f"{name}: code in it has run")


def weights_damaged(trial: Trial) -> None:
    """A file of each format that is cut, emptied, or partly overwritten."""
    suffix = list(_GOOD)[trial.number % len(_GOOD)]
    path = trial.folder / f"weights{suffix}"
    path.write_bytes(_GOOD[suffix]())
    kinds = ("cut", "emptied", "noise")
    DAMAGES[kinds[trial.number // len(_GOOD) % len(kinds)]](path, trial.rng)
    _require_refusal(trial, path)


def _require_refusal(trial: Trial, path: Path) -> None:
    """The training ends with 2 and the name of the file, and makes no run."""
    process = trial.start_one("--model.weights", str(path))
    process.require_refusal(path.name, within=_SECONDS)
    require(not (trial.run_dir / "checkpoints").exists(), "it trained")


# Good files of each format; the network of the storm does not take their tensors anyway.


def _safetensors() -> bytes:
    return safetensors.numpy.save(_ARRAYS)


def _npz() -> bytes:
    content = io.BytesIO()
    np.savez(content, **_ARRAYS)
    return content.getvalue()


def _hdf5() -> bytes:
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        for name, array in _ARRAYS.items():
            file.create_dataset(name, data=array)
    return content.getvalue()


def _pth(payload: Any = None) -> bytes:
    """The outer form of what torch.save writes, around any pickle."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(payload or dict.fromkeys(_ARRAYS, 1.0)))
        archive.writestr("archive/version", "3\n")
    return content.getvalue()


_GOOD: dict[str, Callable[[], bytes]] = {
    ".safetensors": _safetensors,
    ".npz": _npz,
    ".h5": _hdf5,
    ".pth": _pth,
}


# Hostile files. `harmed` is a file that their code would make.


class _Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.path}'",)


def _write_objects(path: Path, harmed: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, weight=np.array([_Touch(harmed)], object))


def _write_bomb(path: Path, harmed: Path) -> None:
    """A gigabyte of zeros in a megabyte."""
    del harmed
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("archive/data.pkl", "w", force_zip64=True) as file,
    ):
        for _ in range(1024):
            file.write(bytes(1 << 20))


def _write_header(path: Path, header: bytes, *, size: int | None = None) -> None:
    length = len(header) if size is None else size
    path.write_bytes(length.to_bytes(8, "little") + header)


def _write_outside(path: Path, harmed: Path) -> None:
    """Names of records that lie outside of the archive."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"../{harmed.name}", "x")
        archive.writestr("archive/data.pkl", pickle.dumps({}))


def _write_links(path: Path, harmed: Path) -> None:
    del harmed
    with h5py.File(path, "w") as file:
        file["secret"] = h5py.ExternalLink("/etc/passwd", "/")
        file["itself"] = h5py.SoftLink("/itself")


def _write_raw_files(path: Path, harmed: Path) -> None:
    """A dataset whose bytes are those of another file."""
    del harmed
    with h5py.File(path, "w") as file:
        file.create_dataset("w", shape=(100,), dtype="u1", external=[("/etc/passwd", 0, 100)])


_HUGE = json.dumps({"w": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 4]}})
_HOSTILE: dict[str, Callable[[Path, Path], object]] = {
    "code.pth": lambda path, harmed: path.write_bytes(_pth({"w": _Touch(harmed)})),
    "code.pt": lambda path, harmed: path.write_bytes(pickle.dumps({"w": _Touch(harmed)})),
    "code.npz": _write_objects,
    "code.safetensors": lambda path, harmed: path.write_bytes(pickle.dumps(_Touch(harmed))),
    "deep.pth": lambda path, harmed: path.write_bytes(b"\x80\x02" + b"(" * 1_000_000 + b"."),
    "bomb.pth": _write_bomb,
    "outside.pth": _write_outside,
    "deep.safetensors": lambda path, harmed: _write_header(path, b'{"a":' + b"[" * 500_000),
    "huge.safetensors": lambda path, harmed: _write_header(path, _HUGE.encode()),
    "long.safetensors": lambda path, harmed: _write_header(path, b"{}", size=2**62),
    "links.h5": _write_links,
    "raw.h5": _write_raw_files,
    "endless.pth": lambda path, harmed: path.symlink_to("/dev/zero"),
    "itself.h5": lambda path, harmed: path.symlink_to(path),
    "pipe.safetensors": lambda path, harmed: os.mkfifo(path),
    "folder.h5": lambda path, harmed: path.mkdir(),
}


FAULTS = {
    "weights-hostile": Fault(inject=weights_hostile, trials=len(_HOSTILE)),
    "weights-damaged": Fault(inject=weights_damaged, trials=12),
}
