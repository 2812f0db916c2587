"""Images of any number of channels and any type of numbers, against NumPy and tifffile."""

import importlib.util
import io
import sys
import tracemalloc

import numpy as np
import pytest
import tifffile

from jaxcls.data.arrays import to_levels
from jaxcls.data.decode import decode_image, image_header
from jaxcls.system.errors import BrokenImageError, DataError

TYPES = ["uint8", "uint16", ">u2", "int16", "uint32", "int64", "float16", "float32", ">f8"]


def npy(array, *, version=None):
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version, allow_pickle=True)
    return file.getvalue()


def numbers(*shape, dtype="uint16"):
    return (
        np.random.default_rng(0)
        .integers(0, 256 if dtype == "uint8" else 30_000, shape)
        .astype(dtype)
    )


def header(text, *, version=b"\1\0"):
    """A .npy file of nothing but this header."""
    size = len(text).to_bytes(2 if version == b"\1\0" else 4, "little")
    return b"\x93NUMPY" + version + size + text.encode()


# --- Numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES[1:])
@pytest.mark.parametrize("value_range", [(0.0, 4000.0), (-20_000.0, 30_000.0), (100.5, 101.25)])
def test_a_range_maps_its_ends_to_0_and_255_rounds_and_clips(dtype, value_range):
    low, high = value_range
    samples = numbers(9, 7, 2, dtype=dtype)
    exact = (samples.astype(np.float64) - low) * 255 / (high - low)
    levels = to_levels(samples, value_range)
    assert levels.dtype == np.uint8
    np.testing.assert_array_equal(levels, np.clip(np.round(exact), 0, 255))
    ends = np.array([low - 1e6, low, (low + high) / 2 + 1e-3, high, high + 1e6])
    assert to_levels(ends, value_range).tolist() == [0, 0, 128, 255, 255]


def test_what_is_not_finite_is_clipped_and_not_a_number_is_0():
    samples = np.array([np.nan, -np.inf, np.inf, 3e38], np.float32)
    assert to_levels(samples, (0.0, 1.0)).tolist() == [0, 0, 255, 255]
    assert to_levels(np.array([1.7e308, -1.7e308]), (-1e300, 1e300)).tolist() == [255, 0]


