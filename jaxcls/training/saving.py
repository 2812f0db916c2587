"""Saves the state of a training, as long as its run is claimed by no other training."""

from jaxcls.runs.checkpoint import Checkpoints
from jaxcls.runs.claim import Claim
from jaxcls.runs.directory import RunInfo
from jaxcls.training.meter import Meter
from jaxcls.training.state import TrainState


class Saver:
    """Saves checkpoints of one run. All processes call each method together."""

    def __init__(self, checkpoints: Checkpoints, claim: Claim, info: RunInfo, *, start: int):
        self._checkpoints = checkpoints
        self._saved = start
        self._claim = claim
        self._metadata = info.to_json()

    def save(self, step: int, state: TrainState, *, top1: float | None = None) -> None:
        """Begins to save the state after a step, in the background; `wait` ends it.

        Args:
          step: the last step that the state has taken.
          state: the state, whose metrics are known to be finite.
          top1: the accuracy of this step's evaluation, if it was evaluated.

        Raises:
          TakenOverError: another training has claimed the run.
        """
        self.require_claim()
        self._checkpoints.save(step, state, metadata=self._metadata, metric=top1)
        self._saved = step

    def save_if_finite(self, step: int, state: TrainState, meter: Meter) -> None:
        """Saves the state of a training that is cut short, and waits until it is saved.

        Raises:
          DivergedError: a metric since the last read of `meter` is not finite.
          TakenOverError: another training has claimed the run.
        """
        meter.fetch()
        if step != self._saved:
            self.save(step, state)
        self.wait()

    def wait(self) -> None:
        """Waits until the last save is verified."""
        self._checkpoints.wait()

    def require_claim(self) -> None:
        """Raises TakenOverError if another training has claimed the run."""
        self._claim.require()
