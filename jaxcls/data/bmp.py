"""Reads BMP files of every kind with pixels: Windows' and OS/2's headers, bit masks, run lengths.

Pillow reads only eleven layouts of bit masks, misreads palettes of greys, and cannot read 2 bits a
pixel (https://learn.microsoft.com/windows/win32/gdi/bitmap-storage).
"""

import struct
from typing import NamedTuple

import numpy as np

_FILE_HEADER = 14
_CORE = 12  # size of the oldest header
_OS2 = frozenset({16, 64})  # sizes of OS/2's second header, with other numbers for compressions
_PLAIN, _RLE8, _RLE4, _MASKED, _ALPHA_MASKED = 0, 1, 2, 3, 6  # compressions
_OTHER = {4: "JPEG", 5: "PNG", 11: "CMYK", 12: "CMYK", 13: "CMYK"}
_DEFAULT_MASKS = {
    16: (0x7C00, 0x03E0, 0x001F, 0),
    24: (0xFF0000, 0xFF00, 0xFF, 0),
    32: (0xFF0000, 0xFF00, 0xFF, 0),
}
_BAND = 1 << 20  # pixels that are unpacked at once


class Header(NamedTuple):
    """The part of a file before the pixels.

    Attributes:
      height: height of the image in pixels.
      width: width of the image in pixels.
      top_down: whether the first row is the top one.
      bits: bits of a pixel: 1, 2, 4, 8, 16, 24 or 32.
      compression: the file's number of the compression.
      masks: the bits of red, green, blue and alpha in a pixel of 16 bits or more.
      palette: uint8 [256, 3]; black where the file has no colour.
      offset: where the pixels begin in the file.
    """

    height: int
    width: int
    top_down: bool
    bits: int
    compression: int
    masks: tuple[int, int, int, int]
    palette: np.ndarray
    offset: int