def test_eight_bits_stay_and_sixteen_keep_their_highest_eight():
    bytes_ = numbers(5, 4, 3, dtype="uint8")
    for value_range in (None, (10.0, 20.0)):
        assert to_levels(bytes_, value_range) is bytes_
    for dtype in ("<u2", ">u2"):
        words = np.arange(2**16).astype(dtype)
        np.testing.assert_array_equal(to_levels(words, None), words.astype(int) // 256)


@pytest.mark.parametrize("dtype", ["bool", "int8", "int16", "uint32", "float32", "float64"])
def test_a_type_without_a_white_needs_a_range(dtype):
    data = npy(np.zeros((4, 5), dtype))
    with pytest.raises(
        BrokenImageError, match=rf"^it: .*{dtype} .*train with data\.value_range, the"
    ):
        decode_image(data, where="it")
    assert decode_image(data, where="it", value_range=(0.0, 1.0)).shape == (4, 5, 3)


def test_what_is_no_real_number_is_refused():
    for samples in (np.zeros((2, 2), complex), np.zeros((2, 2), "U1"), np.zeros((2, 2), object)):
        with pytest.raises(ValueError, match="is no type of real numbers"):
            to_levels(samples, (0.0, 1.0))


# --- .npy ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6, 13])
def test_npy_is_what_was_saved(dtype, order, channels):
    image = np.asarray(numbers(9, 7, channels, dtype=dtype), order=order)
    expected = to_levels(image, (0.0, 30_000.0))
    for array in (image, np.asarray(np.moveaxis(image, 2, 0), order=order)):
        for version in ((1, 0), (2, 0), (3, 0)):
            data = npy(array, version=version)
            levels = decode_image(data, where="", channels=channels, value_range=(0.0, 30_000.0))
            np.testing.assert_array_equal(levels, expected)
            assert image_header(data, channels=channels) == ("NPY", 9, 7)
    if channels == 1:
        flat = npy(np.asarray(image[..., 0], order=order))
        levels = decode_image(flat, where="", channels=1, value_range=(0.0, 30_000.0))
        np.testing.assert_array_equal(levels, expected)


@pytest.mark.parametrize("shape", [(9, 7), (9, 7, 1), (1, 9, 7)])
def test_a_grey_npy_is_repeated_for_three_channels(shape):
    image = numbers(*shape, dtype="uint8")
    pixels = decode_image(npy(image), where="it")
    np.testing.assert_array_equal(pixels, np.repeat(image.reshape(9, 7, 1), 3, axis=2))


@pytest.mark.parametrize(
    ("shape", "channels", "found"),
    [
        ((9, 7), 4, "1 channel"),
        ((9, 7), 6, "1 channel"),
        ((9, 7, 3), 1, "3 channels"),
        ((9, 7, 4), 3, "4 channels"),
        ((5, 9, 7), 6, "5 channels"),
    ],
)
def test_another_number_of_channels_is_named_beside_the_field(shape, channels, found):
    data = npy(np.zeros(shape, np.uint8))
    message = f"it has {found}, but data.channels is {channels}; .* data.channels {found[0]};"
    with pytest.raises(BrokenImageError, match=message):
        decode_image(data, where="it", channels=channels)


def test_an_array_that_may_be_read_in_two_ways_is_refused():
    with pytest.raises(BrokenImageError, match="first or last axis may be the 6 channels"):
        decode_image(npy(np.zeros((6, 9, 6), np.uint8)), where="it", channels=6)
    assert decode_image(npy(np.zeros((6, 6, 9), np.uint8)), where="", channels=6).shape == (6, 9, 6)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (npy(np.array([[{}]], object)), "not of real numbers"),
        (npy(np.zeros((4, 4), np.complex64)), "not of real numbers"),
        (npy(np.zeros((4, 4), "U3")), "not of real numbers"),
        (npy(np.zeros((4, 4), [("red", np.uint8)])), "not of real numbers"),
        (npy(np.zeros((0, 4), np.uint8)), "without pixels"),
        (npy(np.zeros((), np.uint8)), "damaged"),
        (npy(np.zeros(7, np.uint8)), r"expected \[height, width, channels\]"),
        (npy(np.zeros((1, 4, 4, 3), np.uint8)), r"expected \[height, width, channels\]"),
        (npy(np.zeros((40, 40), np.uint8))[:-1], "cut off"),
        (npy(np.zeros((40, 40), np.uint8))[:30], "damaged"),
        (npy(np.zeros((40, 40), np.uint8))[:7], "damaged"),
        (header("{'descr': '|u1', 'fortran_order': False, 'shape': (-4, -4), }"), "damaged"),
        (header("{'descr': '|u1', 'fortran_order': False, 'shape': (4, True), }"), "damaged"),
        (header("{'descr': '<f3', 'fortran_order': False, 'shape': (4, 4), }"), ""),
        (header("{'descr': '|u1', 'shape': (4, 4), }"), "damaged"),
        (header("[" * 5000), "damaged"),
        (header("__import__('os').abort()"), "damaged"),
        (header(f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({'9' * 5000}, 4), }}"), ""),
    ],
)
def test_npy_that_is_not_an_image(data, reason):
    with pytest.raises(BrokenImageError, match=f"^scan.npy: .*{reason}"):
        decode_image(data, where="scan.npy")


@pytest.mark.parametrize("shape", [(40_000, 40_000), (3, 40_000, 40_000), (10**30, 10**30)])
def test_the_size_is_checked_before_memory_is_allocated(shape):
    data = header(f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}")
    tracemalloc.start()
    with pytest.raises(BrokenImageError, match=r"pixels are more than .*decompression bomb"):
        decode_image(data, where="it", value_range=(0.0, 1.0))
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    with pytest.raises(BrokenImageError, match="pixels are more than 80"):
        decode_image(npy(np.zeros((9, 9), np.uint8)), where="it", max_pixels=80)


# --- TIFF by tifffile ----------------------------------------------------------------------------


def tiff(image, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, image, **{"photometric": "minisblack", **options})
    return file.getvalue()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("channels", [2, 5, 13])
@pytest.mark.parametrize("order", "<>")
def test_a_multispectral_tiff_is_what_was_saved(dtype, channels, order):
    image = numbers(37, 52, channels, dtype=dtype)
    expected = to_levels(image, (0.0, 30_000.0))
    planes = np.moveaxis(image, 2, 0)
    for data in (
        tiff(image, planarconfig="contig", byteorder=order),
        tiff(planes, planarconfig="separate", byteorder=order),
        tiff(image, planarconfig="contig", byteorder=order, compression="zlib"),
        tiff(planes, planarconfig="separate", byteorder=order, tile=(16, 16), compression="zlib"),
        tiff(image, planarconfig="contig", byteorder=order, bigtiff=True, rowsperstrip=5),
    ):
        levels = decode_image(data, where="", channels=channels, value_range=(0.0, 30_000.0))
        np.testing.assert_array_equal(levels, expected)
        assert image_header(data, channels=channels) == ("TIFF", 37, 52)


