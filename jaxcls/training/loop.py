"""The training loop: from a config and a directory to a run."""

import contextlib
import os
import signal
import time
from pathlib import Path

from jax.sharding import Mesh

from jaxcls.config import Config
from jaxcls.distributed.agree import (
    by_main_process,
    is_main_process,
    process_id,
    require_same,
    shared_errors,
)
from jaxcls.distributed.mesh import make_mesh
from jaxcls.distributed.stop_signals import StopSignals
from jaxcls.distributed.watchdog import Watchdog
from jaxcls.runs.checkpoint import Checkpoints
from jaxcls.runs.claim import Claim
from jaxcls.runs.directory import checkpoint_dir, prepare_run, record_run, require_shared
from jaxcls.runs.reporter import QuietReporter, Reporter
from jaxcls.runs.run_state import RunState, record_early_stop, record_state, recording_status
from jaxcls.system.early_signals import EXIT_STOPPED, work_is_done
from jaxcls.system.errors import UserError
from jaxcls.system.paths import RunPath, run_path
from jaxcls.system.permissions import restrict_umask
from jaxcls.system.whole_files import delete_temporary_files
from jaxcls.training.build import Training, build_training
from jaxcls.training.compiled_steps import CompiledSteps
from jaxcls.training.experiment import Experiment, open_experiment
from jaxcls.training.profiling import Profile
from jaxcls.training.resume import Beginning, restore_or_initialize
from jaxcls.training.saving import Saver
from jaxcls.training.start_messages import start_messages
from jaxcls.training.step_loop import Outcome, StepLoop
from jaxcls.training.verify_data import verify_data


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
            outcome = StepLoop(
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
            ).run()

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


# Parts of `train`


def _build(experiment: Experiment, mesh: Mesh | None) -> Training:
    return build_training(
        experiment.config,
        num_classes=experiment.source.num_classes,
        num_examples=len(experiment.source),
        class_counts=experiment.info.class_counts,
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
