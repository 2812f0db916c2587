"""The training loop: from a config and a directory to a run."""

import contextlib
import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jax import Array
from jax.sharding import Mesh

from jaxcls.config import Config, encode
from jaxcls.config.decoding import flatten
from jaxcls.data.batches import train_batches
from jaxcls.data.device import process_rows, to_device
from jaxcls.data.sources import Source
from jaxcls.distributed.agree import (
    by_main_process,
    client,
    is_main_process,
    process_id,
    require_same,
    together,
)
from jaxcls.distributed.job import end_now
from jaxcls.distributed.mesh import bytes_per_device, make_mesh, split_by_example
from jaxcls.distributed.stop_signals import StoppedError, StopSignals
from jaxcls.distributed.watchdog import COMPILING, Watchdog
from jaxcls.models.registry import Variables
from jaxcls.runs.checkpoint import Checkpoints
from jaxcls.runs.claim import Claim
from jaxcls.runs.directory import (
    RunInfo,
    RunState,
    checkpoint_dir,
    prepare_run,
    record_early_stop,
    record_run,
    record_state,
    recorded_info,
    recording_failure,
    require_shared,
)
from jaxcls.runs.reporter import QuietReporter, Reporter
from jaxcls.system.early_signals import EXIT_STOPPED, work_is_done
from jaxcls.system.errors import UserError
from jaxcls.system.paths import RunPath, run_path
from jaxcls.training.build import Training, build_training
from jaxcls.training.compiled_steps import CompiledSteps
from jaxcls.training.evaluation import evaluate_split, make_eval_step
from jaxcls.training.experiment import open_experiment
from jaxcls.training.initial_values import make_initial_values
from jaxcls.training.meter import Meter, require_finite
from jaxcls.training.preview import first_augmented
from jaxcls.training.profiling import Profile
from jaxcls.training.resume_warnings import epoch_warning
from jaxcls.training.state import TrainState
from jaxcls.training.step import BATCH_FIELDS, Batch

HANGING_SECONDS = 10.0  # given to data that hang, once the run has stopped