def test_without_a_range_a_tiff_keeps_its_highest_bits():
    image = numbers(9, 7, 5)
    pixels = decode_image(tiff(image, planarconfig="contig"), where="it", channels=5)
    np.testing.assert_array_equal(pixels, image >> 8)
    with pytest.raises(BrokenImageError, match=r"float32 .*train with data\.value_range"):
        decode_image(tiff(image.astype(np.float32), planarconfig="contig"), where="it", channels=5)


@pytest.mark.parametrize("dtype", ["uint16", "int16", "uint32", "float32"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_deep_tiff_of_one_three_or_four_channels_has_a_range_too(dtype, channels):
    image = numbers(9, 7, channels, dtype=dtype)
    kind = "minisblack" if channels == 1 else "rgb"
    extra = ["unassalpha"] * (channels == 4)
    data = tiff(image[..., 0] if channels == 1 else image, photometric=kind, extrasamples=extra)
    pixels = decode_image(data, where="it", channels=channels, value_range=(100.0, 30_000.0))
    np.testing.assert_array_equal(pixels, to_levels(image, (100.0, 30_000.0)))


def test_a_deep_grey_tiff_with_a_range_is_repeated_and_may_be_inverted():
    image = numbers(9, 7)
    expected = np.repeat(to_levels(image, (0.0, 3e4))[..., None], 3, axis=2)
    for photometric, sign in (("minisblack", 0), ("miniswhite", 255)):
        pixels = decode_image(
            tiff(image, photometric=photometric), where="it", value_range=(0.0, 3e4)
        )
        np.testing.assert_array_equal(pixels, expected ^ sign)


def test_a_tiff_of_eight_bits_has_colours_whatever_the_range():
    image = numbers(9, 7, 3, dtype="uint8")
    data = tiff(image, photometric="rgb")
    np.testing.assert_array_equal(decode_image(data, where="", value_range=(0.0, 9.0)), image)


def test_a_multispectral_tiff_is_turned_upright():
    image = numbers(9, 7, 5, dtype="uint8")
    data = tiff(image, planarconfig="contig", extratags=[(274, "H", 1, 6, True)])
    pixels = decode_image(data, where="it", channels=5)
    np.testing.assert_array_equal(pixels, np.rot90(image, -1))


def test_tiffs_of_other_channels_and_sizes_are_refused():
    data = tiff(np.zeros((9, 7, 5), np.uint8), planarconfig="contig")
    with pytest.raises(
        BrokenImageError, match=r"its first page has 5 channels, but data\.channels is 6;"
    ):
        decode_image(data, where="it", channels=6)
    with pytest.raises(BrokenImageError, match="7 x 9 pixels are more than 60,"):
        decode_image(data, where="it", channels=5, max_pixels=60)
    pages = tiff(np.zeros((5, 9, 7), np.uint8))
    with pytest.raises(
        BrokenImageError, match=r"its first page has 1 channel, but data\.channels is 5;"
    ):
        decode_image(pages, where="it", channels=5)


def test_a_missing_package_is_no_broken_image(monkeypatch):
    """Otherwise data.broken "skip" would leave out every image."""
    monkeypatch.setitem(sys.modules, "tifffile", None)
    data = tiff(np.zeros((9, 7, 5), np.uint8), planarconfig="contig")
    with pytest.raises(DataError, match=r"pip install 'jaxcls\[multispectral\]'") as caught:
        decode_image(data, where="it", channels=5)
    assert not isinstance(caught.value, BrokenImageError)


@pytest.mark.skipif(
    importlib.util.find_spec("imagecodecs") is not None, reason="every codec is installed"
)
def test_a_missing_codec_is_no_broken_image():
    data = bytearray(tiff(np.zeros((9, 7, 5), np.uint8), planarconfig="contig"))
    at = data.index((259).to_bytes(2, "little")) + 8
    assert data[at] == 1
    data[at] = 5  # LZW
    with pytest.raises(DataError, match=r"imagecodecs.*'jaxcls\[multispectral\]'") as caught:
        decode_image(bytes(data), where="it", channels=5)
    assert not isinstance(caught.value, BrokenImageError)


def test_damaged_tiffs_and_arrays_give_an_image_or_the_one_error():
    image = numbers(12, 10, 5)
    generator = np.random.default_rng(0)
    for data in (tiff(image, planarconfig="contig", compression="zlib"), npy(image)):
        for _ in range(200):
            damaged = bytearray(data)
            for place in generator.integers(min(len(data), 400), size=3):
                damaged[place] = generator.integers(256)
            try:
                pixels = decode_image(bytes(damaged), where="", channels=5, max_pixels=1 << 20)
            except DataError:
                continue
            assert (pixels.dtype, pixels.shape[2:]) == (np.uint8, (5,))
