"""The augmentation that a config describes, as one function."""

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
    Mix,
    RandAugment,
    RandomCrop,
    RandomCropAndResize,
    RandomErasing,
    RandomFlip,
    TrivialAugment,
    mix_of,
)
from jaxcls.config.progressive import at_progress
from jaxcls.distributed.mesh import batch_spec
from jaxcls.distributed.precision import traced_for

Augment = Callable[[Array, Array, Array, Array, Array, Array], tuple[Array, Array]]


def make_augment(
    augment: Sequence[Augmentation],
    *,
    image_size: int,
    crop_fraction: float,
    mesh: Mesh | None = None,
) -> Augment:
    """Makes `(key, progress, canvases, sizes, labels, positions) -> (images, labels)`.

    Args:
      augment: the list of a checked config. Flips are done by the resize: the mirrored crop of an
        image is a crop of the mirrored image.
      image_size: height and width of the result.
      crop_fraction: share of the shorter side that CenterCrop and RandomCrop keep.
      mesh: devices that the batch is split over by example. Each augments its own rows; nothing is
        exchanged.

    Args of the result:
      key: of this step.
      progress: float32 [], how much of the training is over
        (`jaxcls.config.progressive.progress`); strengths may depend on it.
      canvases: uint8 [batch, canvas, canvas, 3], each image at the top left.
      sizes: int32 [batch, 2], height and width of each image on its canvas.
      labels: float32 [batch, classes], one-hot or soft.
      positions: int32 [batch], each image's place in the global batch. With the key it decides all
        that happens to the image, however the batch is cut.

    Returns of the result: images float32 [batch, image_size, image_size, 3] in [0, 1], and labels.
    """
    mixer = mix_of(augment)

    @traced_for(jnp.dtype("float32"))
    def apply(
        key: Array, progress: Array, canvases: Array, sizes: Array, labels: Array, positions: Array
    ) -> tuple[Array, Array]:
        image_root, batch_root = jax.random.split(key)
        keys = draws.image_keys(image_root, positions)
        resizing = next(entry for entry in augment if isinstance(entry, RESIZES))
        place = list(augment).index(resizing)
        windows = WINDOWS[type(resizing)](
            resizing, draws.fold_in(keys, place), sizes, crop_fraction
        )
        mirrored = _mirrored(augment, keys)
        images = geometry.resize_windows(canvases, sizes, windows, mirrored, image_size)
        for index, entry in enumerate(augment):
            if type(entry) in CHANGES:
                images = CHANGES[type(entry)](entry, draws.fold_in(keys, index), images, progress)
        if mixer is not None:
            mix_keys = draws.fold_in(keys, len(augment))
            images, labels = _mix(mixer, batch_root, mix_keys, images, labels, progress)
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


# --- Windows to resize: (entry, keys, sizes, crop_fraction) -> windows ----------------------------


def _center_crop(entry: CenterCrop, keys: Array, sizes: Array, crop_fraction: float) -> Array:
    return geometry.square_windows(sizes, crop_fraction, jnp.full(sizes.shape, 0.5))


def _random_crop(entry: RandomCrop, keys: Array, sizes: Array, crop_fraction: float) -> Array:
    return geometry.square_windows(sizes, crop_fraction, draws.uniform(keys, 2))


def _random_part(
    entry: RandomCropAndResize, keys: Array, sizes: Array, crop_fraction: float
) -> Array:
    return geometry.random_windows(
        draws.uniform(keys, 4),
        sizes,
        area=entry.area,
        aspect=entry.aspect,
        of_pixels=entry.aspect_of == "pixels",
    )


def _mirrored(augment: Sequence[Augmentation], keys: Array) -> Array:
    """Which images the list's flips mirror: bool [batch, 2], top to bottom and left to right."""
    mirrored = jnp.zeros((len(keys), 2), bool)
    for index, entry in enumerate(augment):
        if isinstance(entry, RandomFlip):
            probabilities = jnp.asarray([entry.vertical, entry.horizontal])
            mirrored ^= draws.uniform(draws.fold_in(keys, index), 2) < probabilities
    return mirrored


WINDOWS: dict[type, Callable[..., Array]] = {
    CenterCrop: _center_crop,
    RandomCrop: _random_crop,
    RandomCropAndResize: _random_part,
}


# --- Changes of uint8 images: (entry, keys, images, progress) -> images ---------------------------


def _rand_augment(entry: RandAugment, keys: Array, images: Array, progress: Array) -> Array:
    return randaugment.rand_augment(
        keys,
        images,
        ops=entry.ops,
        num_ops=entry.num_ops,
        magnitude=at_progress(entry.magnitude, progress),
        magnitude_std=at_progress(entry.magnitude_std, progress),
        rate=entry.rate,
    )


def _trivial_augment(entry: TrivialAugment, keys: Array, images: Array, progress: Array) -> Array:
    return randaugment.trivial_augment(keys, images, ops=entry.ops)


def _aug_mix(entry: AugMix, keys: Array, images: Array, progress: Array) -> Array:
    return randaugment.aug_mix(
        keys,
        images,
        ops=entry.ops,
        magnitude=at_progress(entry.magnitude, progress),
        magnitude_std=at_progress(entry.magnitude_std, progress),
        width=entry.width,
        depth=entry.depth,
        alpha=entry.alpha,
    )


def _cutout(entry: Cutout, keys: Array, images: Array, progress: Array) -> Array:
    size = at_progress(entry.size, progress)
    return erase.cutout(keys, images, size=size, fill=entry.fill, value=entry.value)


def _random_erasing(entry: RandomErasing, keys: Array, images: Array, progress: Array) -> Array:
    return erase.random_erasing(
        keys,
        images,
        probability=at_progress(entry.probability, progress),
        area=entry.area,
        aspect=entry.aspect,
        fill=entry.fill,
        value=entry.value,
    )


CHANGES: dict[type, Callable[..., Array]] = {
    RandAugment: _rand_augment,
    TrivialAugment: _trivial_augment,
    AugMix: _aug_mix,
    Cutout: _cutout,
    RandomErasing: _random_erasing,
}


# --- Mixing --------------------------------------------------------------------------------------


def _mix(
    entry: Mix, key: Array, keys: Array, images: Array, labels: Array, progress: Array
) -> tuple[Array, Array]:
    """CutMix, MixUp or neither, the same for the whole batch; images stay in 0..255."""
    drawn = jax.random.uniform(key)
    cutting, mixing = drawn < entry.cutmix, drawn < entry.cutmix + entry.mixup
    alphas = [at_progress(alpha, progress) for alpha in (entry.cutmix_alpha, entry.mixup_alpha)]
    kept = draws.beta(draws.fold_in(keys, 0), jnp.where(cutting, *alphas))
    kept = jnp.where(mixing, kept, 1.0)
    cut = mix.cutmix_weights(draws.fold_in(keys, 1), kept, *images.shape[2:])
    pixel_weights, label_weights = (
        jnp.where(cutting, *both) for both in zip(cut, mix.mixup_weights(kept), strict=True)
    )
    return (
        mix.blend(images, pixel_weights, entry.group_size),
        mix.blend(labels, label_weights[:, None], entry.group_size),
    )
