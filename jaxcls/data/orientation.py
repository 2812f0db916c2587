"""How the camera was held, from what an image file says about itself, and how to undo it.

A reader of our own, because only one tag is wanted: Pillow's takes five times as long for every
photo, reads blocks that the tag has nothing to do with, and warns of damaged ones.
"""

import contextlib
import re
import struct
from collections.abc import Iterable

import numpy as np

_EXIF = b"Exif\0"
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_ORIENTATION = 0x0112
# TIFF 6.0's types that hold whole numbers, by their number: what `struct` calls them.
_WHOLE = {1: "B", 3: "H", 4: "L", 6: "b", 8: "h", 9: "l", 13: "L"}

_TIFF_PREFIX = re.compile(rb"xmlns:([\w.-]+)\s*=\s*[\"']http://ns\.adobe\.com/tiff/1\.0/[\"']")

_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})  # markers of JPEG without a length
_START_OF_SCAN, _END, _APP1 = 0xDA, 0xD9, 0xE1


def jpeg_orientation(data: bytes) -> int:
    """The orientation of a JPEG file, from the segments before its first scan; 1 to 8.

    They may come in any order, and XMP or a colour profile of megabytes before EXIF.
    """
    exif, xmp = [], b""
    place = 2
    while (place := data.find(b"\xff", place)) >= 0 and place + 4 <= len(data):
        marker = data[place + 1]
        if marker in (0x00, 0xFF):  # stuffed, or filling before a marker
            place += 1
        elif marker in _ALONE:
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
    # A block of more than 64 KiB goes on in further segments; but they may be blocks of their own.
    return orientation([b"".join(exif), *exif[1:], xmp]) if exif or xmp else 1


def orientation(blocks: Iterable[bytes]) -> int:
    """The first orientation that one of the blocks says, 1 to 8; 1, upright, if none does.

    Args:
      blocks: of EXIF or XMP, with or without their names in front, the most trusted first.
    """
    said = (_of_exif(block) or _of_xmp(block) for block in blocks)
    return next(filter(None, said), 1)


def _of_exif(block: bytes) -> int | None:
    """The orientation in the first directory (EXIF 2.32, section 4.6.4); None if it is not said."""
    while block.startswith(_EXIF):
        block = block[len(_EXIF) + 1 :]
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None:
        return None
    with contextlib.suppress(struct.error):  # it ends too early
        (directory,) = struct.unpack_from(f"{order}L", block, 4)
        (count,) = struct.unpack_from(f"{order}H", block, directory)
        for start in range(directory + 2, directory + 2 + 12 * count, 12):
            tag, kind, length = struct.unpack_from(f"{order}HHL", block, start)
            if tag == _ORIENTATION and kind in _WHOLE:
                form = f"{order}{_WHOLE[kind]}"
                place = start + 8
                if length * struct.calcsize(form) > 4:  # the value lies elsewhere
                    (place,) = struct.unpack_from(f"{order}L", block, place)
                return _valid(*struct.unpack_from(form, block, place))
    return None


def _of_xmp(packet: bytes) -> int | None:
    """`tiff:Orientation`, as an attribute or an element; None if it is not said."""
    prefix = _TIFF_PREFIX.search(packet)
    name = re.escape(prefix[1]) if prefix else b"tiff"
    found = re.search(rb"\b" + name + rb":Orientation\s*(?:=\s*[\"']|>)\s*(\d)\s*[\"'<]", packet)
    return _valid(int(found[1])) if found else None


def _valid(value: int) -> int | None:
    return value if 1 <= value <= 8 else None


def upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Undoes an orientation (EXIF 2.32, section 4.6.4): a transposition, then flips.

    Args:
      image: [height, width, channel].
      orientation: 1 to 8.

    Returns:
      The image itself for 1, else another, contiguous.
    """
    if orientation == 1:
        return image
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return np.ascontiguousarray(image[::rows, ::columns])
