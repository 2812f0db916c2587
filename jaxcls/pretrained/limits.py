"""Limits on what a weights file may declare, and safe handling of its texts and numbers.

This module does not import jax, because the process that reads HDF5 files imports it.
"""

from pathlib import Path

import numpy as np

MAX_BYTES = 16 * 2**30  # bytes of tensors; the largest EfficientNet has 0.5 GB
MAX_GROWTH = 8  # times the file's size; half precision read as single precision needs 2
ALWAYS_ALLOWED = 64 * 2**20  # bytes; a small file of zeros compresses well
MAX_DIMENSIONS = 8


class RefusedError(Exception):
    """A file is damaged or does what is not allowed; the message is a clause about "it"."""


def check_total(path: Path, declared: int) -> None:
    """Checks that a file's tensors do not need far more memory than the file has bytes.

    Args:
      path: the file.
      declared: the bytes that its tensors need as arrays.

    Raises:
      RefusedError: that is more than `MAX_BYTES`, or more than `MAX_GROWTH` times the file's size.
    """
    size = path.stat().st_size
    if declared > min(MAX_BYTES, max(ALWAYS_ALLOWED, MAX_GROWTH * size)):
        raise RefusedError(
            f"it declares {declared} bytes of tensors in a file of {size} bytes, which cannot be a "
            f"valid weights file"
        )


def excerpt(text: object, length: int = 80) -> str:
    """Returns the start of a text from a file, escaped to be harmless on a terminal."""
    text = str(text)
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:length])
    return shown if len(text) <= length else f"{shown}…"


def single_precision(array: np.ndarray) -> np.ndarray:
    """Converts floating-point numbers to float32, and others to the native byte order."""
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):  # becomes infinite, which the caller checks
            return np.ascontiguousarray(array, np.float32).reshape(array.shape)
    native = array.dtype.newbyteorder("=")
    return np.ascontiguousarray(array, native).reshape(array.shape)


def widen_bfloat16(bits: np.ndarray) -> np.ndarray:
    """Returns the float32 numbers whose upper halves are these 16 bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
