"""The training loop: from a config and a directory to a run."""

import contextlib
import dataclasses
import itertools
import os
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from jax.sharding import Mesh

from jaxcls.config import Config
from jaxcls.data.device import device_batches, require_patience
from jaxcls.data.sources import Source
from jaxcls.distributed.agree import (
    by_main_process,
    client,
    is_main_process,
    process_id,
    require_same,
    shared_errors,
)
from jaxcls.distributed.mesh import make_mesh
from jaxcls.distributed.stop_signals import StoppedError, StopSignals
from jaxcls.distributed.watchdog import Watchdog
from jaxcls.runs.checkpoint import CheckpointError, Checkpoints
from jaxcls.runs.claim import Claim
from jaxcls.runs.directory import (
    RunState,
    checkpoint_dir,
    prepare_run,
    record_early_stop,
    record_run,
    record_state,
    recording_status,
    require_shared,
)
from jaxcls.runs.reporter import QuietReporter, Reporter
from jaxcls.system.early_signals import EXIT_STOPPED, work_is_done
from jaxcls.system.errors import DataError, UserError
from jaxcls.system.paths import RunPath, run_path
from jaxcls.system.permissions import restrict_umask
from jaxcls.system.whole_files import delete_temporary_files
from jaxcls.training.build import Training, build_training
from jaxcls.training.compiled_steps import CompiledSteps
from jaxcls.training.evaluation import make_evaluator
from jaxcls.training.experiment import Experiment, open_experiment
from jaxcls.training.intervals import intervals_of
from jaxcls.training.meter import Meter
from jaxcls.training.preview import first_augmented
from jaxcls.training.profiling import Profile
from jaxcls.training.resume import Beginning, restore_or_initialize
from jaxcls.training.saving import Saver
from jaxcls.training.start_messages import start_messages
from jaxcls.training.step import Batch
from jaxcls.training.verify_data import verify_data


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


def train(
    config: Config,
    workdir: str | Path,
    *,
    mesh: Mesh | None = None,
    allow_changes: bool = False,
    log_all_processes: bool = False,
    profile_steps: int = 0,
) -> Outcome:
    """Trains the network of a config, or resumes the run in `workdir`.

    On the same devices a resumed run equals an uninterrupted one, bit for bit on CPU: the order of
    the data and every draw follow from the seed and the step alone.

    Before the first step a signal ends the whole process with status 75, and in a job of several
    processes the watchdog may end it with status 1. From now on the process makes no file that
    every user can write (its umask).

    Args:
      config: the experiment.
      workdir: the run's directory, or gs://BUCKET/FOLDER; made if it does not exist.
      mesh: the devices (None: all of them).
      allow_changes: resume a run although fields that decide its result have changed.
      log_all_processes: keep a log of every process of the job, not only of the main one.
      profile_steps: profile this many steps of the main process into the folder `profile` of
        the run, which must be local.

    Raises:
      UserError: the config, the data or the directory cannot be used, another training writes to
        the directory, or the loss is not finite.
    """
    restrict_umask()
    started, run = time.perf_counter(), run_path(workdir)
    _check_profile(run, profile_steps)
    with contextlib.ExitStack() as stack:
        # 1. Watch for signals. Before the first step nothing is lost, so a signal ends the process
        #    at once, even while it compiles.
        stop = stack.enter_context(StopSignals())
        stop.leave_at_once = True
        watchdog = stack.enter_context(Watchdog(stuck_after=config.stuck_after_seconds))

        # 2. Open the experiment and build its training. The user's mistakes are found here, before
        #    anything is written or compiled.
        with shared_errors():
            experiment = open_experiment(config, run)
            training = _build(experiment, mesh)
            changes = prepare_run(run, experiment.info, allow_changes=allow_changes)

        # 3. Claim the run, so that no other training writes to it. Compare all processes, and the
        #    content of the data, which may take long.
        claim = stack.enter_context(Claim(run, on_lost=_stop_this_process))
        stop.before_leaving = lambda: _leave_run(run, claim, stop)
        by_main_process(lambda: _delete_temporary_files(run))
        require_same(experiment.facts())
        require_shared(run)
        data = verify_data(experiment, run, allow_changes=allow_changes, watchdog=watchdog)

        # 4. Restore the newest good checkpoint, or make a new state, while the step compiles.
        checkpoints = stack.enter_context(_open_checkpoints(run, training.config))
        steps = CompiledSteps(training)
        beginning = restore_or_initialize(training, checkpoints, experiment.source, steps)
        start = beginning.step

        # 5. Record the run and report. Not earlier: a failed restore leaves the run as it was.
        by_main_process(lambda: data.record(run))
        by_main_process(lambda: record_run(run, experiment.info))
        num_steps = training.plan.num_steps
        stack.enter_context(recording_status(run, num_steps=num_steps))
        with shared_errors():
            reporter = stack.enter_context(
                _open_reporter(run, training, beginning, log_all_processes=log_all_processes)
            )
        # First on the way out: if a signal is ending the process, errors of others do not matter.
        stack.push(stop.finish_leaving)
        notes = (claim.message, data.message, beginning.message)
        changes = [*changes, *data.changes]
        for message in start_messages(
            experiment, training, start=start, notes=notes, changes=changes
        ):
            reporter.say(message)

        # 6. Take the steps that are left.
        if start >= num_steps and beginning.evaluated:
            stop.leave_at_once = False  # the run is finished, so a signal changes nothing
            outcome = Outcome(start, num_steps, metrics={}, stopped_by=None)
        else:
            outcome = take_steps(
                beginning,
                started=started,
                experiment=experiment,
                training=training,
                steps=steps,
                saver=Saver(
                    checkpoints,
                    claim,
                    experiment.info,
                    watchdog=watchdog,
                    publish_metrics=reporter.publish,
                    start=start,
                ),
                reporter=reporter,
                stop=stop,
                watchdog=watchdog,
                profile=Profile(
                    run / "profile", start=start, steps=profile_steps if is_main_process() else 0
                ),
            )

        # 7. Record how the training ended.
        ended = "stopped" if outcome.stopped_by else "finished"
        why = outcome.stopped_by or ""
        record_state(run, RunState(state=ended, num_steps=num_steps, why=why))
        work_is_done(EXIT_STOPPED if outcome.stopped_by else 0)
        for split in (experiment.source, experiment.eval_source):
            if split.broken:
                reporter.say(
                    f"skipped {len(split.broken)} broken images of {split.name} {split.split!r}; "
                    f"log.txt names them"
                )
        return outcome


