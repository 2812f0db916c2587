"""BMP files written here from known pixels, and those that OpenCV reads, by OpenCV too."""

import struct

import cv2
import numpy as np
import pytest

from jaxcls.data.decode import decode_image
from jaxcls.system.errors import BrokenImageError

HEADERS = (40, 52, 56, 64, 108, 124)
PLAIN, RLE8, RLE4, FIELDS, ALPHA_FIELDS = 0, 1, 2, 3, 6
WHITE = np.array([255, 255, 255])


def write(
    rows, *, width, height, bits, header=40, compression=PLAIN, masks=(), palette=b"", used=0, gap=0
):
    """A file of rows that are packed already, lowest first where height is positive."""
    if header == 12:
        info = struct.pack("<IHHHH", 12, width, height, 1, bits)
    else:
        size = len(rows)
        info = struct.pack(
            "<IiiHHIIiiII", header, width, height, 1, bits, compression, size, 0, 0, used, 0
        )
        inside = struct.pack(f"<{len(masks)}I", *masks)
        info = (info + inside)[: max(header, 40 + len(inside))].ljust(header, b"\0")
    offset = 14 + len(info) + len(palette) + gap
    head = b"BM" + struct.pack("<IHHI", offset + len(rows), 0, 0, offset)
    return head + info + palette + b"\0" * gap + rows


def packed(indices, bits):
    """Rows of `bits` a pixel, filled to 32 bits."""
    planes = indices[:, :, None] >> np.arange(bits - 1, -1, -1) & 1
    rows = np.packbits(planes.reshape(len(indices), -1).astype(np.uint8), axis=1)
    return np.pad(rows, ((0, 0), (0, -rows.shape[1] % 4))).tobytes()


def words(numbers, bits):
    """Rows of little-endian numbers, filled to 32 bits."""
    rows = numbers.astype("<u4").view(np.uint8).reshape(*numbers.shape, 4)[:, :, : bits // 8]
    rows = rows.reshape(len(numbers), -1)
    return np.pad(rows, ((0, 0), (0, -rows.shape[1] % 4))).tobytes()


def opencv(data):
    return np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR))[:, :, ::-1]


def palette_of(count, entry, grey=False):
    colors = np.random.default_rng(count).integers(256, size=(count, 3), dtype=np.uint8)
    if grey:
        colors = np.repeat(np.linspace(0, 255, count).astype(np.uint8)[:, None], 3, axis=1)
    stored = np.zeros((count, entry), np.uint8)
    stored[:, :3] = colors[:, ::-1]
    return colors, stored.tobytes()


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("header", [12, *HEADERS])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palettes(bits, header, grey):
    indices = np.random.default_rng(bits).integers(2**bits, size=(5, 13))
    colors, palette = palette_of(2**bits, 3 if header == 12 else 4, grey)
    data = write(
        packed(indices[::-1], bits), width=13, height=5, bits=bits, header=header, palette=palette
    )
    np.testing.assert_array_equal(decode_image(data, where="it"), colors[indices])
    if bits != 2:
        np.testing.assert_array_equal(opencv(data), colors[indices])
    if header != 12:
        data = write(
            packed(indices, bits), width=13, height=-5, bits=bits, header=header, palette=palette
        )
        np.testing.assert_array_equal(decode_image(data, where="it"), colors[indices])


@pytest.mark.parametrize("used", [1, 2, 5])
def test_short_palettes(used):
    """Two colours in a file of 8 bits a pixel, of which Pillow makes one of 1 bit."""
    indices = np.random.default_rng(0).integers(used, size=(5, 13))
    colors, palette = palette_of(used, 4, grey=True)
    data = write(
        packed(indices[::-1], 8), width=13, height=5, bits=8, palette=palette, used=used, gap=6
    )
    np.testing.assert_array_equal(decode_image(data, where="it"), colors[indices])


MASKS = {
    16: [
        (0xF800, 0x07E0, 0x001F, 0),
        (0x7C00, 0x03E0, 0x001F, 0),
        (0x7C00, 0x03E0, 0x001F, 0x8000),
        (0x0F00, 0x00F0, 0x000F, 0xF000),
        (0x00E0, 0x001C, 0x0003, 0),
        (0x001F, 0x07E0, 0xF800, 0),
        (0x0003, 0x0FFC, 0xF000, 0),
    ],
    24: [(0xFF0000, 0xFF00, 0xFF, 0), (0xFF, 0xFF00, 0xFF0000, 0), (0xFC0000, 0x3F000, 0xFFF, 0)],
    32: [
        (0xFF0000, 0xFF00, 0xFF, 0),
        (0xFF0000, 0xFF00, 0xFF, 0xFF000000),
        (0xFF000000, 0xFF0000, 0xFF00, 0xFF),
        (0xFF, 0xFF00, 0xFF0000, 0xFF000000),
        (0x3FF00000, 0xFFC00, 0x3FF, 0xC0000000),
        (0x1FFFFF, 0x3E00000, 0xFC000000, 0),
        (0xFF, 0, 0, 0),
    ],
}


