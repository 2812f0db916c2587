"""PNG files: what to give to the decoder of pixels, and what else they say (W3C, third edition).

Pillow decodes the pixels. It refuses good ones for the size of a text or colour profile beside
them, and it looks for the colour that a file makes transparent after it has scaled the samples to 8
bits. So it is given only the chunks that pixels are made of, and the colour is looked for here.
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

from jaxcls.data.orientation import orientation

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_OF_PIXELS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
_GREY, _RGB = 0, 2
_SAMPLES = {_GREY: 1, _RGB: 3}  # in tRNS; palettes have a list of alphas there
_PACKET = b"xml:com.adobe.xmp"
_PROFILES = (b"raw profile type exif", b"raw profile type app1", b"raw profile type xmp")
_TEXTS = (*_PROFILES, _PACKET)  # in which an orientation may be, the most trusted first
_MOST_TEXTS = 8
_RAW_PROFILE = re.compile(rb"\s*\S+\s+\d+\s+([0-9a-fA-F\s]*)")  # name, length, hexadecimal digits
_LONGEST_TEXT = 1 << 24  # bytes of a profile that are looked at, once it is inflated


class Png(NamedTuple):
    """A file taken apart.

    Attributes:
      pixels: a PNG file of the pixels alone, without a transparent colour.
      key: that colour, as samples are stored: grey, or red, green and blue; empty if there is none.
      bits: of a sample.
      orientation: 1 to 8.
    """

    pixels: bytes
    key: tuple[int, ...]
    bits: int
    orientation: int


def read_png(data: bytes) -> Png:
    """Takes a file apart; what is damaged is left to the decoder of its pixels.

    Raises:
      ValueError: it is of Apple's own kind.
    """
    view, kept = memoryview(data), [memoryview(SIGNATURE)]
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
                unused = 0xFFFF >> bits << bits  # higher than a sample; to be passed over
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
    """Which pixels have the transparent colour, bool [height, width].

    Args:
      image: of `file.pixels`, decoded by Pillow.
      file: with a key.
    """
    key: int | tuple[int, ...] = file.key[0] if len(file.key) == 1 else file.key
    if len(file.key) == 3 and file.bits == 16:  # Pillow has the upper half of each sample
        encoded = np.frombuffer(file.pixels, np.uint8)
        samples = np.asarray(cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED))[:, :, ::-1]
    else:
        samples = np.asarray(image)
        if file.bits in (2, 4):  # Pillow spreads them over 0 to 255
            samples = samples // (255 // (2**file.bits - 1))
    same = samples == np.array(key, np.uint16)
    return same.all(axis=2) if same.ndim == 3 else same


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, begin and end of each chunk up to IEND; one that is cut off has no kind."""
    place = len(SIGNATURE)
    while place < len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4])
        kind = data[place + 4 : place + 8] if end <= len(data) else b""
        yield kind, place, end
        if kind == b"IEND":
            break
        place = end


def _block(name: bytes, kind: bytes, body: memoryview) -> bytes:
    """The EXIF or XMP in a text; ImageMagick stores it in hexadecimal digits. Empty if damaged."""
    text = _text(kind, body)
    if name == _PACKET:
        return text
    found = _RAW_PROFILE.match(text)
    digits = b"".join(found[1].split()) if found else b""
    return bytes.fromhex(digits[: len(digits) // 2 * 2].decode())


def _text(kind: bytes, body: memoryview) -> bytes:
    """The text of a tEXt, zTXt or iTXt chunk; empty if it is damaged."""
    _, _, text = bytes(body).partition(b"\0")
    compressed = kind == b"zTXt"
    if compressed:
        text = text[1:]  # the method, of which there is one
    elif kind == b"iTXt":
        compressed, text = text[:1] == b"\1", b"".join(text[2:].split(b"\0", 2)[2:])
    if compressed:
        with contextlib.suppress(zlib.error):
            return zlib.decompressobj().decompress(text, _LONGEST_TEXT)
        return b""
    return text[:_LONGEST_TEXT]
