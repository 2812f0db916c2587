"""Learning-rate schedules."""

import dataclasses
import math

import jax.numpy as jnp
import optax

from jaxcls.config import Config, ScheduleConfig
from jaxcls.config.decoding import MAX_INT, ConfigError
from jaxcls.config.progressive import stage_ends
from jaxcls.data.order import steps_per_epoch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """The length of a training, and its learning rate.

    Attributes:
      steps_per_epoch: the steps of an epoch, which may be a fraction.
      num_steps: the length of the whole training.
      learning_rate: from the step, counted from 0, to the learning rate.
      stage_ends: the first step, counted from 0, after each stage; the last is num_steps.
    """

    steps_per_epoch: float
    num_steps: int
    learning_rate: optax.Schedule
    stage_ends: tuple[int, ...]


def make_plan(config: Config, num_examples: int) -> Plan:
    """Makes the plan of a training on `num_examples` examples.

    Raises:
      UserError: the data are smaller than a batch, or there are more steps than int32 can count.
    """
    epoch = steps_per_epoch(num_examples, config.data)
    num_steps = config.num_steps or max(1, round((config.num_epochs or 0) * epoch))
    if num_steps > MAX_INT:
        raise ConfigError(
            f"num_epochs: {config.num_epochs:g} epochs are {num_steps:g} steps; at most {MAX_INT} "
            f"are possible"
        )
    schedule = make_schedule(
        config.schedule,
        learning_rate=config.optimizer.learning_rate,
        num_steps=num_steps,
        steps_per_epoch=epoch,
    )
    return Plan(
        steps_per_epoch=epoch,
        num_steps=num_steps,
        learning_rate=schedule,
        stage_ends=stage_ends(config, num_steps),
    )


def make_schedule(
    schedule: ScheduleConfig, *, learning_rate: float, num_steps: int, steps_per_epoch: float
) -> optax.Schedule:
    """Makes the function from step to learning rate.

    The warmup rises linearly from `start_learning_rate` at step 0 and lasts
    `int(warmup * num_steps)` steps. At `num_steps` and after, the rate is 0.

    - warmup_hold_cosine: stays at the peak for `int(hold * num_steps)` steps, then half a cosine
      that reaches 0 at `num_steps` (the KerasCV classification guide, which however ignores its
      start rate).
    - cosine: the same, without the hold.
    - constant: stays at the peak.
    - exponential: is multiplied by `decay_rate` every `decay_epochs`, counted from step 0 (the
      EfficientNetV2 reference code).

    Args:
      schedule: the shape of the schedule.
      learning_rate: its peak.
      num_steps: the length of the training.
      steps_per_epoch: the steps of an epoch, which may be a fraction.
    """
    warmup_steps = int(schedule.warmup * num_steps)
    hold_steps = int(schedule.hold * num_steps) if schedule.name == "warmup_hold_cosine" else 0
    decay_start = warmup_steps + hold_steps
    stair = schedule.decay_epochs * steps_per_epoch

    def shape(step):
        """The learning rate after the warmup, as a share of the peak."""
        if schedule.name == "constant":
            return jnp.ones_like(step)
        if schedule.name == "exponential":
            return schedule.decay_rate ** jnp.floor(step / stair)
        progress = jnp.clip((step - decay_start) / max(num_steps - decay_start, 1), 0, 1)
        return 0.5 * (1 + jnp.cos(math.pi * progress))

    def learning_rate_at(step):
        step = jnp.asarray(step, jnp.float32)
        start = schedule.start_learning_rate
        warming = start + (learning_rate - start) * step / max(warmup_steps, 1)
        rate = jnp.where(step < warmup_steps, warming, learning_rate * shape(step))
        return jnp.where(step < num_steps, rate, 0.0)

    return learning_rate_at
