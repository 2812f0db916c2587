"""PNG files of every kind, written here from known samples, and read by OpenCV too."""

import io
import struct
import zlib

import cv2
import numpy as np
import PIL.Image
import pytest

from jaxcls.data.decode import decode_image
from jaxcls.system.errors import BrokenImageError

GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGBA: 4}
KINDS = [
    *[(GREY, bits) for bits in (1, 2, 4, 8, 16)],
    *[(PALETTE, bits) for bits in (1, 2, 4, 8)],
    *[(color, bits) for color in (RGB, GREY_ALPHA, RGBA) for bits in (8, 16)],
]
ADAM7 = (
    (0, 0, 8, 8),
    (0, 4, 8, 8),
    (4, 0, 8, 4),
    (0, 2, 4, 4),
    (2, 0, 4, 2),
    (0, 1, 2, 2),
    (1, 0, 2, 1),
)
BACKGROUND = (10, 100, 255)


def chunk(kind, body):
    return struct.pack(">L", len(body)) + kind + body + struct.pack(">L", zlib.crc32(kind + body))


def packed(samples, bits):
    """Rows of a PNG's filter type 0: samples [height, width, channel] in `bits` each."""
    rows = samples.reshape(len(samples), -1)
    if bits == 16:
        rows = rows.astype(">u2").view(np.uint8)
    elif bits < 8:
        planes = rows[:, :, None] >> np.arange(bits - 1, -1, -1) & 1
        rows = np.packbits(planes.reshape(len(rows), -1).astype(np.uint8), axis=1)
    return b"".join(b"\0" + row.astype(np.uint8).tobytes() for row in rows)


def write(samples, color, bits, *, interlaced=False, extra=(), palette=None, trns=None):
    height, width = samples.shape[:2]
    header = struct.pack(">LLBBBBB", width, height, bits, color, 0, 0, interlaced)
    passes = [samples[y::dy, x::dx] for y, x, dy, dx in ADAM7] if interlaced else [samples]
    rows = b"".join(packed(part, bits) for part in passes if part.size)
    compressed = zlib.compress(rows)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            *extra,
            b"" if palette is None else chunk(b"PLTE", palette.tobytes()),
            b"" if trns is None else chunk(b"tRNS", trns),
            *[chunk(b"IDAT", compressed[i : i + 50]) for i in range(0, len(compressed), 50)],
            chunk(b"IEND", b""),
        ]
    )


def samples_of(color, bits, shape=(11, 13)):
    generator = np.random.default_rng(bits + 20 * color)
    return generator.integers(2**bits, size=(*shape, CHANNELS[color]), dtype=np.uint16)


def expected_pixels(samples, color, bits, *, palette, alphas, key):
    """By the standard, in whole numbers and at the end in floating point."""
    height, width = samples.shape[:2]
    highest = 2**bits - 1
    if color == PALETTE:
        colors = palette[samples[:, :, 0]].astype(float)
        alpha = alphas[samples[:, :, 0]] / 255
    else:
        scaled = samples >> 8 if bits == 16 else samples * 255 // highest
        with_alpha = color in (GREY_ALPHA, RGBA)
        alpha = scaled[:, :, -1] / 255 if with_alpha else np.ones((height, width))
        colors = scaled[:, :, :-1] if with_alpha else scaled
        colors = np.broadcast_to(colors, (height, width, 3)).astype(float)
        if key is not None:
            alpha = np.where((samples == key).all(axis=2), 0, alpha)
    return colors * alpha[:, :, None] + np.array(BACKGROUND) * (1 - alpha[:, :, None])


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("transparent", [False, True])
@pytest.mark.parametrize(("color", "bits"), KINDS)
def test_every_kind(color, bits, transparent, interlaced):
    samples = samples_of(color, bits)
    palette, alphas, key, trns = None, np.full(256, 255), None, None
    if color == PALETTE:
        generator = np.random.default_rng(0)
        palette = generator.integers(256, size=(2**bits, 3), dtype=np.uint8)
        if transparent:
            trns = generator.integers(256, size=max(1, 2**bits - 1), dtype=np.uint8).tobytes()
            alphas[: len(trns)] = list(trns)
    elif color in (GREY, RGB) and transparent:
        key = samples[3, 4]
        samples[5:7, 2:9] = key
        samples[8, 1:9] = key ^ 1  # apart by the lowest bit, of 16 as of 1
        trns = struct.pack(f">{len(key)}H", *key.tolist())
    data = write(samples, color, bits, interlaced=interlaced, palette=palette, trns=trns)
    image = decode_image(data, where="it", background="#0a64ff")
    expected = expected_pixels(samples, color, bits, palette=palette, alphas=alphas, key=key)
    assert np.abs(image - expected).max() <= 1.01
    if key is not None:
        assert (image[5:7, 2:9] == BACKGROUND).all()
    if trns is None and color not in (GREY_ALPHA, RGBA):
        opencv = np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR))
        assert np.abs(image - opencv[:, :, ::-1].astype(int)).max() <= 1