UNEQUAL_MICRO_BATCHES = (
    'warning: with model.batch_norm "global", each micro-batch is normalised by itself, so '
    "optimizer.micro_batches changes the result; a group size makes them equal the whole batch"
)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended.

    Attributes:
      step: the last step taken, which is saved.
      num_steps: length of the whole training.
      metrics: the last evaluation's, empty if there was none.
      stopped_by: the signal that ended it early, or None.
    """

    step: int
    num_steps: int
    metrics: Mapping[str, float]
    stopped_by: str | None


def train(
    config: Config,
    workdir: str | Path,
    *,
    mesh: Mesh | None = None,
    allow_changes: bool = False,
    log_all_processes: bool = False,
    profile_steps: int = 0,
) -> Outcome:
    """Trains, or goes on where the run in `workdir` stopped.

    On the same devices a resumed run equals an uninterrupted one, bit for bit on CPU: the order of
    the data and every draw follow from the seed and the step alone.

    Args:
      config: the experiment.
      workdir: the run's directory, or gs://BUCKET/FOLDER; made if it is not there.
      mesh: the devices, by default all.
      allow_changes: go on with a run although fields that decide its result have changed.
      log_all_processes: keep a log of every process of the job, not only of the first.
      profile_steps: profile this many steps of the first process into the folder `profile` of
        the run, which must be local.

    Raises:
      UserError: whatever the user can mend: config, data, a directory that cannot be used or that
        another training writes to, a loss that is not finite.
    """
    started, run = time.perf_counter(), run_path(workdir)
    _require_profile(run, profile_steps)
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopSignals())
        stop.leave_at_once = True  # until a step is taken
        watchdog = stack.enter_context(Watchdog(stuck_after=config.stuck_after_seconds))
        with together():
            recorded = recorded_info(run)
            info, source, eval_source = open_experiment(config, run)
            config = info.config
            training = build_training(
                config,
                num_classes=source.num_classes,
                num_examples=len(source),
                mesh=mesh or make_mesh(parallel=config.parallel),
            )
            changes = prepare_run(run, info, allow_changes=allow_changes)
        claim = stack.enter_context(Claim(run, on_taken_over=_stop_this_process))
        stop.before_leaving = lambda: _leave_run(run, claim, stop)
        require_same(_facts(info, eval_source))
        require_shared(run)
        checkpoints = stack.enter_context(open_checkpoints(run, config))
        steps = CompiledSteps(training)
        if training.plan.num_steps not in (saved := checkpoints.steps()):
            steps.begin(max(saved, default=0))  # meanwhile the state is made
        state, start, notes = _restore_or_init(training, checkpoints, source)
        # A shared disk may show the processes different checkpoints.
        require_same({"the step to go on from": start})
        # Not before: a restore that fails leaves the run as it was.
        by_main_process(lambda: record_run(run, info))
        num_steps = training.plan.num_steps
        stack.enter_context(recording_failure(run, num_steps=num_steps))
        with together():
            reporter = stack.enter_context(
                _reporter(run, training, start, log_all_processes=log_all_processes)
            )
        stack.push(stop.finish_leaving)
        if start >= num_steps:
            reporter.say(f"finished already, at step {start}; nothing is left to train")
        else:
            reporter.say(_introduction(training, source, start))
        for note in filter(None, (claim.message, notes)):
            reporter.say(note)
        for change in changes:
            reporter.say(f"changed since the run began: {change}")
        if warning := epoch_warning(
            recorded, info, num_examples=len(source), step=start, plan=training.plan
        ):
            reporter.say(warning)
        if _micro_batches_matter(config):
            reporter.say(UNEQUAL_MICRO_BATCHES)
        missed = Intervals.of(training).missed_evaluations(config)
        if missed and start < num_steps:
            reporter.say(missed)
        if start >= num_steps:
            stop.leave_at_once = False  # there is nothing left to start again
            record_state(run, RunState(state="finished", num_steps=num_steps))
            work_is_done(0)
            return Outcome(start, num_steps, metrics={}, stopped_by=None)
        profiled = profile_steps if is_main_process() else 0
        profile = stack.enter_context(Profile(run / "profile", start=start, steps=profiled))
        loop = Run(
            started,
            training,
            steps,
            source,
            eval_source,
            info,
            checkpoints,
            claim,
            reporter,
            stop,
            watchdog,
            profile,
        )
        outcome = loop.advance(state, start)
        ended = "stopped" if outcome.stopped_by else "finished"
        why = outcome.stopped_by or ""
        record_state(run, RunState(state=ended, num_steps=num_steps, why=why))
        work_is_done(EXIT_STOPPED if outcome.stopped_by else 0)
        for part in (source, eval_source):
            if part.broken:
                reporter.say(
                    f"skipped {len(part.broken)} broken images of {part.name} {part.split!r}; "
                    f"log.txt names them"
                )
        return outcome


@dataclasses.dataclass(frozen=True)
class Run:
    """What a training run works with, beside its state."""

    started: float
    training: Training
    steps: CompiledSteps
    source: Source
    eval_source: Source
    info: RunInfo
    checkpoints: Checkpoints
    claim: Claim
    reporter: Reporter | QuietReporter
    stop: StopSignals
    watchdog: Watchdog
    profile: Profile

    def advance(self, state: TrainState, start: int) -> Outcome:
        """Takes the steps after `start`, up to the last one or a signal."""
        calendar = Intervals.of(self.training)
        eval_step = self._make_eval_step()
        metrics: dict[str, float] = {}
        step = start
        hanging = threading.Timer(
            HANGING_SECONDS,
            end_now,
            [EXIT_STOPPED, "the data hang, so the training ends without them; its state is saved"],
        )
        with device_batches(
            self.training, self.source, start=start, on_wait=self._stop_waiting
        ) as batches:
            program = None
            meter = Meter(self.info.config.data.batch_size)
            for step in range(start + 1, calendar.num_steps + 1):
                self.profile.before(step)
                self.watchdog.note_progress(step - 1, "reading data")
                try:
                    with self._keeping(step - 1, state, meter), meter.waiting():
                        batch = next(batches)
                except StoppedError:
                    step -= 1
                    self._save_good(step, state, meter)
                    hanging.start()  # closing the batches waits for the one in the making
                    break
                if step == 1 and self.info.config.log_images and is_main_process():
                    self.reporter.show(0, "first_batch", self._first_augmented(batch))
                if program is None or step - 1 in self.training.plan.stage_ends:
                    self.watchdog.note_progress(step - 1, COMPILING)
                    program = self.steps.enter(step - 1, say=self.reporter.say)
                self.watchdog.note_progress(step - 1, "taking the next step")
                state, step_metrics = program(state, batch)
                meter.add(step, step_metrics)
                self.profile.after(step, step_metrics)
                if step == start + 1:
                    meter.check()  # waits until all processes have taken it
                    self.stop.leave_at_once = False
                ending = step == calendar.num_steps or self.stop.agreed()
                if ending:
                    self.claim.require()  # it may be why process 0 stops
                if ending or step == start + 1 or calendar.reads(step):
                    self.reporter.log(step, meter.read())
                if step == start + 1:
                    seconds = time.perf_counter() - self.started
                    self.reporter.say(f"took the first step {seconds:.1f} s after the start")
                score = None
                if calendar.evaluates(step):
                    try:
                        with self._keeping(step, state, meter):
                            metrics = eval_step(step, state)
                    except StoppedError:  # no later run makes up for it
                        ending = True
                    else:
                        require_finite(step, "evaluation loss", metrics["loss"])
                        self.reporter.evaluated(step, metrics)
                        score = metrics["top1"]
                if ending or calendar.saves(step):
                    self.watchdog.note_progress(step, "saving")
                    self._save(step, state, score)
                if ending:
                    break
                if calendar.evaluates(step) or calendar.saves(step):
                    meter.restart()
        hanging.cancel()
        self.checkpoints.wait()
        stopped_by = self.stop.received if step < calendar.num_steps else None
        return Outcome(step, calendar.num_steps, metrics, stopped_by)

    @contextlib.contextmanager
    def _keeping(self, step: int, state: TrainState, meter: Meter) -> Iterator[None]:
        """Saves the state after `step`, if it is good, when data inside cannot be used.

        Of several processes only this one knows of it, so nothing can be saved together.
        """
        try:
            yield
        except UserError as error:
            if client() is not None:
                raise
            self._save_good(step, state, meter)
            saved = f"the run is saved up to step {step}" if step else "no step was taken"
            raise UserError(f"{error}\n{saved}; fix it and run the same command again") from error

    def _first_augmented(self, batch: Batch) -> np.ndarray:
        """Images of the first batch as the network gets them, while its step is compiled."""
        return first_augmented(
            self.info.config,
            batch,
            num_classes=self.source.num_classes,
            step=0,
            stage_ends=self.training.plan.stage_ends,
            count=self.info.config.log_images,
        )

    def _save_good(self, step: int, state: TrainState, meter: Meter) -> None:
        meter.check()
        self.checkpoints.wait()
        if step and step not in self.checkpoints.steps():
            self._save(step, state)
            self.checkpoints.wait()

    def _save(self, step: int, state: TrainState, score: float | None = None) -> None:
        self.claim.require()
        self.checkpoints.save(step, state, metadata=self.info.to_json(), metric=score)

    def _stop_waiting(self) -> None:
        """Ends a wait for training data on a signal; of several processes, the watchdog ends it."""
        if client() is None and self.stop.received:
            raise StoppedError

    def _make_eval_step(self) -> Callable[[int, TrainState], dict[str, float]]:
        config, mesh = self.info.config, self.training.mesh
        eval_step = make_eval_step(self.training.model, loss=config.loss.name, mesh=mesh)

        def evaluate_after(step: int, state: TrainState) -> dict[str, float]:
            def step_or_stop(variables: Variables, batch: Mapping[str, Array]) -> dict[str, Array]:
                # The last step's is not cut short: no later run would make up for it.
                self.watchdog.note_progress(step, "evaluating")
                if self.stop.agreed() and step < self.training.plan.num_steps:
                    raise StoppedError
                sums = eval_step(variables, batch)
                if state.ema is None:
                    return sums
                raw = eval_step(state.variables, batch)
                return sums | {f"raw_{name}": raw[name] for name in ("loss", "top1", "top5")}

            return evaluate_split(
                step_or_stop, state.eval_variables, self.eval_source, config.data, mesh=mesh
            )

        return evaluate_after


@dataclasses.dataclass(frozen=True, kw_only=True)
class Intervals:
    """Which steps are followed by what. Steps count from 1; the last one has everything."""

    num_steps: int
    log_every: int
    eval_every: int
    save_every: int

    @classmethod
    def of(cls, training: Training) -> "Intervals":
        config = training.config
        epoch = max(1, round(training.plan.steps_per_epoch))
        return cls(
            num_steps=training.plan.num_steps,
            log_every=config.log_every_steps,
            eval_every=config.eval_every_steps or epoch,
            save_every=config.checkpoint.every_steps or epoch,
        )

    def evaluates(self, step: int) -> bool:
        return step % self.eval_every == 0 or step == self.num_steps

    def saves(self, step: int) -> bool:
        return step % self.save_every == 0 or step == self.num_steps

    def missed_evaluations(self, config: Config) -> str | None:
        """A warning if a step that was evaluated, and may be the best, is not saved."""
        if not config.checkpoint.keep_best or self.eval_every % self.save_every == 0:
            return None
        if self.num_steps <= self.eval_every:  # the last step alone is evaluated, and it is saved
            return None
        return (
            f"warning: checkpoints (every {self.save_every} steps) do not coincide with all "
            f"evaluations (every {self.eval_every}), so the best step may not be saved; make "
            f"eval_every_steps a multiple of checkpoint.every_steps"
        )

    def reads(self, step: int) -> bool:
        """Whether the metrics are fetched; always before a save, which must not keep a NaN."""
        return step % self.log_every == 0 or self.evaluates(step) or self.saves(step)


def open_checkpoints(run: RunPath, config: Config) -> Checkpoints:
    """The checkpoints of a run."""
    return Checkpoints(
        checkpoint_dir(run),
        keep_latest=config.checkpoint.keep_latest,
        keep_best=config.checkpoint.keep_best,
    )


def _restore_or_init(
    training: Training, checkpoints: Checkpoints, source: Source
) -> tuple[TrainState, int, str]:
    """The newest good state and its step, or the first state and 0; and what is to be said of it.

    A run that goes on no longer needs the weights that it started from.
    """
    if not checkpoints.any_saved():
        with together():
            values, notes = make_initial_values(training.config, training.model, source)
        return training.init(values), 0, notes
    restored = checkpoints.restore(training.abstract_state())
    return restored.state, restored.step, ""


def _stop_this_process() -> None:
    """Stops the job as a signal does: all processes agree on a step."""
    os.kill(os.getpid(), signal.SIGTERM)


def _leave_run(run: RunPath, claim: Claim, stop: StopSignals) -> None:
    """What is left to do for a run when a signal ends the process before it took a step."""
    claim.require_alone()
    record_early_stop(run, stop.received or "a signal")
    claim.release()


def _require_profile(run: RunPath, steps: int) -> None:
    if steps < 0:
        raise UserError(f"--profile: must be at least 0 steps, got {steps}")
    if steps and not isinstance(run, Path):
        raise UserError(f"--profile: needs a run in a local folder, not {str(run)!r}")


def _facts(info: RunInfo, eval_source: Source) -> dict[str, Any]:
    """What must be the same in all processes of a job, by its names."""
    described = info.to_json()
    config = flatten(encode(info.config))
    del described["config"]
    return {**described, "evaluation data": eval_source.identity, **config}


def _reporter(
    run: RunPath, training: Training, start: int, *, log_all_processes: bool
) -> Reporter | QuietReporter:
    if not is_main_process():
        log = run / f"log.{process_id()}.txt"
        # A bucket takes no lines.
        return QuietReporter(log if log_all_processes and isinstance(log, Path) else None)
    return Reporter(
        run,
        num_steps=training.plan.num_steps,
        steps_per_epoch=training.plan.steps_per_epoch,
        start_step=start,
        config=training.config,
    )


@contextlib.contextmanager
def device_batches(
    training: Training, source: Source, *, start: int, on_wait: Callable[[], None] = lambda: None
) -> Iterator[Iterator[Batch]]:
    """Training batches from step `start` on, on the devices; `on_wait` as in `to_device`."""
    data = training.config.data
    sharding = split_by_example(training.mesh)
    host_batches = train_batches(
        source,
        data,
        seed=training.config.seed,
        rows=process_rows(sharding, data.batch_size),
        start=start,
    )
    arrays = to_device(host_batches, sharding, depth=data.prefetch, on_wait=on_wait)
    with contextlib.closing(arrays) as batches:
        yield ({name: batch[name] for name in BATCH_FIELDS} for batch in batches)


def _micro_batches_matter(config: Config) -> bool:
    model = config.model
    global_statistics = model.batch_norm == "global" and not model.freeze_batch_norm
    return global_statistics and config.optimizer.micro_batches > 1


def _introduction(training: Training, source: Source, start: int) -> str:
    config, data, devices = training.config, training.config.data, training.mesh.devices
    sizes = ", ".join(map(str, training.steps))
    state_megabytes = bytes_per_device(training.abstract_state()) / 1e6
    return (
        f"{'resuming after step ' + str(start) if start else 'training'}: {config.model.name} on "
        f"{source.name} ({len(source)} images, {source.num_classes} classes), "
        f"{training.plan.num_steps} steps of {data.batch_size} at {sizes} px, "
        f"{config.compute_dtype}, {devices.size} x {devices.flat[0].device_kind}, "
        f"state {config.parallel.state} ({state_megabytes:.1f} MB a device)"
    )
