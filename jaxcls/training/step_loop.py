"""The steps of a training: they read batches, and log, evaluate and save."""

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Iterator, Mapping

from jaxcls.data.device import device_batches, require_patience
from jaxcls.data.sources import Source
from jaxcls.distributed.agree import (
    client,
    is_main_process,
)
from jaxcls.distributed.stop_signals import StoppedError, StopSignals
from jaxcls.distributed.watchdog import Watchdog
from jaxcls.runs.checkpoint import CheckpointError
from jaxcls.runs.reporter import QuietReporter, Reporter
from jaxcls.system.errors import DataError
from jaxcls.training.build import Training
from jaxcls.training.compiled_steps import CompiledSteps
from jaxcls.training.evaluation import make_evaluator, score
from jaxcls.training.experiment import Experiment
from jaxcls.training.intervals import intervals_of
from jaxcls.training.meter import Meter
from jaxcls.training.preview import first_augmented
from jaxcls.training.profiling import Profile
from jaxcls.training.resume import Beginning
from jaxcls.training.saving import Saver
from jaxcls.training.step import Batch


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended.

    Attributes:
      step: the last step that was taken, which is saved.
      num_steps: the length of the whole training.
      metrics: those of the last evaluation; empty if there was none.
      stopped_by: the signal that ended the training before its last step was taken and
        evaluated, or None.
    """

    step: int
    num_steps: int
    metrics: Mapping[str, float]
    stopped_by: str | None


class StepLoop:
    """Takes the steps of a training that are left, up to the last one or a signal to stop."""

    def __init__(
        self,
        beginning: Beginning,
        *,
        started: float,
        experiment: Experiment,
        training: Training,
        steps: CompiledSteps,
        saver: Saver,
        reporter: Reporter | QuietReporter,
        stop: StopSignals,
        watchdog: Watchdog,
        profile: Profile,
    ):
        """Takes no step yet.

        Args:
          beginning: the state to start from.
          started: when the program began, by `time.perf_counter`.
          experiment: the two splits.
          training: the network, its plan and its devices.
          steps: the compiled steps of the training.
          saver: saves checkpoints.
          reporter: shows and writes metrics.
          stop: the signals; the processes agree on the step to stop after.
          watchdog: is notified before each phase that may hang.
          profile: traces some of the steps.
        """
        self._beginning = beginning
        self._started = started
        self._source, self._eval_source = experiment.source, experiment.eval_source
        self._training, self._config = training, training.config
        self._intervals, self._num_steps = intervals_of(training), training.plan.num_steps
        self._steps = steps
        self._saver = saver
        self._reporter = reporter
        self._stop = stop
        self._watchdog = watchdog
        self._profile = profile
        self._meter = Meter(
            self._config.data.batch_size,
            max_skipped=self._config.max_skipped_steps,
            say=reporter.say,
        )
        self._evaluate = make_evaluator(
            training,
            self._eval_source,
            before_batch=self._before_eval_batch,
            on_wait=lambda seconds: self._end_wait(self._eval_source, seconds),
        )
        self._state = beginning.state
        self._step = beginning.step  # the last one that the state has taken
        self._metrics: Mapping[str, float] = {}  # of the last evaluation
        self._score: float | None = None  # of the evaluation after this step, if there was one

    def run(self) -> Outcome:
        """Takes the steps.

        Raises:
          DivergedError: a loss or the state is not finite.
          CheckpointError: save after save has failed.
          RunLostError: the run no longer belongs to this training.
          DataError: the data cannot be read. A process alone has saved the steps before that.
        """
        interrupted = False
        with self._profile, self._batches() as batches:
            try:
                self._take_steps(batches)
            except StoppedError:  # while it waited for data, or evaluated
                interrupted = True
                self._save_rest()
            except DataError as error:
                if client() is not None:  # the other processes, which must save too, do not know
                    raise
                raise DataError(
                    f"{error}\n{self._saved_rest()}; fix it and run the same command again"
                ) from error
            else:
                self._saver.finish(self._step, self._state, score=self._score)
        ended_early = interrupted or self._step < self._num_steps
        stopped_by = self._stop.received if ended_early else None
        return Outcome(self._step, self._num_steps, self._metrics, stopped_by)

    def _take_steps(self, batches: Iterator[Batch]) -> None:
        if self._step == 0 and self._config.log_images and is_main_process():
            batches = self._show_first(batches)
        if self._step and self._intervals.evaluates(self._step) and not self._beginning.evaluated:
            # The evaluation of this step was cut short, and an undisturbed run has it.
            self._evaluate_and_report()
            assert self._score is not None
            self._saver.note_evaluation(self._step, self._score)
            self._meter.restart_clock()
        ending = self._step >= self._num_steps
        while not ending:
            self._take_step(batches)
            if self._step == self._beginning.step + 1:
                self._finish_first_step()

            # Agree with the other processes whether to stop after this step. A training whose run
            # was taken over by another one stops, too, and writes nothing more.
            ending = self._step == self._num_steps or self._stop.agreed()
            if ending:
                self._saver.require_claim()
            self._log_evaluate_and_save(ending=ending)

    def _take_step(self, batches: Iterator[Batch]) -> None:
        # Read a batch. It was made ahead, so this waits only for slow data.
        self._profile.before(self._step + 1)
        self._watchdog.note_progress(self._step, "reading data")
        with self._meter.waiting():
            batch = next(batches)

        # Take a step: augmentation, gradients and update are one compiled program, and the call
        # returns while the devices still work on it.
        train_step = self._steps.for_step(
            self._step, watchdog=self._watchdog, say=self._reporter.say
        )
        self._watchdog.note_progress(self._step, "taking the next step")
        self._state, metrics = train_step(self._state, batch)
        self._step, self._score = self._step + 1, None
        self._meter.add(self._step, metrics)
        self._profile.after(self._step, metrics)

    def _log_evaluate_and_save(self, *, ending: bool) -> None:
        step, intervals = self._step, self._intervals
        # To read the metrics, the host waits for the devices. A resumed run logs the same steps as
        # an undisturbed one.
        if ending or step == 1 or intervals.logs(step):
            self._reporter.log(step, self._meter.read())
        if intervals.evaluates(step):
            self._evaluate_and_report()
        if ending or intervals.saves(step):  # in the background
            self._saver.save(step, self._state, score=self._score, last=ending)
        else:
            self._saver.replace_failed(
                step, self._state, self._meter, score=self._score, logged=intervals.logs(step)
            )
        if intervals.evaluates(step) or intervals.saves(step):
            self._meter.restart_clock()

    def _evaluate_and_report(self) -> None:
        """Evaluates the moving averages, or the parameters if no averages are kept."""
        self._metrics = self._evaluate(self._step, self._state)
        self._reporter.evaluated(self._step, self._metrics)
        self._score = score(self._metrics)

    # Batches

    def _batches(self) -> contextlib.AbstractContextManager[Iterator[Batch]]:
        return device_batches(
            self._source,
            self._config.data,
            seed=self._config.seed,
            mesh=self._training.mesh,
            start=self._step,
            on_wait=lambda seconds: self._end_wait(self._source, seconds),
        )

    def _show_first(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Shows images of the first batch as the network gets them; returns all batches.

        Meanwhile the training step is compiled.
        """
        first = next(batches)
        self._reporter.show(0, "first_batch", first_augmented(self._training, first))
        return itertools.chain([first], batches)

    def _end_wait(self, source: Source, seconds: float) -> None:
        """Ends a wait for a batch that takes too long or, with one process, a signal interrupts.

        With several processes the watchdog ends it, because the others must end as well.

        Raises:
          StoppedError: a signal has come.
          DataError: the wait has taken `stuck_after_seconds`.
        """
        if client() is None:
            if self._stop.received:
                raise StoppedError
            require_patience(source, seconds, most=self._config.stuck_after_seconds)

    def _before_eval_batch(self, step: int) -> None:
        """Ends an evaluation on a signal; a resumed run repeats it."""
        self._watchdog.note_progress(step, "evaluating")
        if self._stop.agreed():
            raise StoppedError

    # The first step, and a training that is cut short

    def _finish_first_step(self) -> None:
        """Waits until all processes have taken their first step. From now on a signal saves."""
        self._meter.fetch()
        self._stop.leave_at_once = False
        seconds = time.perf_counter() - self._started
        self._reporter.say(f"took the first step {seconds:.1f} s after the start")

    def _save_rest(self) -> None:
        """Logs the steps since the last row, because a resumed run begins a new one, and saves."""
        if not self._meter.empty:
            self._reporter.log(self._step, self._meter.read())
        self._saver.save_if_finite(self._step, self._state, self._meter, score=self._score)

    def _saved_rest(self) -> str:
        """Does the same, and says in one line how that went."""
        try:
            self._save_rest()
        except CheckpointError as failure:
            return str(failure)
        return f"the run is saved up to step {self._step}" if self._step else "no step was taken"
