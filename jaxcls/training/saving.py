"""Saves the state of a training, as long as its run is claimed by no other training."""

import logging
from collections.abc import Callable

from jaxcls.distributed.agree import num_processes
from jaxcls.distributed.watchdog import Watchdog
from jaxcls.runs.checkpoint import CheckpointError, Checkpoints
from jaxcls.runs.claim import Claim
from jaxcls.runs.directory import RunInfo
from jaxcls.training.meter import Meter
from jaxcls.training.state import TrainState

logger = logging.getLogger("jaxcls")

MAX_FAILURES = 4  # in a row: at two intervals, each time with a second try


class Saver:
    """Saves checkpoints of one run. All processes call each method together.

    A save that fails does not end the training at once, because somebody may free the disk. The
    current state is saved instead. If that fails too, the next interval tries again, also twice.
    Then the training ends.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        claim: Claim,
        info: RunInfo,
        *,
        watchdog: Watchdog,
        publish_metrics: Callable[[], None],
        start: int,
    ):
        """Writes nothing yet.

        Args:
          checkpoints: those of the run.
          claim: is checked before each write.
          info: the metadata of each checkpoint.
          watchdog: is notified before each wait.
          publish_metrics: is called before each save, to bring the metrics up to date, too.
          start: the step that the training begins after.
        """
        self._checkpoints = checkpoints
        self._claim = claim
        self._watchdog = watchdog
        self._publish_metrics = publish_metrics
        self._metadata = info.to_json()
        self._saved: int | None = start  # the step of the last save, unless it failed
        self._failures = 0  # since the last good save
        self._at_end = False  # whether no step follows

    def save(
        self, step: int, state: TrainState, *, score: float | None = None, last: bool = False
    ) -> None:
        """Begins to save the state after a step, in the background; `finish` ends it.

        Args:
          step: the last step that the state has taken.
          state: the state, whose metrics are known to be finite.
          score: the score of this step's evaluation (`evaluation.score`), if it was evaluated.
          last: whether no step follows.

        Raises:
          CheckpointError: the last `MAX_FAILURES` saves have failed.
          RunLostError: the run no longer belongs to this training.
        """
        self._at_end = self._at_end or last
        self.require_claim()
        self._settle(step)
        # Before the checkpoint is complete: a training that resumes from it appends to these rows.
        self._publish_metrics()
        self._saved = step
        try:
            self._checkpoints.save(step, state, metadata=self._metadata, metric=score)
        except CheckpointError as error:
            self._note_failure(error)

    def note_evaluation(self, step: int, score: float) -> None:
        """Notes the accuracy of a step that was saved before it was evaluated.

        Raises:
          RunLostError: the run no longer belongs to this training.
        """
        self.require_claim()
        try:
            self._checkpoints.set_metric(step, score)
        except CheckpointError as error:
            logger.warning("%s; the training continues, and step %d has no score", error, step)

    def replace_failed(
        self,
        step: int,
        state: TrainState,
        meter: Meter,
        *,
        score: float | None,
        logged: bool,
    ) -> None:
        """Saves the current state if a save has failed since the last call; call it at each step.

        Args:
          step: the last step that the state has taken.
          state: the state after it.
          meter: tells whether the state is finite.
          score: the score of this step's evaluation (`evaluation.score`), if it was evaluated.
          logged: whether the metrics of this step were read. Several processes agree only at such
            steps, because agreeing takes time.

        Raises:
          DivergedError: a metric since the last read of `meter` is not finite.
          CheckpointError, RunLostError: as `save`.
        """
        if num_processes() > 1 and not logged:
            return
        if self._checkpoints.failed():
            self.require_claim()
            self._settle(step)
        if self._saved is None and self._has_second_try():
            meter.fetch()
            self.save(step, state, score=score)

    def save_if_finite(
        self, step: int, state: TrainState, meter: Meter, *, score: float | None
    ) -> None:
        """Saves the state of a training that is cut short, and waits; arguments as of `save`.

        Raises:
          DivergedError: a metric since the last read of `meter` is not finite.
          CheckpointError: the state cannot be saved.
          RunLostError: the run no longer belongs to this training.
        """
        meter.fetch()
        self._at_end = True
        if step != self._saved:
            self.save(step, state, score=score)
        self.finish(step, state, score=score)

    def finish(self, step: int, state: TrainState, *, score: float | None) -> None:
        """Waits until the state after the last step is saved; if that fails, tries once more.

        The arguments are those of `save`.

        Raises:
          CheckpointError: the state cannot be saved.
          RunLostError: the run no longer belongs to this training.
        """
        self._at_end = True
        self.require_claim()
        self._settle(step)
        if self._saved != step:
            self._failures = MAX_FAILURES - 1  # the next one ends the training
            self.save(step, state, score=score)
            self._settle(step)

    def require_claim(self) -> None:
        """Raises RunLostError if the run no longer belongs to this training."""
        self._claim.require()

    def _settle(self, step: int) -> None:
        """Waits until the last save is verified, or has failed; `step` is the current one."""
        self._watchdog.note_progress(step, "saving")
        try:
            verified = self._checkpoints.wait()
        except CheckpointError as error:
            self._note_failure(error)
        else:
            if verified is not None:
                self._failures = 0

    def _note_failure(self, error: CheckpointError) -> None:
        self._saved = None
        self._failures += 1
        if self._failures >= MAX_FAILURES:
            raise CheckpointError(
                f"{error}; the training ends, because save after save has failed; the same "
                f"command resumes from the newest checkpoint"
            ) from error
        if self._at_end:
            then = "trying once more"
        elif self._has_second_try():
            then = "the training continues, and the current state is saved instead"
        else:
            then = "the training continues, and the next save tries again"
        logger.warning("%s; %s", error, then)

    def _has_second_try(self) -> bool:
        """Whether the last failure was the first one of its interval."""
        return self._failures % 2 == 1
