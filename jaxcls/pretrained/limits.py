"""What a file may claim to hold, before memory is taken for it, and how its texts are shown."""

from pathlib import Path

import numpy as np

from jaxcls.models.weights_info import WeightsError

MAX_BYTES = 16 * 2**30  # of tensors; the largest EfficientNet has 0.5 GB
MAX_GROWTH = 8  # times the file's size: half precision read as single needs 2
ALWAYS_ALLOWED = 64 * 2**20  # bytes; a small file of zeros compresses well
MAX_DIMENSIONS = 8


def check_total(path: Path, declared: int) -> None:
    """Refuses a file whose tensors would take far more memory than the file has bytes.

    Args:
      path: the file.
      declared: bytes that its tensors take as arrays, as far as they are known.

    Raises:
      WeightsError: there are more than `MAX_BYTES`, or more than `MAX_GROWTH` times the file's.
    """
    size = path.stat().st_size
    if declared > min(MAX_BYTES, max(ALWAYS_ALLOWED, MAX_GROWTH * size)):
        raise WeightsError(
            f"{path}: declares {declared} bytes of tensors in a file of "
            f"{size} bytes; this is no honest weights file"
        )


def printable(text: object, length: int = 80) -> str:
    """The start of a text out of a file, harmless on a terminal: "\\n" and "\\x1b" are escaped."""
    text = str(text)
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:length])
    return shown if len(text) <= length else f"{shown}…"


def single_precision(array: np.ndarray) -> np.ndarray:
    """Floating-point numbers of any width as native float32; all else in the native byte order."""
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):  # to infinity; whoever uses the numbers looks for those
            return np.ascontiguousarray(array, np.float32).reshape(array.shape)
    native = array.dtype.newbyteorder("=")
    return np.ascontiguousarray(array, native).reshape(array.shape)


def widen_bfloat16(bits: np.ndarray) -> np.ndarray:
    """The float32 whose upper halves are these 16 bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