def test_opencv_sees_the_same_alpha():
    for color, bits in ((RGBA, 8), (RGBA, 16)):
        data = write(samples_of(color, bits), color, bits)
        rgba = np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED))
        rgba = (rgba >> (bits - 8)).astype(float)
        alpha = rgba[:, :, 3:] / 255
        expected = rgba[:, :, 2::-1] * alpha + np.array(BACKGROUND) * (1 - alpha)
        image = decode_image(data, where="it", background="#0a64ff")
        assert np.abs(image - expected).max() <= 1.01


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_bits_above_a_sample_do_not_count_in_its_key(bits):
    samples = np.zeros((2, 2, 1), np.uint16)
    data = write(samples, GREY, bits, trns=struct.pack(">H", 1 << bits))
    assert (decode_image(data, where="it") == 255).all()


def test_metadata_of_megabytes():
    samples = samples_of(RGB, 8)
    text = b"<rdf:li>of a long history</rdf:li>" * 100_000
    extra = [
        chunk(b"iCCP", b"profile\0\0" + zlib.compress(b"\1" * 3_000_000)),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(text)),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + text),
        chunk(b"tEXt", b"Comment\0" + text),
        *[chunk(b"zTXt", b"Comment\0\0" + zlib.compress(text))] * 30,
        chunk(b"caBX", b"\0" * 2_000_000),
        chunk(b"tEXt", b"Author\0me")[:-1] + b"?",  # a wrong checksum
    ]
    data = write(samples, RGB, 8, extra=extra)
    np.testing.assert_array_equal(decode_image(data, where="it"), samples)


@pytest.mark.parametrize("kind", [b"IDAT", b"tEXt"])
def test_a_chunk_that_is_cut_off(kind):
    data = write(samples_of(RGB, 8), RGB, 8, extra=[chunk(b"tEXt", b"Comment\0" + b"x" * 50)])
    place = data.index(kind) + 20
    with pytest.raises(BrokenImageError, match="cannot be decoded"):
        decode_image(data[:place], where="it")


def test_a_palette_that_is_missing():
    file = io.BytesIO()
    PIL.Image.new("P", (3, 3)).save(file, "PNG")
    start = file.getvalue().index(b"PLTE") - 4
    end = start + 12 + int.from_bytes(file.getvalue()[start : start + 4])
    data = file.getvalue()[:start] + file.getvalue()[end:]
    with pytest.raises(BrokenImageError, match=r"it: the image cannot be decoded \(.+; \d+ bytes"):
        decode_image(data, where="it")


def test_what_follows_the_end_does_not_count():
    samples = samples_of(GREY, 8)
    data = write(samples, GREY, 8) + b"\0" * 7
    np.testing.assert_array_equal(decode_image(data, where="it")[:, :, :1], samples)


def test_apples_own_kind_is_named():
    data = write(samples_of(RGB, 8), RGB, 8)
    data = data[:8] + chunk(b"CgBI", b"\0" * 4) + data[8:]
    with pytest.raises(BrokenImageError, match="Apple's own kind"):
        decode_image(data, where="it")
