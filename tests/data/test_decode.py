import io
import struct

import cv2
import numpy as np
import PIL.Image
import pytest
import simplejpeg

from jaxcls.data.decode import DataError, center_crop, decode_image, to_canvas
from jaxcls.errors import UserError


def photo(height, width, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 1.5)


def encode(image, kind, **options):
    file = io.BytesIO()
    PIL.Image.fromarray(image).save(file, kind, **options)
    return file.getvalue()


def pillow(data):
    return np.asarray(PIL.Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP", "GIF", "JPEG"])
@pytest.mark.parametrize("shape", [(31, 40), (1, 1), (1, 70)])
def test_decodes_like_pillow(kind, shape):
    data = encode(photo(*shape), kind)
    image = decode_image(data, where="it")
    assert image.dtype == np.uint8
    assert image.shape == (*shape, 3)
    assert np.abs(image - pillow(data)).max() <= (2 if kind == "JPEG" else 0)


def test_grey_becomes_rgb():
    grey = photo(9, 7)[:, :, 0]
    for data in (encode(grey, "PNG"), encode(grey, "JPEG", quality=100)):
        image = decode_image(data, where="it")
        assert image.shape == (9, 7, 3)
        assert np.abs(image - grey[:, :, None].astype(int)).max() <= 2
    deep = cv2.imencode(".png", grey.astype(np.uint16) * 257)[1].tobytes()
    np.testing.assert_array_equal(decode_image(deep, where="it")[:, :, 1], grey)


def test_cmyk_and_progressive_jpeg():
    file = io.BytesIO()
    PIL.Image.fromarray(photo(16, 16)).convert("CMYK").save(file, "JPEG", quality=95)
    for data in (file.getvalue(), encode(photo(16, 16), "JPEG", progressive=True)):
        assert np.abs(decode_image(data, where="it") - pillow(data)).max() <= 2


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP", "GIF", "JPEG"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.8])
def test_truncated_file_names_the_record(kind, share):
    data = encode(photo(64, 64), kind)
    with pytest.raises(DataError, match=r"^record 7 of photos train: .*cannot be decoded"):
        decode_image(data[: int(len(data) * share)], where="record 7 of photos train")


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n" + b"\0" * 40]
)
def test_not_an_image(data):
    with pytest.raises(DataError, match=f"cat.txt: .*{len(data)} bytes"):
        decode_image(data, where="cat.txt")


def test_decompression_bomb():
    bomb = bytearray(encode(photo(2, 2), "BMP"))
    bomb[18:26] = struct.pack("<ii", 60_000, 60_000)
    with pytest.raises(DataError, match="bomb"):
        decode_image(bytes(bomb), where="big.bmp")


def test_nothing_on_stderr(capfd):
    for kind in ("PNG", "JPEG", "WEBP"):
        data = encode(photo(64, 64), kind)
        with pytest.raises(DataError):
            decode_image(data[: len(data) // 2], where="it")
    assert capfd.readouterr() == ("", "")


def test_data_errors_are_user_errors():
    assert issubclass(DataError, UserError)
    assert issubclass(DataError, ValueError)


@pytest.mark.parametrize("shape", [(20, 30), (32, 32), (1, 1), (32, 5)])
def test_small_images_lie_unchanged_at_the_top_left(shape):
    image = photo(*shape)
    canvas, size = to_canvas(image, 32)
    assert canvas.shape == (32, 32, 3)
    assert canvas.dtype == np.uint8
    assert size.dtype == np.int32
    np.testing.assert_array_equal(size, shape)
    np.testing.assert_array_equal(canvas[: shape[0], : shape[1]], image)
    assert not canvas[shape[0] :].any()
    assert not canvas[:, shape[1] :].any()


@pytest.mark.parametrize(
    ("shape", "size"), [((64, 48), (32, 24)), ((33, 100), (11, 32)), ((1, 4000), (1, 32))]
)
def test_larger_images_shrink_with_their_aspect(shape, size):
    canvas, valid = to_canvas(np.full((*shape, 3), 77, np.uint8), 32)
    np.testing.assert_array_equal(valid, size)
    assert (canvas[: size[0], : size[1]] == 77).all()
    assert canvas.sum() == 77 * 3 * size[0] * size[1]


def test_shrinking_is_antialiased():
    stripes = np.zeros((96, 96, 3), np.uint8)
    stripes[:, ::2] = 255
    canvas, _ = to_canvas(stripes, 32)
    assert np.abs(canvas.astype(int) - 127).max() <= 50  # without antialiasing: 0 and 255


@pytest.mark.parametrize("shape", [(50, 70), (300, 200), (8, 8), (97, 1), (5, 400)])
@pytest.mark.parametrize(("image_size", "crop_fraction"), [(32, 0.875), (33, 0.9), (16, 1.0)])
def test_center_crop_is_pillows_resize_then_crop(shape, image_size, crop_fraction):
    image = photo(*shape)
    height, width = shape
    shorter = round(image_size / crop_fraction)
    height, width = (round(side * shorter / min(shape)) for side in shape)
    resized = PIL.Image.fromarray(image).resize((width, height), PIL.Image.Resampling.BILINEAR)
    top, left = (height - image_size) // 2, (width - image_size) // 2
    expected = np.asarray(resized)[top : top + image_size, left : left + image_size]
    actual = center_crop(image, image_size, crop_fraction)
    assert actual.dtype == np.uint8
    assert actual.shape == (image_size, image_size, 3)
    # Only the crop is computed; float rounding may move a pixel by one level.
    assert np.abs(actual.astype(int) - expected).max() <= 1
    assert (actual != expected).mean() < 0.001


def test_center_crop_of_a_very_long_image():
    assert (center_crop(np.full((1, 40_000, 3), 9, np.uint8), 224, 0.875) == 9).all()


def test_center_crop_of_the_exact_size_is_the_image():
    image = photo(24, 24)
    np.testing.assert_array_equal(center_crop(image, 24, 1.0), image)


def test_jpeg_of_simplejpeg_round_trips():
    image = np.full((16, 24, 3), (200, 30, 90), np.uint8)
    data = simplejpeg.encode_jpeg(image, quality=100)
    assert np.abs(decode_image(data, where="it") - image.astype(int)).max() <= 2
