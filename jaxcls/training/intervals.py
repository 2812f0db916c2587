"""Which steps are followed by logging, evaluation and a save."""

import dataclasses

from jaxcls.training.build import Training


@dataclasses.dataclass(frozen=True, kw_only=True)
class Intervals:
    """How often a training logs, evaluates and saves. After the last step it does all three.

    Steps count from 1.

    Attributes:
      num_steps: the length of the whole training.
      log_every: steps between two lines of metrics.
      eval_every: steps between two evaluations.
      save_every: steps between two checkpoints.
    """

    num_steps: int
    log_every: int
    eval_every: int
    save_every: int

    def logs(self, step: int) -> bool:
        """Whether metrics are read; always before a save, which must not keep a NaN."""
        return step % self.log_every == 0 or self.evaluates(step) or self.saves(step)

    def evaluates(self, step: int) -> bool:
        """Whether the network is evaluated."""
        return step % self.eval_every == 0 or step == self.num_steps

    def saves(self, step: int) -> bool:
        """Whether a checkpoint is saved."""
        return step % self.save_every == 0 or step == self.num_steps


def intervals_of(training: Training) -> Intervals:
    """The intervals of a training. Fields that are not set mean once an epoch."""
    config = training.config
    epoch = max(1, round(training.plan.steps_per_epoch))
    return Intervals(
        num_steps=training.plan.num_steps,
        log_every=config.log_every_steps,
        eval_every=config.eval_every_steps or epoch,
        save_every=config.checkpoint.every_steps or epoch,
    )
