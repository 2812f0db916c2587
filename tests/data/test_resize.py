import cv2
import numpy as np
import PIL.Image
import pytest

from jaxcls.data.resize import center_crop, fit


def photo(height, width, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 1.5)


def psnr(image, reference):
    return 10 * np.log10(255**2 / np.mean((image.astype(float) - reference) ** 2))


@pytest.mark.parametrize("shape", [(20, 30), (32, 32), (1, 1), (32, 5)])
def test_small_images_are_left_as_they_are(shape):
    image = photo(*shape)
    assert fit(image, 32) is image


@pytest.mark.parametrize(
    ("shape", "size"),
    [((64, 48), (32, 24)), ((33, 100), (11, 32)), ((1, 4000), (1, 32)), ((40, 33), (32, 26))],
)
def test_larger_images_shrink_with_their_aspect(shape, size):
    image = fit(np.full((*shape, 3), 77, np.uint8), 32)
    assert image.shape == (*size, 3)
    assert image.dtype == np.uint8
    assert (image == 77).all()


def test_shrinking_is_antialiased():
    stripes = np.zeros((96, 96, 3), np.uint8)
    stripes[:, ::2] = 255
    for size in (32, 50):
        assert np.abs(fit(stripes, size).astype(int) - 127).max() <= 50  # without: 0 and 255


@pytest.mark.parametrize("size", [390, 350, 300, 250, 201])
def test_shrinking_is_near_pillows_antialiased_resize(size):
    image = cv2.GaussianBlur(photo(400, 300), (0, 0), 1.0)
    width = round(300 * size / 400)
    reference = PIL.Image.fromarray(image).resize((width, size), PIL.Image.Resampling.BILINEAR)
    assert psnr(fit(image, size), np.asarray(reference)) > 40


@pytest.mark.parametrize("shape", [(50, 70), (300, 200), (8, 8), (97, 1), (5, 400)])
@pytest.mark.parametrize(("image_size", "crop_fraction"), [(32, 0.875), (33, 0.9), (16, 1.0)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_center_crop_is_pillows_resize_then_crop(shape, image_size, crop_fraction, interpolation):
    image = photo(*shape)
    height, width = shape
    shorter = round(image_size / crop_fraction)
    height, width = (round(side * shorter / min(shape)) for side in shape)
    resized = PIL.Image.fromarray(image).resize(
        (width, height), PIL.Image.Resampling[interpolation.upper()]
    )
    top, left = (height - image_size) // 2, (width - image_size) // 2
    expected = np.asarray(resized)[top : top + image_size, left : left + image_size]
    actual = center_crop(image, image_size, crop_fraction, interpolation)
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


@pytest.mark.parametrize("shape", [(50, 70), (300, 200), (8, 8), (97, 3), (5, 400), (40, 80)])
@pytest.mark.parametrize(("size", "crop_fraction"), [((16, 32), 0.875), ((33, 20), 1.0)])
def test_a_rectangle_is_cut_out_of_the_smallest_image_that_covers_it(shape, size, crop_fraction):
    image = photo(*shape)
    scale = max(round(kept / crop_fraction) / side for kept, side in zip(size, shape, strict=True))
    height, width = (round(side * scale) for side in shape)
    resized = PIL.Image.fromarray(image).resize((width, height), PIL.Image.Resampling.BICUBIC)
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    expected = np.asarray(resized)[top : top + size[0], left : left + size[1]]
    actual = center_crop(image, size, crop_fraction, "bicubic")
    assert actual.shape == (*size, 3)
    assert np.abs(actual.astype(int) - expected).max() <= 1


def test_equal_sides_are_a_square():
    image = photo(50, 70)
    square = center_crop(image, 32, 0.875)
    np.testing.assert_array_equal(center_crop(image, (32, 32), 0.875), square)


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 6, 13])
@pytest.mark.parametrize("size", [90, 70, 33])
def test_any_number_of_channels_shrinks_each_as_in_an_image_of_three(channels, size):
    image = photo(100, 80)[..., np.arange(channels) % 3]
    image[..., -1] = 255 - image[..., -1]  # Pillow would take it for alpha
    cropped = center_crop(image, (size, 40), 0.9, "bicubic")
    assert cropped.shape == (size, 40, channels)
    fitting = fit(image, size)
    assert fitting.dtype == cropped.dtype == np.uint8
    for channel in range(channels):
        grey = np.repeat(image[..., channel, None], 3, axis=2)
        np.testing.assert_array_equal(fitting[..., channel], fit(grey, size)[..., 0])
        expected = center_crop(grey, (size, 40), 0.9, "bicubic")[..., 0]
        np.testing.assert_array_equal(cropped[..., channel], expected)


def test_grey_is_cropped_as_by_pillow():
    image = photo(60, 60)[..., :1]
    resized = PIL.Image.fromarray(image[..., 0]).resize((32, 32), PIL.Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(center_crop(image, 32, 1.0)[..., 0], np.asarray(resized))
