"""Progressive learning: when the stages of a training end, and the values of each stage.

EfficientNetV2 (Tan and Le 2021, https://arxiv.org/abs/2104.00298, section 4) trains in stages; each
has larger images, stronger augmentation and higher drop rates than the one before.
"""

import bisect
import itertools
import math
from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array

from jaxcls.config.schema import Config
from jaxcls.config.sizes import ImageSize, with_shorter_side


def stage_ends(config: Config, num_steps: int) -> tuple[int, ...]:
    """The first training step after each stage, counted from 0; the last is `num_steps`.

    A training without `stage_epochs` and `data.stage_image_sizes` has one stage. In a very short
    training a stage may have no step.
    """
    lengths = config.stage_epochs or (1.0,) * max(1, len(config.data.stage_image_sizes))
    *done, total = itertools.accumulate(lengths)
    borders = (math.ceil(num_steps * epochs / total - 0.5) for epochs in done)
    return (*borders, num_steps)


def stage_of(step: int, ends: Sequence[int]) -> int:
    """The stage of a training step, both counted from 0; the last stage after the last step."""
    return min(bisect.bisect_right(ends, step), len(ends) - 1)


def image_size_at(config: Config, step: int, ends: Sequence[int]) -> ImageSize:
    """The size of the network's images at a training step, counted from 0."""
    return image_sizes(config)[stage_of(step, ends) if config.data.stage_image_sizes else 0]


def image_sizes(config: Config) -> tuple[ImageSize, ...]:
    """The size of the network's images in each stage; one size if it never changes."""
    size, stages = config.data.image_size, config.data.stage_image_sizes
    return tuple(with_shorter_side(size, shorter) for shorter in stages) or (size,)


def progress(step: Array | int, ends: Sequence[int]) -> Array:
    """The share of the training, in [0, 1], that is over in the middle of a step, counted from 0.

    Each of n stages counts as 1 / n, however long it is, so a list of n values changes at the ends
    of the stages. The middle of the step is used so that rounding cannot move these ends.
    """
    starts, stops = (jnp.asarray(steps, jnp.int32) for steps in ((0, *ends[:-1]), ends))
    step = jnp.asarray(step, jnp.int32)
    stage = jnp.sum(step >= stops[:-1])
    start = starts[stage]
    share = ((step - start).astype(jnp.float32) + 0.5) / (stops[stage] - start)
    return (stage + share) / len(ends)


def at_progress(value: float | tuple[float, ...], progress: Array | float) -> Array:
    """The value of a config's strength or rate at a share `progress` of the training.

    Args:
      value: one number, or one number per stage.
      progress: the share of the training that is over, in [0, 1].
    """
    stages = (value,) if isinstance(value, int | float) else value
    reached = [progress >= index / len(stages) for index in range(1, len(stages))]
    now = jnp.asarray(stages[0], jnp.float32)
    for passed, later in zip(reached, stages[1:], strict=True):
        now = jnp.where(passed, later, now)
    return now