@pytest.mark.parametrize("header", [40, 52, 56, 108, 124])
@pytest.mark.parametrize(("bits", "masks"), [(n, masks) for n in MASKS for masks in MASKS[n]])
def test_bit_fields(bits, masks, header):
    """Whatever the masks, a field's highest value is 255; alpha is laid over the background."""
    limit = 4 if header >= 56 else 3  # the shorter have no mask of alpha, but by ALPHA_FIELDS
    numbers = np.random.default_rng(0).integers(2**bits, size=(7, 5), dtype=np.uint32)
    numbers[0, :3] = 0, 2**bits - 1, masks[3]
    compression = FIELDS
    if masks[3] and header == 40:
        limit, compression = 4, ALPHA_FIELDS
    data = write(
        words(numbers[::-1], bits),
        width=5,
        height=7,
        bits=bits,
        header=header,
        compression=compression,
        masks=masks[:limit],
    )
    fields = [
        (numbers & mask).astype(float) / mask if mask else np.zeros(numbers.shape) for mask in masks
    ]
    alpha = fields[3] if masks[3] and limit == 4 else np.ones(numbers.shape)
    colors = 255 * np.stack(fields[:3], axis=2)
    expected = colors * alpha[:, :, None] + WHITE * (1 - alpha[:, :, None])
    image = decode_image(data, where="it", background="#ffffff")
    assert np.abs(image - expected).max() <= 1.3


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("bits", [16, 24, 32])
def test_without_masks(bits, header):
    """The fourth byte of 32 bits says nothing then."""
    numbers = np.random.default_rng(0).integers(2**bits, size=(6, 7), dtype=np.uint32)
    shifts, highest = ((10, 5, 0), 31) if bits == 16 else ((16, 8, 0), 255)
    expected = np.stack([(numbers >> shift & highest) * 255 / highest for shift in shifts], axis=2)
    for height, rows in ((6, numbers[::-1]), (-6, numbers)):
        data = write(words(rows, bits), width=7, height=height, bits=bits, header=header)
        image = decode_image(data, where="it")
        assert np.abs(image - expected).max() <= 0.51
        assert np.abs(image - opencv(data).astype(int)).max() <= (8 if bits == 16 else 0)


@pytest.mark.parametrize("gap", [0, 1, 5])
def test_run_lengths(gap):
    colors, palette = palette_of(256, 4)
    runs8 = bytes([3, 7, 0, 3, 1, 2, 3, 0, 0, 0])  # 7 7 7 1 2 3, end of line
    runs8 += bytes([0, 2, 2, 1, 2, 9, 0, 0])  # 2 to the right and 1 up, then 9 9
    runs8 += bytes([1, 4, 9, 5, 0, 1])  # 4, then more 5 than there is room; end
    data = write(runs8, width=6, height=4, bits=8, compression=RLE8, palette=palette, gap=gap)
    lowest_first = np.array([[7, 7, 7, 1, 2, 3], [0] * 6, [0, 0, 9, 9, 0, 0], [4, 5, 5, 5, 5, 5]])
    np.testing.assert_array_equal(decode_image(data, where="it"), colors[lowest_first[::-1]])
    colors, palette = palette_of(16, 4)
    runs4 = bytes([5, 0x12, 0, 0, 0, 5, 0x34, 0x56, 0x70, 0, 0, 1])  # 1 2 1 2 1; 3 4 5 6 7
    data = write(runs4, width=5, height=2, bits=4, compression=RLE4, palette=palette, gap=gap)
    np.testing.assert_array_equal(
        decode_image(data, where="it"), colors[np.array([[3, 4, 5, 6, 7], [1, 2, 1, 2, 1]])]
    )


def test_a_short_header_of_os2():
    info = struct.pack("<IIIHH", 16, 3, 1, 1, 24)
    data = b"BM" + struct.pack("<IHHI", 42, 0, 0, 30) + info + bytes(range(9)) + b"\0" * 3
    assert decode_image(data, where="it").tolist() == [[[2, 1, 0], [5, 4, 3], [8, 7, 6]]]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"compression": 4}, "JPEG inside is not supported"),
        ({"compression": 5}, "PNG inside is not supported"),
        ({"header": 64, "compression": 4}, "OS/2's compression"),
        ({"bits": 64}, "64 bits a pixel"),
        ({"bits": 8, "compression": RLE4}, "8 bits a pixel and compression 2"),
        ({"width": 0}, "0 x 2 pixels"),
        ({"height": 3}, "cut off"),
        ({"header": 2000}, "header of 2000 bytes"),
    ],
)
def test_what_is_not_read_is_named(changes, reason):
    options = {"width": 2, "height": 2, "bits": 24, **changes}
    with pytest.raises(BrokenImageError, match=f"^cat.bmp: .*{reason}"):
        decode_image(write(b"\0" * 16, **options), where="cat.bmp")


@pytest.mark.parametrize(
    "options",
    [
        {"bits": 24},
        {"bits": 24, "header": 12},
        {"bits": 8, "palette": bytes(1024)},
        {"bits": 8, "palette": bytes(1024), "compression": RLE8},
        {"bits": 16, "compression": 3, "palette": struct.pack("<3I", 0xF800, 0x7E0, 0x1F)},
    ],
)
def test_a_file_that_is_cut_off_anywhere_is_called_so(options):
    data = write(b"\1" * (2 * options["bits"]), width=4, height=4, **options)
    for length in range(2, len(data)):
        with pytest.raises(BrokenImageError, match=r"^cat\.bmp: .*the file is cut off"):
            decode_image(data[:length], where="cat.bmp")
