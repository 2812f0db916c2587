"""A few training images as the network sees them, for people to look at."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxcls.augment.pipeline import make_augment
from jaxcls.config import Config
from jaxcls.config.augment import Augmentation, mix_of
from jaxcls.config.progressive import image_size_at, progress
from jaxcls.training.losses import soft_labels
from jaxcls.training.step import step_keys


def whole_groups(count: int, augment: Sequence[Augmentation]) -> int:
    """Rounds a number of images up to whole groups of images that are mixed with each other."""
    mixer = mix_of(augment)
    group = mixer.group_size if mixer else 1
    return -(-count // group) * group


def augmented(
    config: Config,
    batch: Mapping[str, Any],
    *,
    augment: Sequence[Augmentation],
    num_classes: int,
    step: int,
    stage_ends: Sequence[int],
    first: int = 0,
) -> tuple[Array, Array]:
    """Augments consecutive rows of a training batch, with the random draws of the training step.

    Args:
      config: the experiment.
      batch: images, sizes and labels of the rows, as the training step takes them.
      augment: the operations to apply, which may be other than the config's.
      num_classes: the number of classes.
      step: the training step, counted from 0.
      stage_ends: the ends of the training's stages (`Plan.stage_ends`).
      first: the place of the first row in the global batch.

    Returns:
      images: uint8 [rows, size, size, 3], in the image size of the step's stage.
      labels: soft labels, float32 [rows, num_classes].
    """
    key, _ = step_keys(config.seed, step)
    apply = make_augment(
        augment,
        image_size=image_size_at(config, step, stage_ends),
        crop_fraction=config.data.crop_fraction,
    )
    labels = soft_labels(jnp.asarray(batch["labels"]), num_classes)
    positions = first + np.arange(len(labels), dtype=np.int32)
    done = progress(step, stage_ends)
    images, labels = jax.jit(apply)(key, done, batch["images"], batch["sizes"], labels, positions)
    return jnp.round(images * 255).astype(jnp.uint8), labels


def first_augmented(
    config: Config,
    batch: Mapping[str, Array],
    *,
    num_classes: int,
    step: int,
    stage_ends: Sequence[int],
    count: int,
) -> np.ndarray:
    """Augments the first rows of a batch that this process holds, as the training step does.

    Args:
      config, num_classes, step, stage_ends: as for `augmented`.
      batch: a batch of the training step, on the devices of all processes.
      count: how many rows; fewer, if this process' first device holds fewer.

    Returns:
      uint8 [rows, size, size, 3].
    """
    rows = whole_groups(count, config.augment)
    shards = {name: array.addressable_shards[0] for name, array in batch.items()}
    held = {name: shard.data[:rows] for name, shard in shards.items()}
    images, _ = augmented(
        config,
        held,
        augment=config.augment,
        num_classes=num_classes,
        step=step,
        stage_ends=stage_ends,
        first=shards["labels"].index[0].start or 0,
    )
    return np.asarray(images[:count])


def showing_first[T](batches: Iterator[T], show: Callable[[T], None]) -> Iterator[T]:
    """The same batches; `show` is called with the first one, before it is handed out."""
    first = next(batches)
    show(first)
    yield first
    yield from batches
