import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from jaxcls.augment import geometry


def on_canvas(image: np.ndarray, canvas_size: int, fill: int) -> tuple[jax.Array, jax.Array]:
    height, width, _ = image.shape
    canvas = np.full((1, canvas_size, canvas_size, 3), fill, np.uint8)
    canvas[0, :height, :width] = image
    return jnp.asarray(canvas), jnp.asarray([[height, width]], jnp.int32)


def photo(height: int, width: int) -> np.ndarray:
    image = Image.fromarray(load_sample_image("china.jpg"))
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(60, 60, 32), (64, 48, 32), (33, 61, 40), (20, 31, 36), (8, 8, 36)],
)
def test_resize_agrees_with_pillow(height: int, width: int, size: int) -> None:
    """Pillow's bilinear filter, antialiased where it shrinks, of the same centred square."""
    image = photo(height, width)
    canvas, sizes = on_canvas(image, 64, fill=0)
    actual = geometry.resize_valid(canvas, sizes, size)[0]
    side = min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    channels = [
        Image.fromarray(image[..., c].astype(np.float32)).resize(
            (size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side)
        )
        for c in range(3)
    ]
    expected = np.stack([np.asarray(channel) for channel in channels], axis=-1) / 255
    inner = slice(2, -2)  # Pillow's box cuts the filter at its border, ours may look beside it
    np.testing.assert_allclose(actual[inner, inner], expected[inner, inner], atol=1e-4)
    assert np.abs(actual - expected).mean() < 1 / 255


def test_what_lies_beside_the_image_has_no_influence() -> None:
    image = photo(21, 34)
    results = [
        geometry.resize_valid(*on_canvas(image, 48, fill=fill), 16) for fill in (0, 127, 255)
    ]
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_a_constant_image_stays_constant() -> None:
    canvas, sizes = on_canvas(np.full((5, 9, 3), 200, np.uint8), 16, fill=0)
    np.testing.assert_allclose(
        geometry.resize_valid(canvas, sizes, 12), np.full((1, 12, 12, 3), 200 / 255), rtol=1e-6
    )


def test_crops_are_windows_at_uniform_places() -> None:
    count, size, cut = 4000, 8, 6
    rows, cols = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    image = jnp.asarray(np.stack([rows, cols, rows * 0], axis=-1), jnp.float32)
    keys = jax.random.split(jax.random.key(0), count)
    images = jnp.broadcast_to(image, (count, size, size, 3))
    crops = np.asarray(geometry.random_crop(keys, images, cut))
    corners = crops[:, 0, 0, :2].astype(int)
    for crop, (top, left) in zip(crops[:50], corners, strict=False):
        np.testing.assert_array_equal(crop, image[top : top + cut, left : left + cut])
    counts = np.bincount(corners[:, 0] * 3 + corners[:, 1], minlength=9)
    np.testing.assert_allclose(counts / count, 1 / 9, atol=0.02)


def test_center_crop_is_central() -> None:
    images = jnp.arange(2 * 8 * 8 * 3, dtype=jnp.float32).reshape(2, 8, 8, 3)
    np.testing.assert_array_equal(geometry.center_crop(images, 4), images[:, 2:6, 2:6])


def test_half_of_the_images_are_mirrored() -> None:
    count = 4000
    image = jnp.arange(2 * 3 * 3, dtype=jnp.float32).reshape(2, 3, 3)
    keys = jax.random.split(jax.random.key(1), count)
    flipped = np.asarray(geometry.random_flip(keys, jnp.broadcast_to(image, (count, 2, 3, 3))))
    mirrored = (flipped == np.asarray(image[:, ::-1])).all(axis=(1, 2, 3))
    kept = (flipped == np.asarray(image)).all(axis=(1, 2, 3))
    assert (mirrored ^ kept).all()
    assert mirrored.mean() == pytest.approx(0.5, abs=0.03)
