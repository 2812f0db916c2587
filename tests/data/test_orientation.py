"""Orientations where cameras and programs leave them; Pillow's reader is the reference."""

import base64
import io
import struct
import zlib

import numpy as np
import PIL.Image
import PIL.ImageOps
import PIL.PngImagePlugin
import pytest

from jaxcls.data.decode import decode_image
from jaxcls.data.orientation import jpeg_orientation, orientation, upright

PIXELS = np.arange(6 * 9 * 3, dtype=np.uint8).reshape(6, 9, 3) + 40
TYPES = {1: "B", 3: "H", 4: "L", 6: "b", 8: "h", 9: "l"}
XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description {}</x:xmpmeta>'
ATTRIBUTE = XMP.format('tiff:Orientation="6"/>').encode()
ELEMENT = XMP.format("><tiff:Orientation>6</tiff:Orientation>").encode()
NAMED = XMP.format("xmlns:t='http://ns.adobe.com/tiff/1.0/' t:Orientation = '6'/>").encode()


def exif(value=6, *, order="MM", kind=3, before=0, directory=8, count=1, elsewhere=False):
    """An EXIF block with a directory of `before` other tags and the orientation."""
    sign = {"MM": ">", "II": "<"}[order]
    others = [struct.pack(f"{sign}HHLL", 0x0100 + tag, 4, 1, 7) for tag in range(before)]
    stored = struct.pack(f"{sign}{count}{TYPES[kind]}", *[value] * count)
    after = directory + 2 + 12 * (before + 1) + 4
    inline = struct.pack(f"{sign}L", after) if elsewhere else stored.ljust(4, b"\0")
    entry = struct.pack(f"{sign}HHL", 0x0112, kind, count) + inline
    head = order.encode() + struct.pack(f"{sign}HL", 42, directory)
    entries = struct.pack(f"{sign}H", before + 1) + b"".join([*others, entry]) + b"\0" * 4
    return b"Exif\0\0" + head.ljust(directory, b"\0") + entries + (stored if elsewhere else b"")


def segment(marker, body):
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def packet(xmp):
    return segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp)


def jpeg(*segments):
    file = io.BytesIO()
    PIL.Image.fromarray(PIXELS).save(file, "JPEG", quality=95)
    data = file.getvalue()
    return data[:2] + b"".join(segments) + data[2:]


def png(*chunks, after=()):
    file = io.BytesIO()
    PIL.Image.fromarray(PIXELS).save(file, "PNG")
    data = file.getvalue()
    return data[:33] + b"".join(chunks) + data[33:-12] + b"".join(after) + data[-12:]


def chunk(kind, body):
    return struct.pack(">L", len(body)) + kind + body + struct.pack(">L", zlib.crc32(kind + body))


def raw_profile(name, block, kind=b"zTXt"):
    """As ImageMagick writes it."""
    digits = base64.b16encode(block).lower()
    lines = b"\n".join(digits[i : i + 72] for i in range(0, len(digits), 72))
    text = b"\n%s\n%8d\n%s\n" % (name.split()[-1], len(block), lines)
    if kind == b"zTXt":
        return chunk(kind, name + b"\0\0" + zlib.compress(text))
    return chunk(kind, name + b"\0" + (b"\0\0\0\0" if kind == b"iTXt" else b"") + text)


def itxt(text, compressed):
    body = zlib.compress(text) if compressed else text
    return chunk(b"iTXt", b"XML:com.adobe.xmp\0%c\0en\0word\0" % compressed + body)


def turned(data):
    """Whether an image comes out as orientation 6 wants it."""
    image = decode_image(data, where="it").astype(int)
    expected = upright(PIXELS, 6)
    return image.shape == expected.shape and np.abs(image - expected).mean() < 8


@pytest.mark.parametrize("order", ["II", "MM"])
@pytest.mark.parametrize("kind", TYPES)
def test_every_type_of_whole_number(order, kind):
    for value in range(1, 9):
        block = exif(value, order=order, kind=kind)
        assert orientation([block]) == value
        assert orientation([block[6:]]) == value
    assert orientation([exif(6, order=order, kind=kind, before=3, directory=30)]) == 6
    assert orientation([exif(6, order=order, kind=kind, count=5, elsewhere=True)]) == 6


@pytest.mark.parametrize("kind", [3, 4])
@pytest.mark.parametrize("order", ["II", "MM"])
def test_jpegs_agree_with_pillow(order, kind):
    data = jpeg(segment(0xE1, exif(6, order=order, kind=kind, before=2)))
    with PIL.Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(PIL.ImageOps.exif_transpose(image)).astype(int)
    assert np.abs(decode_image(data, where="it") - expected).max() <= 2


