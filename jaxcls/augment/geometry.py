"""Where pixels come from: resize, crop, flip.

Images are float32 [batch, height, width, channels] in [0, 1], keys one for each image.
"""

import dm_pix as pix
import jax
import jax.numpy as jnp
from jax import Array


def resize_valid(canvases: Array, sizes: Array, size: int) -> Array:
    """Resizes the valid part of each canvas and cuts its centre square.

    The shorter side becomes `size`. Bilinear, antialiased where it shrinks; the canvas outside the
    valid part has no influence. One small matmul an axis, which suits matrix units.

    Args:
      canvases: uint8 [batch, height, width, channels], the image at the top left.
      sizes: int32 [batch, 2], height and width of the image on its canvas.
      size: of the result.

    Returns:
      float32 [batch, size, size, channels] in [0, 1].
    """
    step = jnp.min(sizes, axis=1) / size  # canvas pixels a result pixel, [batch]

    def weights(length: Array, extent: int) -> Array:
        """[batch, size, extent]: how much each canvas row gives to each result row."""
        start = (length - size * step) / 2
        centres = start[:, None] + (jnp.arange(size) + 0.5) * step[:, None]
        offsets = jnp.arange(extent) + 0.5 - centres[:, :, None]
        reach = jnp.maximum(step, 1)[:, None, None]
        triangle = jnp.maximum(1 - jnp.abs(offsets) / reach, 0)
        valid = jnp.where(jnp.arange(extent) < length[:, None, None], triangle, 0)
        return valid / jnp.sum(valid, axis=2, keepdims=True)

    _, height, width, _ = canvases.shape
    images = canvases.astype(jnp.float32) / 255
    images = jnp.einsum("bih,bhwc->biwc", weights(sizes[:, 0], height), images)
    return jnp.einsum("bjw,biwc->bijc", weights(sizes[:, 1], width), images)


def random_crop(keys: Array, images: Array, size: int) -> Array:
    """Cuts a window of `size` x `size` at a uniform place, another for each image."""
    window = (size, size, images.shape[3])
    crop = jax.vmap(lambda key, image: pix.random_crop(key, image, window))
    return jnp.asarray(crop(keys, images))


def center_crop(images: Array, size: int) -> Array:
    """Cuts the central window of `size` x `size`."""
    return jnp.asarray(pix.center_crop(images, size, size))


def random_flip(keys: Array, images: Array) -> Array:
    """Mirrors each image left to right with probability 0.5."""
    return jnp.asarray(jax.vmap(pix.random_flip_left_right)(keys, images))
