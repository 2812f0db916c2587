"""Covering a rectangle of each image: Cutout (DeVries 2017) and Random Erasing (Zhong 2017).

Images are planar: uint8 [batch, channels, height, width]. dm-pix has neither operation.
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxcls.augment import draws
from jaxcls.config import progressive
from jaxcls.config.augment import Cutout, RandomErasing


def cutout(entry: Cutout, keys: Array, images: Array, progress: Array) -> Array:
    """Covers a rectangle at a uniform centre; height and width are U(0, size) of the image's."""
    size = progressive.at_progress(entry.size, progress)
    uniforms = draws.uniform(draws.fold_in(keys, 0), 4)
    lengths = jnp.asarray(images.shape[2:])
    boxes = centred_boxes(uniforms[:, :2], size * uniforms[:, 2:], lengths)
    return paint(keys, images, boxes, fill=entry.fill, value=entry.value)


def random_erasing(entry: RandomErasing, keys: Array, images: Array, progress: Array) -> Array:
    """Covers, in some of the images, a rectangle of uniform area and log-uniform aspect."""
    probability = progressive.at_progress(entry.probability, progress)
    uniforms = draws.uniform(draws.fold_in(keys, 0), 5)
    areas = entry.area[0] + (entry.area[1] - entry.area[0]) * uniforms[:, 0]
    low, high = jnp.log(jnp.asarray(entry.aspect))
    aspects = jnp.exp(low + (high - low) * uniforms[:, 1])
    lengths = jnp.asarray(images.shape[2:])
    shares = jnp.sqrt(jnp.stack([areas / aspects, areas * aspects], axis=1))
    sides = jnp.minimum(jnp.round(shares * lengths), lengths)
    sides = jnp.where(uniforms[:, 4:] < probability, sides, 0)
    first = jnp.floor(uniforms[:, 2:4] * (lengths - sides + 1))
    boxes = jnp.concatenate([first, first + sides], axis=1)
    return paint(keys, images, boxes, fill=entry.fill, value=entry.value)


def centred_boxes(centres: Array, sides: Array, lengths: Array) -> Array:
    """Boxes around a centre, cut off at the image's border.

    Args:
      centres: [batch, 2] in [0, 1), y and x as shares of the image.
      sides: [batch, 2], height and width as shares of the image.
      lengths: [2], height and width of the image in pixels.

    Returns:
      float32 [batch, 4], whole pixels: top, left, bottom, right; the last two are exclusive.
    """
    centre = jnp.floor(centres * lengths)
    whole = jnp.round(sides * lengths)
    first = centre - jnp.floor(whole / 2)
    return jnp.concatenate([jnp.maximum(first, 0), jnp.minimum(first + whole, lengths)], axis=1)


def inside(boxes: Array, shape: tuple[int, ...]) -> Array:
    """Whether each pixel is in the image's box (`centred_boxes`): bool [batch, *shape].

    The mask has all channels, because on a TPU a mask of one channel would need its own pass.
    """
    full = (len(boxes), *shape)
    rows, cols = (jax.lax.broadcasted_iota(boxes.dtype, full, axis) for axis in (2, 3))
    top, left, bottom, right = (edge[:, None, None, None] for edge in boxes.T)
    return (rows >= top) & (rows < bottom) & (cols >= left) & (cols < right)


def paint(keys: Array, images: Array, boxes: Array, *, fill: str, value: float) -> Array:
    """Fills the boxes with one grey (fill "constant"), or with uniform noise (fill "noise")."""
    shape = images.shape[1:]
    if fill == "noise":
        noise_keys = draws.fold_in(keys, 1)
        paint = jax.vmap(lambda key: jax.random.bits(key, shape, jnp.uint8))(noise_keys)
    else:
        paint = jnp.asarray(round(255 * value), jnp.uint8)
    return jnp.where(inside(boxes, shape), paint, images)
