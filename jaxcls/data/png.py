"""Takes PNG files apart (W3C, third edition): pixels for Pillow, transparent colour, orientation.

Pillow decodes the pixels. But it refuses good images because of the size of a text or colour
profile, and it compares the transparent colour with samples that it has already scaled to 8 bits.
So it gets only the chunks that make up the pixels, and the transparent colour is applied here.
"""

import contextlib
import itertools
import re
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
import PIL.Image

from jaxcls.data.formats import PNG_SIGNATURE
from jaxcls.data.orientation import orientation

_OF_PIXELS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
_GREY, _RGB = 0, 2
_SAMPLES = {_GREY: 1, _RGB: 3}  # samples in tRNS; with a palette it lists alphas instead
_PACKET = b"xml:com.adobe.xmp"
_PROFILES = (b"raw profile type exif", b"raw profile type app1", b"raw profile type xmp")
_TEXTS = (*_PROFILES, _PACKET)  # texts that may hold an orientation, the most trusted first
_MOST_TEXTS = 8
_RAW_PROFILE = re.compile(rb"\s*\S+\s+\d+\s+([0-9a-fA-F\s]*)")  # name, length, hexadecimal digits
_LONGEST_TEXT = 1 << 24  # bytes of a decompressed profile that are read


class Png(NamedTuple):
    """The parts of a file.

    Attributes:
      pixels: a PNG file with the pixels only, without the transparent colour.
      key: the transparent colour as stored: grey, or red, green and blue; empty if there is none.
      bits: bits of a sample.
      orientation: 1 to 8.
    """

    pixels: bytes
    key: tuple[int, ...]
    bits: int
    orientation: int


def read_png(data: bytes) -> Png:
    """Takes a file apart; the decoder of the pixels must check for damage.

    Raises:
      ValueError: the file has Apple's own variant of PNG.
    """
    view, kept = memoryview(data), [memoryview(PNG_SIGNATURE)]
    key: tuple[int, ...] = ()
    bits = color = -1
    exif: list[bytes] = []
    texts: list[tuple[bytes, bytes, memoryview]] = []
    for kind, start, end in _chunks(data):
        body = view[start + 8 : end - 4]
        if kind == b"CgBI":
            raise ValueError("a PNG of Apple's own kind; convert it to a common PNG")
        if kind == b"IHDR":
            bits, color = body[8:10] if len(body) >= 10 else (-1, -1)
        if kind == b"tRNS" and color in _SAMPLES:
            count = _SAMPLES[color]
            if len(body) >= 2 * count:
                unused = 0xFFFF >> bits << bits  # the bits above a sample's, to be ignored
                key = tuple(n & ~unused for n in struct.unpack_from(f">{count}H", body))
        elif kind in _OF_PIXELS or not kind:
            kept.append(view[start:end])
        elif kind == b"eXIf":
            exif.append(bytes(body))
        elif kind in (b"tEXt", b"zTXt", b"iTXt"):
            name = bytes(body[:80]).partition(b"\0")[0].lower()
            if name in _TEXTS and len(texts) < _MOST_TEXTS:
                texts.append((name, kind, body))
    texts.sort(key=lambda text: _TEXTS.index(text[0]))
    blocks = itertools.chain(exif[:1], (_block(*text) for text in texts))
    return Png(b"".join(kept), key, bits, orientation(blocks))


def is_key(image: PIL.Image.Image, file: Png) -> np.ndarray:
    """Returns which pixels have the transparent colour, bool [height, width].

    Args:
      image: `file.pixels`, decoded by Pillow.
      file: a file with a key.
    """
    key: int | tuple[int, ...] = file.key[0] if len(file.key) == 1 else file.key
    if len(file.key) == 3 and file.bits == 16:  # Pillow keeps only 8 bits of each sample
        encoded = np.frombuffer(file.pixels, np.uint8)
        samples = np.asarray(cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED))[:, :, ::-1]
    else:
        samples = np.asarray(image)
        if file.bits in (2, 4):  # Pillow scales them to 0 to 255
            samples = samples // (255 // (2**file.bits - 1))
    same = samples == np.array(key, np.uint16)
    return same.all(axis=2) if same.ndim == 3 else same


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yields kind, start and end of each chunk up to IEND; a chunk that is cut off has no kind."""
    place = len(PNG_SIGNATURE)
    while place < len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4])
        kind = data[place + 4 : place + 8] if end <= len(data) else b""
        yield kind, place, end
        if kind == b"IEND":
            break
        place = end


def _block(name: bytes, kind: bytes, body: memoryview) -> bytes:
    """Returns the EXIF or XMP in a text, as ImageMagick stores it; empty if it is damaged."""
    text = _text(kind, body)
    if name == _PACKET:
        return text
    found = _RAW_PROFILE.match(text)
    digits = b"".join(found[1].split()) if found else b""
    return bytes.fromhex(digits[: len(digits) // 2 * 2].decode())


def _text(kind: bytes, body: memoryview) -> bytes:
    """Returns the text of a tEXt, zTXt or iTXt chunk; empty if it is damaged."""
    _, _, text = bytes(body).partition(b"\0")
    compressed = kind == b"zTXt"
    if compressed:
        text = text[1:]  # skips the compression method; there is only one
    elif kind == b"iTXt":
        compressed, text = text[:1] == b"\1", b"".join(text[2:].split(b"\0", 2)[2:])
    if compressed:
        with contextlib.suppress(zlib.error):
            return zlib.decompressobj().decompress(text, _LONGEST_TEXT)
        return b""
    return text[:_LONGEST_TEXT]
