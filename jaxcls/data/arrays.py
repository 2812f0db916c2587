"""Images of any number of channels and any type of numbers: .npy files, and TIFFs by tifffile.

A network sees 8 bits, so numbers of other types are mapped to 0 to 255 (`to_levels`).
"""

import io
import logging
import math
import re
import types

import numpy as np

from jaxcls.system.errors import DataError

_LENGTH_BYTES = {1: 2, 2: 4, 3: 4}  # of a .npy header, by version
_LONGEST_HEADER = 10_000  # bytes, as in NumPy
_TYPE = re.compile(r"'descr'\s*:\s*'([<>|=]?[biuf][0-9]+)'")
_ORDER = re.compile(r"'fortran_order'\s*:\s*(True|False)")
_SHAPE = re.compile(r"'shape'\s*:\s*\(([0-9, ]+)\)")
_ORIENTATION = 274  # a TIFF tag
_KINDS = "biuf"  # NumPy's kinds of types that are numbers: bool, whole, whole without sign, float

type ValueRange = tuple[float, float] | None


def to_levels(samples: np.ndarray, value_range: ValueRange, *, bits: int = 16) -> np.ndarray:
    """Maps numbers to 8 bits.

    Args:
      samples: [height, width, channels], of any real type; 8 bits without sign stay as they are.
      value_range: the numbers that become 0 and 255; those between are rounded, and those outside
        are clipped. Not-a-number becomes 0. None: 16 bits without sign keep their highest 8.
      bits: those that are used of samples of 16 bits.

    Returns:
      uint8 of the same shape.

    Raises:
      ValueError: the type needs a range.
    """
    if samples.dtype == np.uint8:
        return samples
    if value_range is None:
        if samples.dtype.newbyteorder("=") != np.uint16:
            raise ValueError(
                f"numbers of type {samples.dtype.name} have no defined black and white; train with "
                f"data.value_range, the two numbers that shall become 0 and 255"
            )
        return (samples >> max(bits - 8, 0)).astype(np.uint8)
    if samples.dtype.kind not in _KINDS:
        raise ValueError(f"{samples.dtype} is no type of real numbers")
    low, high = value_range
    levels = samples.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):  # infinity is clipped
        levels -= low
        levels *= 255
        levels /= high - low
    np.rint(levels, out=levels)
    np.clip(np.nan_to_num(levels, copy=False, nan=0), 0, 255, out=levels)
    return levels.astype(np.uint8)


def require_channels(found: int, channels: int, *, of: str = "it") -> None:
    """Checks that a file, or the part `of` it, has the channels that the config says.

    Raises:
      ValueError: it has another number.
    """
    if found != channels:
        raise ValueError(
            f"{of} has {found} channel{'s' * (found != 1)}, but data.channels is {channels}; "
            f"convert the file, or train with data.channels {found}"
        )


