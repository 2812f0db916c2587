"""The augmentation that a config describes, as one function."""

from collections.abc import Callable

import jax
from jax import Array

from jaxcls.augment import geometry
from jaxcls.config import AugmentConfig

Augment = Callable[[Array, Array, Array, Array, Array], tuple[Array, Array]]


def make_augment(augment: AugmentConfig, *, image_size: int, crop_fraction: float) -> Augment:
    """Makes `(key, canvases, sizes, labels, positions) -> (images, labels)`.

    Args of the result:
      key: of this step.
      canvases: uint8 [batch, canvas, canvas, 3], each image at the top left.
      sizes: int32 [batch, 2], height and width of each image on its canvas.
      labels: float32 [batch, classes], one-hot or soft.
      positions: int32 [batch], each image's place in the global batch. With the key it decides all
        that happens to the image, however the batch is cut.

    Returns of the result: images float32 [batch, image_size, image_size, 3] in [0, 1], and labels.
    """
    resized = round(image_size / crop_fraction)

    def apply(key: Array, canvases: Array, sizes: Array, labels: Array, positions: Array):
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, positions)
        crop_keys, flip_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        images = geometry.resize_valid(canvases, sizes, resized)
        if augment.crop:
            images = geometry.random_crop(crop_keys, images, image_size)
        else:
            images = geometry.center_crop(images, image_size)
        if augment.flip:
            images = geometry.random_flip(flip_keys, images)
        return images, labels

    return apply