def read_header(data: bytes) -> Header:
    """Reads the part of a file before the pixels.

    Raises:
      ValueError: the file is cut off, damaged, or of an unsupported kind; the message says which.
    """
    _require_bytes(data, _FILE_HEADER + 4)
    offset, size = struct.unpack_from("<II", data, 10)
    compression = used = 0
    if size == _CORE or 16 <= size <= 1024:
        _require_bytes(data, _FILE_HEADER + min(size, 40))
    if size == _CORE:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
    elif 16 <= size <= 1024:
        header = data[_FILE_HEADER : _FILE_HEADER + min(size, 40)].ljust(40, b"\0")
        _, width, height, _, bits, compression, _, _, _, used, _ = struct.unpack(
            "<IiiHHIIiiII", header
        )
    else:
        raise ValueError(f"BMP with a header of {size} bytes is not supported")
    if width < 1 or height == 0:
        raise ValueError(f"BMP of {width} x {height} pixels")
    if compression in _OTHER or (size in _OS2 and compression > _RLE4):
        kind = "OS/2's compression" if size in _OS2 else f"{_OTHER[compression]} inside"
        raise ValueError(f"BMP with {kind} is not supported; convert it to PNG")
    allowed = {_PLAIN: (1, 2, 4, 8, 16, 24, 32), _RLE8: (8,), _RLE4: (4,)}
    allowed[_MASKED] = allowed[_ALPHA_MASKED] = (16, 24, 32)
    if bits not in allowed.get(compression, ()):
        raise ValueError(
            f"BMP of {bits} bits a pixel and compression {compression} is not supported"
        )
    end = _FILE_HEADER + size
    masks = _DEFAULT_MASKS.get(bits, (0, 0, 0, 0))
    if compression in (_MASKED, _ALPHA_MASKED):
        # Masks follow the shortest header, and are at the same place inside longer ones.
        count = 4 if compression == _ALPHA_MASKED or size >= 56 else 3
        end = max(end, _FILE_HEADER + 40 + 4 * count)
        _require_bytes(data, _FILE_HEADER + 40 + 4 * count)
        stored = struct.unpack_from(f"<{count}I", data, _FILE_HEADER + 40)
        red, green, blue, alpha = (*stored, 0)[:4]
        masks = (red, green, blue, alpha) if any(stored) else masks
    entry = 3 if size == _CORE else 4
    colors = 0 if bits > 8 else min(used or 1 << bits, 1 << bits)
    if offset > end:
        colors = min(colors, (offset - end) // entry)
    _require_bytes(data, end + colors * entry)
    palette = np.zeros((256, 3), np.uint8)
    stored = np.frombuffer(data, np.uint8, colors * entry, end).reshape(colors, entry)
    palette[:colors] = stored[:, 2::-1]
    return Header(
        height=abs(height),
        width=width,
        top_down=height < 0,
        bits=bits,
        compression=compression,
        masks=masks,
        palette=palette,
        offset=offset if offset >= end else end + colors * entry,
    )


def _require_bytes(data: bytes, needed: int) -> None:
    """Checks that the file does not end before the pixels begin.

    Raises:
      ValueError: the file has fewer than `needed` bytes.
    """
    if len(data) < needed:
        raise ValueError("the file is cut off, it ends before the pixels")


def read_pixels(data: bytes, header: Header) -> np.ndarray:
    """Decodes the pixels.

    Returns:
      uint8 [height, width, 3], or [height, width, 4] with alpha where the header has a mask for it.

    Raises:
      ValueError: the file ends too early.
    """
    if header.compression in (_RLE8, _RLE4):
        pixels = header.palette[_run_lengths(data, header)]
    else:
        stride = (header.width * header.bits + 31) // 32 * 4
        missing = header.offset + header.height * stride - len(data)
        if missing > 0:
            raise ValueError(f"the file is cut off, {missing} bytes are missing")
        rows = np.frombuffer(data, np.uint8, header.height * stride, header.offset)
        rows = rows.reshape(header.height, stride)
        if header.bits <= 8:
            pixels = header.palette[_unpack(rows, header.bits)[:, : header.width]]
        else:
            pixels = _unpack_channels(rows, header)
    return pixels if header.top_down else pixels[::-1]


def _unpack(rows: np.ndarray, bits: int) -> np.ndarray:
    """Returns palette indices of 1, 2, 4 or 8 bits; the first pixel is in the highest bits."""
    shifts = np.arange(8 - bits, -1, -bits, dtype=np.uint8)
    return (rows[:, :, None] >> shifts & ((1 << bits) - 1)).reshape(len(rows), -1)


def _unpack_channels(rows: np.ndarray, header: Header) -> np.ndarray:
    """Returns the colours (and alpha) that the masks select, scaled to 8 bits."""
    size, width = header.bits // 8, header.width
    masks = header.masks if header.masks[3] else header.masks[:3]
    pixels = np.empty((len(rows), width, len(masks)), np.uint8)
    step = max(1, _BAND // width)
    for start in range(0, len(rows), step):
        band = rows[start : start + step, : width * size].reshape(-1, width, size)
        words = np.zeros((*band.shape[:2], 4), np.uint8)
        words[:, :, :size] = band
        numbers = words.view("<u4")[:, :, 0]
        for channel, mask in enumerate(masks):
            pixels[start : start + step, :, channel] = _scaled(numbers, mask)
    return pixels


def _scaled(numbers: np.ndarray, mask: int) -> np.ndarray | int:
    """Returns the bits under a mask, scaled from their range to 0 to 255."""
    if mask == 0:
        return 0
    lowest = (mask & -mask).bit_length() - 1
    lowest = max(lowest, mask.bit_length() - 16)  # lower bits than the highest 16 do not matter
    highest = mask >> lowest
    table = (np.arange(highest + 1) * 255 + highest // 2) // highest
    return table.astype(np.uint8)[(numbers & mask) >> lowest]


def _run_lengths(data: bytes, header: Header) -> np.ndarray:
    """Decodes run lengths to palette indices [height, width]; skipped pixels have index 0.

    Raises:
      ValueError: the file ends before the last pixel.
    """
    height, width = header.height, header.width
    four = header.compression == _RLE4
    indices = np.zeros((height, width), np.uint8)
    x = y = 0
    place = header.offset
    while y < height:
        if place + 2 > len(data):
            raise ValueError(f"the file is cut off, {height - y} rows are missing")
        count, value = data[place : place + 2]
        place += 2
        if count:
            run = [value >> 4, value & 15] * (count // 2 + 1) if four else [value] * count
        elif value == 0:
            x, y = 0, y + 1
            continue
        elif value == 1:
            break
        elif value == 2:
            right, up = data[place : place + 2].ljust(2, b"\0")
            x, y, place = x + right, y + up, place + 2
            continue
        else:
            count = value
            length = (count + 1) // 2 if four else count
            packed = np.frombuffer(data[place : place + length], np.uint8)
            run = _unpack(packed[None], 4)[0] if four else packed
            place += length + length % 2
        room = max(0, width - x)
        count = min(count, len(run), room)
        indices[y, x : x + count] = run[:count]
        x += count
    return indices
