"""Damage to files."""

import random
from collections.abc import Callable, Mapping
from pathlib import Path


def flipped(data: bytes, rng: random.Random) -> bytes:
    """The data with one bit flipped."""
    changed = bytearray(data)
    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut(path: Path, rng: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(len(data))])


def _write_noise(path: Path, rng: random.Random) -> None:
    """Replaces up to 1,000 bytes by random ones."""
    data = bytearray(path.read_bytes())
    start = rng.randrange(len(data))
    data[start : start + 1000] = rng.randbytes(len(data[start : start + 1000]))
    path.write_bytes(data)


def _replace_by_folder(path: Path, rng: random.Random) -> None:
    del rng
    path.unlink()
    path.mkdir()


type Damage = Callable[[Path, random.Random], object]

# What each does to a file, which is not empty.
DAMAGES: Mapping[str, Damage] = {
    "cut": _cut,
    "emptied": lambda path, rng: path.write_bytes(b""),
    "missing": lambda path, rng: path.unlink(),
    "flipped": lambda path, rng: path.write_bytes(flipped(path.read_bytes(), rng)),
    "noise": _write_noise,
    "a folder": _replace_by_folder,
}
