"""Mixing each image and its label with a partner's: CutMix (Yun 2019) and MixUp (Zhang 2018).

Both are one blend, in which every pixel has a weight for the partner's pixel: CutMix's is 1
inside a rectangle and 0 outside, MixUp's the same everywhere. The label's is the mean of the
pixels', for CutMix the visible share of the rectangle; so a label's mass stays what it was.

The partner is the mirror place within an even group of consecutive examples (first with last, and
so on), so that no image crosses devices and the same pairs meet on any number of them. dm-pix has
neither.
"""

import jax.numpy as jnp
from jax import Array

from jaxcls.augment import draws
from jaxcls.augment.erase import centred_boxes, inside


def cutmix_weights(keys: Array, kept: Array, height: int, width: int) -> tuple[Array, Array]:
    """Rectangles with sides sqrt(1 - kept) of the image's, centred anywhere, cut off at the border.

    Args:
      keys: of the images.
      kept: float32 [batch], the share of each image that stays if nothing is cut off.
      height: of the images.
      width: of the images.

    Returns:
      The partner's share of each pixel, float32 [batch, 3, height, width], and of the label,
      [batch].
    """
    side = jnp.sqrt(1 - kept)[:, None] * jnp.ones(2)
    boxes = centred_boxes(draws.uniform(keys, 2), side, jnp.asarray([height, width]))
    top, left, bottom, right = boxes.T
    visible = (bottom - top) * (right - left) / (height * width)
    return inside(boxes, (3, height, width)).astype(jnp.float32), visible


def mixup_weights(kept: Array) -> tuple[Array, Array]:
    """A share `kept` [batch] stays, of every pixel and of the label; shapes as `cutmix_weights`."""
    return (1 - kept)[:, None, None, None], 1 - kept


def blend(own: Array, weights: Array, group_size: int) -> Array:
    """Gives each row's partner in the same group a weight, and the rest to the own.

    Args:
      own: [batch, ...], of any dtype.
      weights: float32, of a shape that broadcasts to that of `own`.
      group_size: rows a group, even; divides batch.

    Returns:
      float32 of the shape of `own`.
    """
    groups = own.reshape(-1, group_size, *own.shape[1:])
    others = jnp.flip(groups, axis=1).reshape(own.shape)
    return own + (others.astype(jnp.float32) - own) * weights
