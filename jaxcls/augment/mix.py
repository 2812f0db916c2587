"""Mixing each image and its label with a partner's: CutMix (Yun 2019) and MixUp (Zhang 2018).

Both blend an image with its partner, with a weight for each pixel of the partner: with CutMix 1
inside a rectangle and 0 outside, with MixUp the same everywhere. The weight of the partner's label
is the mean of its pixels' weights, so the entries of a label still sum to 1.

Within each group of consecutive examples (an even number) the first is mixed with the last, the
second with the last but one, and so on. So no image crosses devices, and the pairs do not depend on
the number of devices. dm-pix has neither operation.
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxcls.augment import draws
from jaxcls.augment.erase import centred_boxes, inside
from jaxcls.config import progressive
from jaxcls.config.augment import Mix


def mix_batch(
    entry: Mix, key: Array, keys: Array, images: Array, labels: Array, progress: Array
) -> tuple[Array, Array]:
    """Applies CutMix, MixUp or neither, the same to the whole batch.

    Args:
      entry: the probabilities and strengths.
      key: the random key of the batch.
      keys: a random key for each image.
      images: uint8 [batch, channels, height, width].
      labels: float32 [batch, classes].
      progress: float32 [], the completed share of the training.

    Returns:
      Images, float32 in [0, 255], and labels.
    """
    drawn = jax.random.uniform(key)
    cutting, mixing = drawn < entry.cutmix, drawn < entry.cutmix + entry.mixup
    alphas = [
        progressive.at_progress(alpha, progress)
        for alpha in (entry.cutmix_alpha, entry.mixup_alpha)
    ]
    kept = draws.beta(draws.fold_in(keys, 0), jnp.where(cutting, *alphas))
    kept = jnp.where(mixing, kept, 1.0)
    cut = cutmix_weights(draws.fold_in(keys, 1), kept, images.shape[1:])
    pixel_weights, label_weights = (
        jnp.where(cutting, *both) for both in zip(cut, mixup_weights(kept), strict=True)
    )
    return (
        blend(images, pixel_weights, entry.group_size),
        blend(labels, label_weights[:, None], entry.group_size),
    )


def cutmix_weights(keys: Array, kept: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Draws rectangles at uniform centres, with sides sqrt(1 - kept) of the image's.

    Rectangles are cut off at the image's border.

    Args:
      keys: a random key for each image.
      kept: float32 [batch], the share of each image that stays if nothing is cut off.
      shape: channels, height and width of the images in pixels.

    Returns:
      The partner's weight for each pixel, float32 [batch, channels, height, width], and for the
      label, [batch].
    """
    _, height, width = shape
    side = jnp.sqrt(1 - kept)[:, None] * jnp.ones(2)
    boxes = centred_boxes(draws.uniform(keys, 2), side, jnp.asarray([height, width]))
    top, left, bottom, right = boxes.T
    visible = (bottom - top) * (right - left) / (height * width)
    return inside(boxes, shape).astype(jnp.float32), visible


def mixup_weights(kept: Array) -> tuple[Array, Array]:
    """The partner's weights: 1 - kept [batch] for every pixel and the label; shapes broadcast."""
    return (1 - kept)[:, None, None, None], 1 - kept


def blend(own: Array, weights: Array, group_size: int) -> Array:
    """Returns own * (1 - weights) + partner * weights for each row and its partner in the group.

    Args:
      own: [batch, ...], of any dtype.
      weights: float32, of a shape that broadcasts to that of `own`.
      group_size: rows in a group; even, divides the batch.

    Returns:
      float32 of the shape of `own`.
    """
    groups = own.reshape(-1, group_size, *own.shape[1:])
    others = jnp.flip(groups, axis=1).reshape(own.shape)
    return own + (others.astype(jnp.float32) - own) * weights
