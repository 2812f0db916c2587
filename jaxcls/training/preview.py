"""A few training images as the network sees them, for people to look at."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxcls.augment.pipeline import make_augment
from jaxcls.config import Config
from jaxcls.config.augment import Augmentation, mix_of
from jaxcls.config.progressive import image_size_at, progress
from jaxcls.data.viewable import viewable
from jaxcls.training.build import Training
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
      images: uint8 [rows, height, width, channels], in the image size of the step's stage.
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


def first_augmented(training: Training, batch: Mapping[str, Array]) -> np.ndarray:
    """Augments the first rows of a batch that this process holds, as the first step does.

    Args:
      training: the training; its config says how many images to show (`log_images`).
      batch: the first batch, on the devices of all processes.

    Returns:
      uint8 [rows, height, width, 3], as people can look at it; fewer rows than `log_images`, if the
      first device of this process holds fewer.
    """
    config = training.config
    rows = whole_groups(config.log_images, config.augment)
    shards = {name: array.addressable_shards[0] for name, array in batch.items()}
    images, _ = augmented(
        config,
        {name: shard.data[:rows] for name, shard in shards.items()},
        augment=config.augment,
        num_classes=training.model.num_classes,
        step=0,
        stage_ends=training.plan.stage_ends,
        first=shards["labels"].index[0].start or 0,
    )
    return viewable(np.asarray(images[: config.log_images]))
