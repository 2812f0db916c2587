import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcls.config.sizes import ImageSize
from jaxcls.data.resize import Interpolation, center_crop
from jaxcls.inference.center_crop_jax import center_crop_jax

SHAPES = [
    (50, 70),
    (300, 200),
    (8, 8),
    (97, 1),
    (5, 400),
    (1, 4000),
    (333, 501),
    (80, 40),
    (33, 33),
]


@pytest.mark.parametrize(
    ("image_size", "crop_fraction", "interpolation"),
    [
        (32, 0.875, "bilinear"),
        (33, 0.9, "bicubic"),
        (16, 1.0, "bicubic"),
        (224, 0.875, "bilinear"),
        ((24, 48), 0.875, "bilinear"),
        ((33, 16), 1.0, "bicubic"),
    ],
)
def test_a_program_for_any_shape_is_equal_to_pillow(
    image_size: ImageSize, crop_fraction: float, interpolation: Interpolation
) -> None:
    """To the bit, in shrinking and in growing, upright and lying."""

    def crop(images: jax.Array) -> jax.Array:
        return center_crop_jax(images, image_size, crop_fraction, interpolation)

    shape = jax.export.symbolic_shape("batch, height, width, 3")
    program = jax.export.export(jax.jit(crop))(jax.ShapeDtypeStruct(shape, jnp.uint8))
    for number, (height, width) in enumerate(SHAPES):
        generator = np.random.default_rng(number)
        images = generator.integers(256, size=(2, height, width, 3), dtype=np.uint8)
        expected = [center_crop(x, image_size, crop_fraction, interpolation) for x in images]
        np.testing.assert_array_equal(program.call(images), np.stack(expected))


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_any_number_of_channels_is_cropped_as_on_the_host(channels: int) -> None:
    images = np.random.default_rng(0).integers(256, size=(2, 50, 41, channels), dtype=np.uint8)
    expected = [center_crop(image, (24, 20), 0.9, "bicubic") for image in images]
    crops = center_crop_jax(jnp.asarray(images), (24, 20), 0.9, "bicubic")
    np.testing.assert_array_equal(crops, expected)


def test_no_float64_is_left_behind() -> None:
    crop = jax.jit(center_crop_jax, static_argnums=(1, 2))
    images = crop(jnp.zeros((1, 20, 30, 3), jnp.uint8), 16, 0.875)
    assert images.dtype == jnp.uint8
    assert jnp.arange(2.0).dtype == jnp.float32