def npy_header(data: bytes) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Reads the header of a .npy file, and evaluates nothing in it.

    Returns:
      The shape; whether the first axis is the fastest; the type; where the numbers begin.

    Raises:
      ValueError: it is damaged, or does not hold numbers.
    """
    begin = 8 + _LENGTH_BYTES.get(data[6] if len(data) > 8 else 0, 4)
    end = begin + int.from_bytes(data[8:begin], "little")
    text = data[begin : min(end, begin + _LONGEST_HEADER)].decode("latin-1")
    found = [pattern.search(text) for pattern in (_TYPE, _ORDER, _SHAPE)]
    kind, order, sides = (match[1] if match else "" for match in found)
    if not (kind and order and sides):
        raise ValueError("a .npy file that is damaged or not of real numbers; save an image in it")
    shape = tuple(int(side) for side in sides.split(",") if side.strip())
    if min(shape, default=0) < 1:
        raise ValueError(f"a .npy file of shape {list(shape)}, without pixels")
    return shape, order == "True", np.dtype(kind), end


def npy_layout(shape: tuple[int, ...], channels: int) -> str:
    """Returns which axes an array has: "HW", "HWC" or "CHW".

    Args:
      shape: of the array.
      channels: the channels that an image shall have. For three, one counts as grey.

    Raises:
      ValueError: the array is not an image of so many channels, or either of two.
    """
    if len(shape) == 2:
        if channels not in (1, 3):
            require_channels(1, channels)
        return "HW"
    if len(shape) == 3:
        for fitting in (channels, 1) if channels == 3 else (channels,):
            layouts = [
                layout for layout, axis in (("HWC", 2), ("CHW", 0)) if shape[axis] == fitting
            ]
            if len(layouts) == 2:
                raise ValueError(
                    f"a .npy file of shape {list(shape)}, whose first or last axis may be the "
                    f"{fitting} channels; save an image of another height or width"
                )
            if layouts:
                return layouts[0]
        require_channels(min(shape[0], shape[2]), channels)
    raise ValueError(
        f"a .npy file of shape {list(shape)}; expected [height, width, channels], [channels, "
        f"height, width] or [height, width]"
    )


def npy_size(data: bytes, channels: int) -> tuple[int, int]:
    """Returns height and width of the image in a .npy file; raises as `read_npy`."""
    shape, *_ = npy_header(data)
    layout = npy_layout(shape, channels)
    return shape[layout.index("H")], shape[layout.index("W")]


def read_npy(data: bytes, channels: int) -> np.ndarray:
    """Returns the image in a .npy file, without a copy: [height, width, channels or 1].

    Raises:
      ValueError: it is damaged, or not an image of so many channels (`npy_layout`).
    """
    shape, is_fortran, dtype, start = npy_header(data)
    layout = npy_layout(shape, channels)
    count = math.prod(shape)
    if len(data) < start + count * dtype.itemsize:
        raise ValueError(f"a .npy file of shape {list(shape)} that is cut off")
    numbers = np.frombuffer(data, dtype, count=count, offset=start)
    image = numbers.reshape(shape, order="F" if is_fortran else "C")
    if layout == "HW":
        return image[..., None]
    return np.moveaxis(image, 0, -1) if layout == "CHW" else image


class TiffPage:
    """The first page of a TIFF, as stored: samples that are no colours, and of any type.

    Attributes:
      height: in pixels.
      width: in pixels.
      channels: samples of a pixel.
      bits: of a sample.
      orientation: 1 to 8.
    """

    def __init__(self, data: bytes):
        """Reads the header.

        Raises:
          DataError: tifffile is not installed.
          ValueError: the file is damaged.
        """
        tifffile = _tifffile()
        self._file = tifffile.TiffFile(io.BytesIO(data))
        page = self._file.pages.first
        if not isinstance(page, tifffile.TiffPage) or page.imagedepth != 1:
            raise ValueError("a TIFF of volumes; convert it to one image")
        self._page = page
        self._inverted = page.photometric == tifffile.PHOTOMETRIC.MINISWHITE
        self.height, self.width = page.imagelength, page.imagewidth
        self.channels, self.bits = page.samplesperpixel, page.bitspersample
        tag = page.tags.get(_ORIENTATION)
        self.orientation = tag.value if tag and tag.value in range(1, 9) else 1

    def levels(self, value_range: ValueRange) -> np.ndarray:
        """Decodes the pixels: uint8 [height, width, channels].

        Raises:
          DataError: a codec is not installed.
          ValueError: the pixels are damaged, or their type needs a range.
        """
        if not self.height * self.width * self.channels:
            raise ValueError("a TIFF without pixels")
        if self._page.dtype is None or self._page.dtype.kind not in _KINDS:
            raise ValueError("a TIFF of numbers of an unknown type")
        try:
            pixels = self._page.asarray(maxworkers=1)
        except ValueError as error:
            if "imagecodecs" in str(error):
                raise DataError(_lacking(str(error))) from error
            raise
        if pixels.ndim == 2:
            pixels = pixels[..., None]
        elif self._page.axes == "SYX":
            pixels = np.moveaxis(pixels, 0, -1)
        if pixels.shape != (self.height, self.width, self.channels):
            raise ValueError(f"a TIFF of shape {list(pixels.shape)}")
        levels = to_levels(pixels, value_range, bits=self.bits)
        return 255 - levels if self._inverted else levels


def _tifffile() -> types.ModuleType:
    try:
        import tifffile
    except ModuleNotFoundError as error:
        raise DataError(_lacking(str(error))) from error
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # it logs the same as it raises
    return tifffile


def _lacking(reason: str) -> str:
    return (
        f"data.channels, data.value_range: TIFFs of other channels than 1, 3 and 4, and those with "
        f"a range, need another package ({reason}): pip install 'jaxcls[multispectral]'"
    )
