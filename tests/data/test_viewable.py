import numpy as np
import PIL.Image
import pytest

from jaxcls.data.viewable import viewable


def pixels(channels: int) -> np.ndarray:
    return np.random.default_rng(0).integers(256, size=(3, 9, 7, channels), dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 2])
def test_grey_is_the_first_channel(channels: int) -> None:
    images = pixels(channels)
    np.testing.assert_array_equal(viewable(images), np.stack([images[..., 0]] * 3, axis=-1))


@pytest.mark.parametrize("channels", [3, 5, 13])
def test_the_first_three_channels_are_colours(channels: int) -> None:
    images = pixels(channels)
    np.testing.assert_array_equal(viewable(images), images[..., :3])


def test_four_channels_lie_over_white_as_in_pillow() -> None:
    images = pixels(4)
    for image, seen in zip(images, viewable(images), strict=True):
        white = PIL.Image.new("RGBA", (7, 9), "white")
        over = PIL.Image.alpha_composite(white, PIL.Image.fromarray(image)).convert("RGB")
        assert np.abs(seen.astype(int) - np.asarray(over)).max() <= 1
