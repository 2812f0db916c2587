"""A few training images as the network gets them, for people to look at."""

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
    """The number of images, rounded up to whole groups of those that are mixed."""
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
    """Consecutive rows of a training batch after `augment`, with the draws of the training step.

    Args:
      config: of the training.
      batch: images, sizes and labels of the rows, as the step takes them.
      augment: the operations, which need not be the config's.
      num_classes: of the labels.
      step: of the training, counted from 0.
      stage_ends: of its plan.
      first: place of the first row in the global batch.

    Returns:
      images: uint8 [rows, size, size, 3], of the size of the step's stage.
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
    """The first rows of a batch that this process holds, after the config's augmentation.

    Args:
      config, num_classes, step, stage_ends: as for `augmented`.
      batch: of the training step, on the devices of all processes.
      count: rows, of which a device's share of the batch may have fewer; whole mixing groups.

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
