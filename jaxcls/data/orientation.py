"""Reads the orientation of an image from its EXIF or XMP data, and turns the image upright.

This reads one tag only. Pillow's reader takes five times as long for each photo, reads unrelated
blocks, and warns about damaged ones.
"""

import contextlib
import re
import struct
from collections.abc import Iterable

import numpy as np

_EXIF = b"Exif\0"
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_ORIENTATION = 0x0112
# `struct` formats of the integer types of TIFF 6.0, by the number of the type.
_INTEGERS = {1: "B", 3: "H", 4: "L", 6: "b", 8: "h", 9: "l", 13: "L"}

_TIFF_PREFIX = re.compile(rb"xmlns:([\w.-]+)\s*=\s*[\"']http://ns\.adobe\.com/tiff/1\.0/[\"']")

_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})  # JPEG markers without a segment
_START_OF_SCAN, _END, _APP1 = 0xDA, 0xD9, 0xE1


def jpeg_orientation(data: bytes) -> int:
    """Returns the orientation of a JPEG file, 1 to 8, from the segments before its first scan.

    Segments may be in any order, for example megabytes of XMP or a colour profile before EXIF.
    """
    exif, xmp = [], b""
    place = 2
    while (place := data.find(b"\xff", place)) >= 0 and place + 4 <= len(data):
        marker = data[place + 1]
        if marker in (0x00, 0xFF):  # an escaped 0xFF byte, or filling before a marker
            place += 1
        elif marker in _WITHOUT_LENGTH:
            place += 2
        elif marker in (_START_OF_SCAN, _END):
            break
        else:
            end = place + 2 + max(2, int.from_bytes(data[place + 2 : place + 4]))
            if marker == _APP1 and data.startswith(_EXIF, place + 4):
                exif.append(data[place + 10 : end])
            elif marker == _APP1 and not xmp and data.startswith(_XMP, place + 4):
                xmp = data[place + 4 + len(_XMP) : end]
            place = end
    # Several segments may be one block of more than 64 KiB, or separate blocks: try both.
    return orientation([b"".join(exif), *exif[1:], xmp]) if exif or xmp else 1


def orientation(blocks: Iterable[bytes]) -> int:
    """Returns the orientation in the first block that has one, 1 to 8; else 1, upright.

    Args:
      blocks: EXIF or XMP blocks, with or without their header, the most trusted first.
    """
    found = (_exif_orientation(block) or _xmp_orientation(block) for block in blocks)
    return next(filter(None, found), 1)


def _exif_orientation(block: bytes) -> int | None:
    """Returns the orientation in the first directory (EXIF 2.32, section 4.6.4), or None."""
    while block.startswith(_EXIF):
        block = block[len(_EXIF) + 1 :]
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None:
        return None
    with contextlib.suppress(struct.error):  # the block is cut off
        (directory,) = struct.unpack_from(f"{order}L", block, 4)
        (count,) = struct.unpack_from(f"{order}H", block, directory)
        for start in range(directory + 2, directory + 2 + 12 * count, 12):
            tag, kind, length = struct.unpack_from(f"{order}HHL", block, start)
            if tag == _ORIENTATION and kind in _INTEGERS:
                form = f"{order}{_INTEGERS[kind]}"
                place = start + 8
                if length * struct.calcsize(form) > 4:  # here is only the offset of the value
                    (place,) = struct.unpack_from(f"{order}L", block, place)
                return _valid(*struct.unpack_from(form, block, place))
    return None


def _xmp_orientation(packet: bytes) -> int | None:
    """Returns `tiff:Orientation`, an attribute or an element, or None."""
    prefix = _TIFF_PREFIX.search(packet)
    name = re.escape(prefix[1]) if prefix else b"tiff"
    found = re.search(rb"\b" + name + rb":Orientation\s*(?:=\s*[\"']|>)\s*(\d)\s*[\"'<]", packet)
    return _valid(int(found[1])) if found else None


def _valid(value: int) -> int | None:
    return value if 1 <= value <= 8 else None


def upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turns an image upright (EXIF 2.32, section 4.6.4): a transposition, then flips.

    Args:
      image: [height, width, channel].
      orientation: 1 to 8.

    Returns:
      The image itself if the orientation is 1, else a contiguous copy.
    """
    if orientation == 1:
        return image
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return np.ascontiguousarray(image[::rows, ::columns])
