"""Damage that faults of several themes do to files."""

import random
from pathlib import Path


def flipped(data: bytes, rng: random.Random) -> bytes:
    """The data with one bit flipped."""
    changed = bytearray(data)
    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def make_folder(path: Path) -> None:
    """Puts an empty folder in the place of a file, if there is one."""
    path.unlink(missing_ok=True)
    path.mkdir()
