"""The augmentation that a config describes, as one function.

A new operation is an entry in `jaxcls.config.augment`, a function `(entry, keys, images, progress)
-> images` in this package, and a line in `CHANGES`.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, PartitionSpec

from jaxcls.augment import draws, erase, geometry, mix, randaugment
from jaxcls.config.augment import (
    RESIZES,
    Augmentation,
    AugMix,
    CenterCrop,
    Cutout,
    RandAugment,
    RandomCrop,
    RandomCropAndResize,
    RandomErasing,
    RandomFlip,
    TrivialAugment,
    mix_of,
)
from jaxcls.config.sizes import ImageSize
from jaxcls.distributed.mesh import batch_spec
from jaxcls.distributed.precision import traced_for

Augment = Callable[[Array, Array, Array, Array, Array, Array], tuple[Array, Array]]

# What each resizing entry cuts out: (entry, keys, sizes, image_size, crop_fraction) -> windows
# [batch, 4].
WINDOWS: dict[type[Augmentation], Callable[..., Array]] = {
    CenterCrop: lambda entry, keys, sizes, size, fraction: geometry.shaped_windows(
        sizes, size, fraction, jnp.full(sizes.shape, 0.5)
    ),
    RandomCrop: lambda entry, keys, sizes, size, fraction: geometry.shaped_windows(
        sizes, size, fraction, draws.uniform(keys, 2)
    ),
    RandomCropAndResize: lambda entry, keys, sizes, size, fraction: geometry.random_windows(
        entry, draws.uniform(keys, 4), sizes, size
    ),
}

# What each other entry does after the resize: (entry, keys, images, progress) -> images, uint8
# [batch, channels, height, width].
CHANGES: dict[type[Augmentation], Callable[..., Array]] = {
    RandAugment: randaugment.rand_augment,
    TrivialAugment: randaugment.trivial_augment,
    AugMix: randaugment.aug_mix,
    Cutout: erase.cutout,
    RandomErasing: erase.random_erasing,
}


def make_augment(
    augment: Sequence[Augmentation],
    *,
    image_size: ImageSize,
    crop_fraction: float,
    mesh: Mesh | None = None,
) -> Augment:
    """Makes `(key, progress, canvases, sizes, labels, positions) -> (images, labels)`.

    Args:
      augment: the list of a checked config. The resize also does the flips: the mirrored crop of an
        image is a crop of the mirrored image.
      image_size: of the result.
      crop_fraction: share of the shorter side that CenterCrop and RandomCrop keep.
      mesh: the devices over which the batch is split by example. Each device augments its own rows
        and exchanges nothing with the others.

    Args of the result:
      key: the random key of this training step.
      progress: float32 [], the completed share of the training
        (`jaxcls.config.progressive.progress`); strengths may depend on it.
      canvases: uint8 [batch, canvas, canvas, channels], each image at the top left.
      sizes: int32 [batch, 2], height and width of each image on its canvas.
      labels: float32 [batch, classes], one-hot or soft.
      positions: int32 [batch], each image's place in the global batch. Together with the key it
        decides everything that happens to the image, however the batch is split.

    Returns of the result: images float32 [batch, height, width, channels] in [0, 1], and
    labels.
    """
    mixer = mix_of(augment)

    @traced_for(jnp.dtype("float32"))
    def apply(
        key: Array, progress: Array, canvases: Array, sizes: Array, labels: Array, positions: Array
    ) -> tuple[Array, Array]:
        image_root, batch_root = jax.random.split(key)
        keys = draws.image_keys(image_root, positions)

        # Cut a window out of each canvas, resize it, and mirror it on the way.
        resizing = next(entry for entry in augment if isinstance(entry, RESIZES))
        resize_keys = draws.fold_in(keys, list(augment).index(resizing))
        windows = WINDOWS[type(resizing)](resizing, resize_keys, sizes, image_size, crop_fraction)
        mirrored = _mirrored(augment, keys)
        images = geometry.resize_windows(canvases, sizes, windows, mirrored, image_size)

        # Change the colours, shapes and parts of each image.
        for index, entry in enumerate(augment):
            if type(entry) in CHANGES:
                images = CHANGES[type(entry)](entry, draws.fold_in(keys, index), images, progress)

        # Mix images and labels of the batch.
        if mixer is not None:
            mix_keys = draws.fold_in(keys, len(augment))
            images, labels = mix.mix_batch(mixer, batch_root, mix_keys, images, labels, progress)
        return jnp.moveaxis(images.astype(jnp.float32) / 255, 1, 3), labels

    if mesh is None:
        return apply
    rows, same = batch_spec(mesh), PartitionSpec()
    return jax.shard_map(
        apply,
        mesh=mesh,
        in_specs=(same, same, rows, rows, rows, rows),
        out_specs=(rows, rows),
        check_vma=False,
    )


def _mirrored(augment: Sequence[Augmentation], keys: Array) -> Array:
    """Which images the flips of the list mirror: bool [batch, 2], top-bottom and left-right."""
    mirrored = jnp.zeros((len(keys), 2), bool)
    for index, entry in enumerate(augment):
        if isinstance(entry, RandomFlip):
            probabilities = jnp.asarray([entry.vertical, entry.horizontal])
            mirrored ^= draws.uniform(draws.fold_in(keys, index), 2) < probabilities
    return mirrored
