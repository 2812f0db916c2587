"""`jaxcls train`: trains the network of a config, or resumes a run."""

import dataclasses
import sys
from typing import TYPE_CHECKING, Annotated

import tyro

from jaxcls.commands.common import DEFAULT_JOB, start_job, take_config, validate
from jaxcls.commands.default_workdir import default_workdir
from jaxcls.commands.options import parse
from jaxcls.config import Config
from jaxcls.distributed.job import JobOptions
from jaxcls.system.early_signals import EXIT_STOPPED, ignore_signals
from jaxcls.system.file_names import printable
from jaxcls.system.output import say
from jaxcls.system.paths import run_path
from jaxcls.system.shell import command, path_word

if TYPE_CHECKING:
    from jaxcls.training.loop import Outcome


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    """Trains the network that CONFIG describes, or resumes the run."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    workdir: str | None = None
    """Directory of the run, or gs://BUCKET/FOLDER; made if it does not exist (None: runs/CONFIG,
    with the fields that the command line changes in its name)."""
    allow_changes: bool = False
    """Resume a run although fields that decide its result have changed."""
    profile: Annotated[int, tyro.conf.arg(metavar="STEPS")] = 0
    """Write a profile of this many steps, after the first ones, to the run's folder `profile`."""
    job: Annotated[JobOptions, tyro.conf.arg(name="")] = DEFAULT_JOB


def run(arguments: list[str]) -> int:
    """Runs `jaxcls train CONFIG …`; returns the exit status."""
    name, written, rest = take_config(arguments, "jaxcls train CONFIG")
    options = parse(Train, "jaxcls train CONFIG", rest, default=Train(config=written))
    config = validate(options.config)
    workdir = options.workdir
    if workdir is None:
        workdir = default_workdir(name, [(written, config)])
    workdir = str(run_path(workdir))
    start_job(options.job, stops=True, run=workdir)
    from jaxcls.training.loop import train

    outcome = train(
        config,
        workdir,
        allow_changes=options.allow_changes,
        log_all_processes=options.job.log_all_processes,
        profile_steps=options.profile,
    )
    return report_outcome(outcome, workdir)


def report_outcome(outcome: "Outcome", workdir: str) -> int:
    """Tells the user how the training in a directory ended; returns the exit status."""
    from jaxcls.distributed.agree import is_main_process  # imports jax

    if outcome.stopped_by:
        ignore_signals()
        say(
            f"stopped by {outcome.stopped_by} after step {outcome.step} of {outcome.num_steps}, "
            f"which is saved; the same command resumes the run",
            sys.stderr,
        )
        return EXIT_STOPPED
    if is_main_process():
        say(f"the run is in {printable(workdir)}; evaluate it with:")
        say(f"  {command('evaluate', path_word(workdir))}")
    return 0
