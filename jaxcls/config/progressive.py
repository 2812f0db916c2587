"""The stages of a training: where they end, and what holds in each (progressive learning).

EfficientNetV2 (Tan and Le 2021, https://arxiv.org/abs/2104.00298, section 4) trains in stages, with
larger images, stronger augmentation and higher drop rates from one to the next.
"""

import bisect
import itertools
import math
from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array

from jaxcls.config.schema import Config


def stage_ends(config: Config, num_steps: int) -> tuple[int, ...]:
    """The step, counted from 0, before which each stage ends; the last is `num_steps`.

    A training without `stage_epochs` and `data.stage_image_sizes` is one stage. In a very short one
    a stage may have no step.
    """
    lengths = config.stage_epochs or (1.0,) * max(1, len(config.data.stage_image_sizes))
    *done, total = itertools.accumulate(lengths)
    borders = (math.ceil(num_steps * epochs / total - 0.5) for epochs in done)
    return (*borders, num_steps)


def stage_of(step: int, ends: Sequence[int]) -> int:
    """The stage, from 0, of a step, counted from 0; after the last step it stays the last."""
    return min(bisect.bisect_right(ends, step), len(ends) - 1)


def image_size_at(config: Config, step: int, ends: Sequence[int]) -> int:
    """Height and width that the network sees at a step, counted from 0."""
    sizes = config.data.stage_image_sizes
    return sizes[stage_of(step, ends)] if sizes else config.data.image_size


def progress(step: Array | int, ends: Sequence[int]) -> Array:
    """How much of the training is over in the middle of a step, counted from 0; in [0, 1].

    Each of n stages counts as 1 / n, however long it is: what has n entries changes at their ends.
    The middle of the step, so that rounding cannot move a stage's begin.
    """
    starts, stops = (jnp.asarray(steps, jnp.int32) for steps in ((0, *ends[:-1]), ends))
    step = jnp.asarray(step, jnp.int32)
    stage = jnp.sum(step >= stops[:-1])
    start = starts[stage]
    share = ((step - start).astype(jnp.float32) + 0.5) / (stops[stage] - start)
    return (stage + share) / len(ends)


def at_progress(value: float | tuple[float, ...], progress: Array | float) -> Array:
    """A config's strength or rate where `progress` is over: one number, or one a stage."""
    stages = (value,) if isinstance(value, int | float) else value
    reached = [progress >= index / len(stages) for index in range(1, len(stages))]
    now = jnp.asarray(stages[0], jnp.float32)
    for passed, later in zip(reached, stages[1:], strict=True):
        now = jnp.where(passed, later, now)
    return now
