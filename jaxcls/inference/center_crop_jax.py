"""The crop and resize of evaluation in JAX, for exported programs, which have no Pillow.

The result equals that of `jaxcls.data.resize.center_crop` to the bit. Evaluation and prediction use
that one, because this one is compiled again for each image size.

Pillow resizes along the width, rounds to 8 bits, and then resizes along the height. Its weights are
multiples of 2**-22, so each pass is exact in 32-bit integers, in whatever order it is summed.
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxcls.config.sizes import ImageSize, height_and_width
from jaxcls.data.resize import Interpolation, crop_range, uncropped

_FRACTION_BITS = 22  # of a weight: 32, less 8 of a pixel and 2 to spare

type Dimension = int | Array  # pixels along an axis; symbolic where the shape is not known yet


def center_crop_jax(
    images: Array,
    image_size: ImageSize,
    crop_fraction: float,
    interpolation: Interpolation = "bilinear",
) -> Array:
    """Resizes images and crops the centre, as `center_crop` does.

    Args:
      images: uint8 [batch, height, width, channels]; all sizes but the channels may be symbolic.
      image_size: of the result.
      crop_fraction: as for `center_crop`.
      interpolation: the kernel of the resize.

    Returns:
      uint8 [batch, height, width, channels].
    """
    height, width = images.shape[1:3]
    least_height, least_width = uncropped(image_size, crop_fraction)
    # The side that decides the scale is the one that needs the larger scale.
    by_height = least_height * jnp.asarray(width) >= least_width * jnp.asarray(height)
    scale = (
        jnp.where(by_height, least_height, least_width),
        jnp.where(by_height, height, width),
    )
    rows, columns = (
        _weights(side, scale, kept, interpolation)
        for side, kept in zip((height, width), height_and_width(image_size), strict=True)
    )
    images = _weigh("bhwc,jw->bhjc", images, columns)
    return _weigh("bhjc,ih->bijc", images, rows)


def _weigh(subscripts: str, images: Array, weights: Array) -> Array:
    total = jnp.einsum(subscripts, images.astype(jnp.int32), weights)
    rounded = (total + (1 << (_FRACTION_BITS - 1))) >> _FRACTION_BITS
    return jnp.clip(rounded, 0, 255).astype(jnp.uint8)


def _weights(
    side: Dimension, scale: tuple[Array, Array], kept: int, interpolation: Interpolation
) -> Array:
    """Computes the weight of each of `side` pixels for each pixel of the result, along one axis.

    In float64, as Pillow does.

    Args:
      side: pixels of the images along the axis.
      scale: pixels after the resize, and before it, of the same length.
      kept: pixels of the result.
      interpolation: the kernel.

    Returns:
      int32 [kept, side], in units of 2**-22.
    """
    with jax.enable_x64(True):
        side64 = jnp.asarray(side).astype(jnp.float64)
        longer, shorter = (jnp.asarray(length).astype(jnp.float64) for length in scale)
        resized = jnp.round(side64 * longer / shorter)
        begin, first, last = crop_range(side64, resized, kept, xp=jnp)
        step = side64 / resized
        box = jnp.stack([first * step, jnp.minimum(side64, last * step)]).astype(jnp.float32)
        step = (box[1] - box[0]).astype(jnp.float64) / (last - first)
        places = jnp.arange(kept, dtype=jnp.float64) + (begin - first) + 0.5
        centers = box[0].astype(jnp.float64) + places * step
        pixels = jnp.arange(side, dtype=jnp.float64) + 0.5
        distances = jnp.abs(pixels - centers[:, None]) / jnp.maximum(step, 1)
        weights = _KERNELS[interpolation](distances)
        weights = weights / jnp.sum(weights, axis=1, keepdims=True) * (1 << _FRACTION_BITS)
        return jnp.trunc(weights + jnp.where(weights < 0, -0.5, 0.5)).astype(jnp.int32)


def _triangle(distance: Array) -> Array:
    return jnp.maximum(1 - distance, 0)


def _cubic(distance: Array) -> Array:
    """Keys' kernel with a = -0.5."""
    near = (1.5 * distance - 2.5) * distance * distance + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return jnp.where(distance < 1, near, jnp.where(distance < 2, far, 0))


_KERNELS = {"bilinear": _triangle, "bicubic": _cubic}