def take_steps(
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
) -> Outcome:
    """Takes the steps after the beginning, up to the last one or a signal to stop.

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
    intervals, num_steps = intervals_of(training), training.plan.num_steps
    meter = Meter(
        training.config.data.batch_size,
        max_skipped=training.config.max_skipped_steps,
        say=reporter.say,
    )
    evaluate = make_evaluator(
        training,
        experiment.eval_source,
        before_batch=lambda step: _before_eval_batch(step, stop, watchdog),
        on_wait=lambda seconds: _end_wait(experiment.eval_source, seconds, training.config, stop),
    )
    metrics: dict[str, float] = {}
    top1: float | None = None  # of the evaluation after this step, if there was one
    state, start = beginning.state, beginning.step
    step, interrupted = start, False  # `step` is the last one that `state` has taken
    batches_ahead = device_batches(
        experiment.source,
        training.config.data,
        seed=training.config.seed,
        mesh=training.mesh,
        start=start,
        on_wait=lambda seconds: _end_wait(experiment.source, seconds, training.config, stop),
    )
    with profile, batches_ahead as batches:
        try:
            if start == 0 and training.config.log_images and is_main_process():
                batches = _show_first(batches, training, reporter)
            if start and intervals.evaluates(start) and not beginning.evaluated:
                # The evaluation of this step was cut short, and an undisturbed run has it.
                metrics = evaluate(start, state)
                reporter.evaluated(start, metrics)
                top1 = metrics["top1"]
                saver.note_evaluation(start, top1)
                meter.restart_clock()
            ending = step >= num_steps
            while not ending:
                # Read a batch. It was made ahead, so this waits only for slow data.
                profile.before(step + 1)
                watchdog.note_progress(step, "reading data")
                with meter.waiting():
                    batch = next(batches)

                # Take a step: augmentation, gradients and update are one compiled program, and the
                # call returns while the devices still work on it.
                train_step = steps.for_step(step, watchdog=watchdog, say=reporter.say)
                watchdog.note_progress(step, "taking the next step")
                state, step_metrics = train_step(state, batch)
                step, top1 = step + 1, None
                meter.add(step, step_metrics)
                profile.after(step, step_metrics)
                if step == start + 1:
                    _finish_first_step(started, meter, stop, reporter)

                # Agree with the other processes whether to stop after this step. A training whose
                # run was taken over by another one stops, too, and writes nothing more.
                ending = step == num_steps or stop.agreed()
                if ending:
                    saver.require_claim()

                # Log. To read the metrics, the host waits for the devices.
                # A resumed run logs the same steps as an undisturbed one.
                if ending or step == 1 or intervals.logs(step):
                    reporter.log(step, meter.read())

                # Evaluate the moving averages, or the parameters if no averages are kept.
                if intervals.evaluates(step):
                    metrics = evaluate(step, state)
                    reporter.evaluated(step, metrics)
                    top1 = metrics["top1"]

                # Save, in the background.
                if ending or intervals.saves(step):
                    saver.save(step, state, top1=top1, last=ending)
                else:
                    saver.replace_failed(step, state, meter, top1=top1, logged=intervals.logs(step))
                if intervals.evaluates(step) or intervals.saves(step):
                    meter.restart_clock()
        except StoppedError:  # while it waited for data, or evaluated
            interrupted = True
            _log_rest(step, meter, reporter)
            saver.save_if_finite(step, state, meter, top1=top1)
        except DataError as error:
            # With several processes it cannot save: the others do not know of the error.
            if client() is not None:
                raise
            saved = f"the run is saved up to step {step}" if step else "no step was taken"
            try:
                _log_rest(step, meter, reporter)
                saver.save_if_finite(step, state, meter, top1=top1)
            except CheckpointError as failure:
                saved = str(failure)
            raise DataError(f"{error}\n{saved}; fix it and run the same command again") from error
        else:
            saver.finish(step, state, top1=top1)
    stopped_by = stop.received if interrupted or step < num_steps else None
    return Outcome(step, num_steps, metrics, stopped_by)


# Parts of `train`


def _build(experiment: Experiment, mesh: Mesh | None) -> Training:
    return build_training(
        experiment.config,
        num_classes=experiment.source.num_classes,
        num_examples=len(experiment.source),
        mesh=mesh or make_mesh(parallel=experiment.config.parallel),
    )


def _open_checkpoints(run: RunPath, config: Config) -> Checkpoints:
    return Checkpoints(
        checkpoint_dir(run),
        keep_latest=config.checkpoint.keep_latest,
        keep_best=config.checkpoint.keep_best,
    )


def _open_reporter(
    run: RunPath, training: Training, beginning: Beginning, *, log_all_processes: bool
) -> Reporter | QuietReporter:
    if not is_main_process():
        log = run / f"log.{process_id()}.txt"
        # Nothing can be appended to a file in a bucket.
        return QuietReporter(log if log_all_processes and isinstance(log, Path) else None)
    return Reporter(
        run,
        num_steps=training.plan.num_steps,
        steps_per_epoch=training.plan.steps_per_epoch,
        start_step=beginning.step,
        start_evaluated=beginning.evaluated,
        config=training.config,
    )


# Around the steps


def _end_wait(source: Source, seconds: float, config: Config, stop: StopSignals) -> None:
    """Ends a wait for a batch that takes too long or, with one process, that a signal interrupts.

    With several processes the watchdog ends it, because the others must end as well.

    Raises:
      StoppedError: a signal has come.
      DataError: the wait has taken `stuck_after_seconds`.
    """
    if client() is None:
        if stop.received:
            raise StoppedError
        require_patience(source, seconds, most=config.stuck_after_seconds)


def _finish_first_step(
    started: float, meter: Meter, stop: StopSignals, reporter: Reporter | QuietReporter
) -> None:
    """Waits until all processes have taken their first step. From now on a signal saves first."""
    meter.fetch()
    stop.leave_at_once = False
    reporter.say(f"took the first step {time.perf_counter() - started:.1f} s after the start")


def _log_rest(step: int, meter: Meter, reporter: Reporter | QuietReporter) -> None:
    """Logs the steps since the last row, because a resumed run begins a new one."""
    if not meter.empty:
        reporter.log(step, meter.read())


def _show_first(
    batches: Iterator[Batch], training: Training, reporter: Reporter | QuietReporter
) -> Iterator[Batch]:
    """Shows images of the first batch as the network gets them; returns all batches.

    Meanwhile the training step is compiled.
    """
    first = next(batches)
    reporter.show(0, "first_batch", first_augmented(training, first))
    return itertools.chain([first], batches)


def _before_eval_batch(step: int, stop: StopSignals, watchdog: Watchdog) -> None:
    """Ends an evaluation on a signal; a resumed run repeats it."""
    watchdog.note_progress(step, "evaluating")
    if stop.agreed():
        raise StoppedError


# Signals and mistakes


def _stop_this_process() -> None:
    """Stops the job as a signal does: all processes agree on a step."""
    os.kill(os.getpid(), signal.SIGTERM)


def _leave_run(run: RunPath, claim: Claim, stop: StopSignals) -> None:
    """Records the end of a training that a signal ends before its first step."""
    claim.require_here()
    record_early_stop(run, stop.received or "a signal")
    claim.release()


def _delete_temporary_files(run: RunPath) -> None:
    for folder in (run, checkpoint_dir(run)):
        delete_temporary_files(folder)


def _check_profile(run: RunPath, steps: int) -> None:
    if steps < 0:
        raise UserError(f"--profile: must be at least 0 steps, got {steps}")
    if steps and not isinstance(run, Path):
        raise UserError(f"--profile: needs a run in a local folder, not {str(run)!r}")