EXTENSION = segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + b"0" * 65_000)
PROFILE = segment(0xE2, b"ICC_PROFILE\0\1\1" + b"x" * 65_000)
COMMENT = segment(0xFE, b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\3\0\0\0")  # speaks of 3


@pytest.mark.parametrize(
    "before",
    [
        [],
        [EXTENSION] * 3,
        [PROFILE] * 40,
        [COMMENT, EXTENSION],
        [b"\xff" * 5],  # filling
        [packet(ATTRIBUTE.replace(b"6", b"3"))],  # EXIF counts for more
        [segment(0xE1, b"Exif\0\0")],  # an empty block
        [segment(0xE1, b"Exif\0\0nonsense")],
    ],
)
def test_exif_stands_anywhere_before_the_first_scan(before):
    assert turned(jpeg(*before, segment(0xE1, exif())))


def test_exif_of_several_segments():
    block = exif(before=0, directory=70_000)
    parts = [segment(0xE1, b"Exif\0\0" + block[6:][i : i + 65_000]) for i in (0, 65_000)]
    assert turned(jpeg(*parts))


@pytest.mark.parametrize("xmp", [ATTRIBUTE, ELEMENT, NAMED])
def test_xmp_counts_where_exif_does_not_say(xmp):
    assert turned(jpeg(packet(xmp)))
    assert turned(jpeg(EXTENSION, packet(xmp), segment(0xE1, exif(0))))
    assert not turned(jpeg(packet(xmp), segment(0xE1, exif(1))))
    assert turned(png(itxt(xmp, compressed=False)))
    assert turned(png(itxt(xmp + b" " * 3_000_000, compressed=True)))


@pytest.mark.parametrize("value", [0, 9, 255])
def test_what_is_no_orientation_is_passed_over(value):
    assert orientation([exif(value, kind=1)]) == 1
    assert orientation([exif(value, kind=4), exif(3)]) == 3


def test_what_follows_the_first_scan_does_not_count():
    data = jpeg()
    assert jpeg_orientation(data[:-2] + segment(0xE1, exif()) + data[-2:]) == 1


def test_damaged_blocks_and_segments_are_upright():
    data = jpeg(segment(0xE1, exif(before=5)))
    generator = np.random.default_rng(0)
    for _ in range(500):
        damaged = bytearray(data)
        for place in generator.integers(110, size=4):
            damaged[place] = generator.integers(256)
        assert jpeg_orientation(bytes(damaged[: generator.integers(len(data))])) in range(1, 9)


@pytest.mark.parametrize(
    "chunks",
    [
        [chunk(b"eXIf", exif()[6:])],
        [chunk(b"eXIf", exif())],
        [raw_profile(b"Raw profile type exif", exif())],
        [raw_profile(b"Raw profile type APP1", exif(), b"tEXt")],
        [raw_profile(b"Raw profile type APP1", exif(order="II"), b"iTXt")],
        [raw_profile(b"Raw profile type xmp", ATTRIBUTE)],
        [raw_profile(b"Raw profile type APP1", b"http://ns.adobe.com/xap/1.0/\0" + ELEMENT)],
        [
            raw_profile(b"Raw profile type xmp", ATTRIBUTE.replace(b"6", b"3")),
            chunk(b"eXIf", exif()),
        ],
        [raw_profile(b"Raw profile type exif", exif(kind=4) + b"\0" * 2_000_000)],
        [chunk(b"zTXt", b"Raw profile type exif\0\0damaged"), chunk(b"eXIf", exif())],
    ],
)
def test_png_says_it_in_many_ways(chunks):
    assert turned(png(*chunks))
    assert turned(png(after=chunks))


@pytest.mark.parametrize("kind", ["WEBP", "AVIF", "TIFF"])
@pytest.mark.parametrize("value", range(1, 9))
def test_other_formats(kind, value):
    smooth = np.repeat(np.repeat(PIXELS, 8, axis=0), 8, axis=1)
    block = PIL.Image.Exif()
    block[0x0112] = value
    options = {} if kind == "TIFF" else {"quality": 100, "lossless": True}
    file = io.BytesIO()
    PIL.Image.fromarray(smooth).save(file, kind, exif=block.tobytes(), **options)
    image = decode_image(file.getvalue(), where="it").astype(int)
    expected = upright(smooth, value)
    assert image.shape == expected.shape
    assert np.abs(image - expected).mean() < 2


def test_xmp_of_webp():
    file = io.BytesIO()
    PIL.Image.fromarray(PIXELS).save(file, "WEBP", lossless=True, xmp=ELEMENT)
    assert turned(file.getvalue())
