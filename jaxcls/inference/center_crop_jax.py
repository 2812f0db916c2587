"""The evaluation's crop and resize as arithmetic on arrays, for programs without Pillow.

It equals `center_crop` in `resize.py` to the bit. Evaluation and prediction use that one, which
takes images of many sizes without compiling anew for each.

Pillow resizes along the width, rounds to 8 bits, and then along the height. Its weights are whole
2**-22ths, so a pass is exact in 32-bit integers, whatever the order of its sums.
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxcls.data.resize import Interpolation, shorter_side

_FRACTION_BITS = 22  # of a weight: 32, less 8 of a pixel and 2 to spare

type Dimension = int | Array  # pixels of an axis; a symbol where the shape is not known yet


def traced_center_crop(
    images: Array,
    image_size: int,
    crop_fraction: float,
    interpolation: Interpolation = "bilinear",
) -> Array:
    """Resizes the shorter side and cuts the centre square, as `center_crop` does.

    Args:
      images: uint8 [batch, height, width, 3]; each of these but the 3 may be symbolic.
      image_size: height and width of the result, in pixels.
      crop_fraction: share of the resized shorter side that is kept, in (0, 1].
      interpolation: the resize's kernel.

    Returns:
      uint8 [batch, image_size, image_size, 3].
    """
    shorter = shorter_side(image_size, crop_fraction)
    height, width = images.shape[1:3]
    rows, columns = (
        _weights(side, jnp.minimum(height, width), shorter, image_size, interpolation)
        for side in (height, width)
    )
    images = _weigh("bhwc,jw->bhjc", images, columns)
    return _weigh("bhjc,ih->bijc", images, rows)


def _weigh(subscripts: str, images: Array, weights: Array) -> Array:
    total = jnp.einsum(subscripts, images.astype(jnp.int32), weights)
    rounded = (total + (1 << (_FRACTION_BITS - 1))) >> _FRACTION_BITS
    return jnp.clip(rounded, 0, 255).astype(jnp.uint8)


def _weights(
    side: Dimension,
    shortest: Array,
    shorter: int,
    image_size: int,
    interpolation: Interpolation,
) -> Array:
    """How much each of `side` pixels counts for each of the result's along an axis.

    In float64, like Pillow's.

    Returns:
      int32 [image_size, side], in 2**-22ths.
    """
    with jax.enable_x64(True):
        side64 = jnp.asarray(side).astype(jnp.float64)
        resized = jnp.round(side64 * shorter / jnp.asarray(shortest).astype(jnp.float64))
        begin, first, last = _window(side64, resized, image_size)
        scale = side64 / resized
        box = jnp.stack([first * scale, jnp.minimum(side64, last * scale)]).astype(jnp.float32)
        scale = (box[1] - box[0]).astype(jnp.float64) / (last - first)
        places = jnp.arange(image_size, dtype=jnp.float64) + (begin - first) + 0.5
        centers = box[0].astype(jnp.float64) + places * scale
        pixels = jnp.arange(side, dtype=jnp.float64) + 0.5
        distances = jnp.abs(pixels - centers[:, None]) / jnp.maximum(scale, 1)
        weights = _KERNELS[interpolation](distances)
        weights = weights / jnp.sum(weights, axis=1, keepdims=True) * (1 << _FRACTION_BITS)
        return jnp.trunc(weights + jnp.where(weights < 0, -0.5, 0.5)).astype(jnp.int32)


def _window(side: Array, resized: Array, image_size: int) -> tuple[Array, Array, Array]:
    """Where the crop begins, and what of the resized axis `center_crop` has made for it."""
    begin = jnp.floor((resized - image_size) / 2)
    margin = jnp.ceil(2 / (side / resized)) + 2
    first = jnp.maximum(0, begin - margin)
    last = jnp.minimum(resized, begin + image_size + margin)
    return begin, first, last


def _triangle(distance: Array) -> Array:
    return jnp.maximum(1 - distance, 0)


def _cubic(distance: Array) -> Array:
    """Keys' kernel with a = -0.5."""
    near = (1.5 * distance - 2.5) * distance * distance + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return jnp.where(distance < 1, near, jnp.where(distance < 2, far, 0))


_KERNELS = {"bilinear": _triangle, "bicubic": _cubic}
