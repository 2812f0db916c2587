"""The `jaxcls sweep` command: the variations that a config file names, one training after another.

Each variation is trained by a process of its own, `jaxcls sweep … --index N`, so that neither a
crash nor leftover memory of one reaches the next. The first process only checks and waits.
"""

import dataclasses
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Annotated, Self

import tyro

from jaxcls.commands.common import DEFAULT_JOB, record_of, start_job, take_first, validate
from jaxcls.commands.default_workdir import default_workdir
from jaxcls.commands.options import parse
from jaxcls.commands.train import report_outcome
from jaxcls.config import Config, encode, load_sweep
from jaxcls.config.diff import differences, short_names, value_text
from jaxcls.distributed.job import EXIT_FAILED, EXIT_USER_ERROR, JobOptions
from jaxcls.system.early_signals import EXIT_STOPPED, stop_signals
from jaxcls.system.errors import UserError
from jaxcls.system.file_names import printable
from jaxcls.system.output import say, table
from jaxcls.system.paths import run_path
from jaxcls.system.shell import command, path_word

PROG = "jaxcls sweep CONFIG"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """Trains the variations that CONFIG's sweep() yields, or resumes them."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    workdir: str | None = None
    """Folder of the runs, each in a folder of its variation's name, or gs://BUCKET/FOLDER (None:
    runs/CONFIG, with the fields that the command line changes in all of them)."""
    index: int | None = None
    """Train this variation alone, counted from 0: for the jobs of an array."""
    list: bool = False
    """Print the variations with their numbers; train nothing."""
    allow_changes: bool = False
    """Resume runs although fields that decide their result have changed."""
    job: Annotated[JobOptions, tyro.conf.arg(name="")] = DEFAULT_JOB


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variation:
    """One training of a sweep: its name, its config, and the directory of its run."""

    name: str
    config: Config
    workdir: str


def run(arguments: list[str]) -> int:
    """Runs `jaxcls sweep …`; returns the exit status."""
    name, rest = take_first(arguments, PROG, "the config file", example="configs/sweep_digits.py")
    if name is None:
        parse(Sweep, PROG, rest, default=Sweep(config=Config()))
    assert name is not None, "--help has ended the program"
    options, variations = _read(name, rest)
    if options.list:
        _print_list(variations)
        return 0
    if options.index is not None:
        if not 0 <= options.index < len(variations):
            raise UserError(
                f"--index: {name} has {len(variations)} variations, so at least 0 and at most "
                f"{len(variations) - 1}, got {options.index}"
            )
        chosen = variations[options.index]
        start_job(options.job, stops=True, run=chosen.workdir)
        from jaxcls.training.loop import train

        outcome = train(
            chosen.config,
            chosen.workdir,
            allow_changes=options.allow_changes,
            log_all_processes=options.job.log_all_processes,
        )
        return report_outcome(outcome, chosen.workdir)
    finished = _check(variations, allow_changes=options.allow_changes)
    train_one = [sys.executable, "-m", "jaxcls", "sweep", *arguments, "--index"]
    return _train_all(variations, finished, train_one)


def _read(name: str, rest: list[str]) -> tuple[Sweep, list[Variation]]:
    """The options, and all variations with the fields that the command line changes.

    Raises:
      UserError: a variation is wrong, or two are the same.
    """
    if record_of(name) is not None:
        raise UserError(
            f"{name!r} holds one config, and no variations of it; give a Python file that defines "
            f"sweep(), or train it with: {command('train', path_word(name))}"
        )
    named = load_sweep(name)
    parsed = [parse(Sweep, PROG, rest, default=Sweep(config=config)) for _, config in named]
    options = parsed[0]
    configs = [
        _named(variation, lambda one=one: validate(one.config))
        for (variation, _), one in zip(named, parsed, strict=True)
    ]
    names = [variation for variation, _ in named]
    _require_different(names, configs)
    written = [config for _, config in named]
    folder = options.workdir
    if folder is None:
        folder = default_workdir(name, zip(written, configs, strict=True))
    folder = str(run_path(folder))
    return options, [
        Variation(name=name, config=config, workdir=f"{folder.rstrip('/')}/{name}")
        for name, config in zip(names, configs, strict=True)
    ]


def _check(variations: Sequence[Variation], *, allow_changes: bool) -> list[bool]:
    """Finds the mistakes of all variations before the first is trained; returns which are finished.

    Raises:
      UserError: a field, the network, the weights, the data or the optimizer of a variation cannot
        be used, its directory holds another run, or two are equal after they are resolved.
    """
    import jax

    jax.config.update("jax_platforms", "cpu")  # the devices belong to the trainings
    from jaxcls.runs.directory import changes_of
    from jaxcls.runs.run_state import recorded_state
    from jaxcls.training.experiment import open_experiment
    from jaxcls.training.optimizers import make_optimizer
    from jaxcls.training.schedules import make_plan

    def check(variation: Variation) -> tuple[Config, bool]:
        run = run_path(variation.workdir)
        experiment = open_experiment(variation.config, run)
        config = experiment.config
        make_optimizer(config.optimizer, make_plan(config, len(experiment.source)).learning_rate)
        changes = changes_of(run, experiment.info, allow_changes=allow_changes)
        state = recorded_state(run)
        return config, not changes and state is not None and state.state == "finished"

    found = [_named(variation.name, lambda one=variation: check(one)) for variation in variations]
    _require_different(
        [variation.name for variation in variations], [config for config, _ in found]
    )
    return [finished for _, finished in found]


def _train_all(
    variations: Sequence[Variation], finished: Sequence[bool], train_one: Sequence[str]
) -> int:
    """Trains all that are not finished, by `train_one` and the number of each.

    Returns:
      0; 1 if some failed; 2 if all ended with a mistake of the user, such as no device, so that the
      same command would fail again.
    """
    failed, mistakes = [], 0
    with OneChild() as child:
        for number, (variation, done) in enumerate(zip(variations, finished, strict=True)):
            place = f"[{number + 1}/{len(variations)}] {variation.name}"
            if done:
                say(f"{place}: finished, in {printable(variation.workdir)}")
                continue
            say(f"{place}: training in {printable(variation.workdir)}")
            status = child.run([*train_one, str(number)])
            if status == EXIT_STOPPED or child.stopped:
                say(
                    f"the sweep was stopped at {variation.name}; the same command resumes it",
                    sys.stderr,
                )
                return EXIT_STOPPED
            mistakes += status == EXIT_USER_ERROR
            if status:
                failed.append(f"{variation.name} ({_status_text(status)})")
    if failed:
        say(
            f"{len(failed)} of {len(variations)} variations failed: {', '.join(failed)}; the same "
            f"command tries them again",
            sys.stderr,
        )
        return EXIT_USER_ERROR if mistakes == len(variations) else EXIT_FAILED
    say("all variations are finished; compare them with:")
    say(f"  {command('runs', path_word(variations[0].workdir.rpartition('/')[0]))}")
    return 0


class OneChild:
    """Runs one process at a time. Inside the `with`, signals to stop are handed to it.

    Attributes:
      stopped: whether there was such a signal.
    """

    def __init__(self) -> None:
        self.stopped = False
        self._told = False
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._previous = {number: signal.signal(number, self._hand_on) for number in stop_signals()}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def run(self, command: Sequence[str]) -> int:
        """Waits for a process to end; its exit status, or minus the signal that killed it."""
        self._process = subprocess.Popen(command)
        self._hand_on_once()  # a signal may have come before there was a process
        try:
            return self._process.wait()
        finally:
            self._process = None  # a signal from now on is for the next one

    def _hand_on(self, _number: int, _frame: FrameType | None) -> None:
        self.stopped = True
        self._hand_on_once()

    def _hand_on_once(self) -> None:
        if self.stopped and self._process is not None and not self._told:
            self._told = True
            self._process.terminate()


def _print_list(variations: Sequence[Variation]) -> None:
    different = differences([variation.config for variation in variations])
    rows = [["index", "variation", *short_names(different).values()]]
    for number, variation in enumerate(variations):
        values = (value_text(row[number]) for row in different.values())
        rows.append([str(number), variation.name, *values])
    say(table(rows))


def _require_different(names: Sequence[str], configs: Sequence[Config]) -> None:
    seen: dict[str, str] = {}
    for name, config in zip(names, configs, strict=True):
        earlier = seen.setdefault(json.dumps(encode(config), sort_keys=True), name)
        if earlier != name:
            raise UserError(
                f"sweep: {earlier!r} and {name!r} have the same config; leave one of them out, and "
                f"do not set on the command line what the sweep varies"
            )


def _named[T](name: str, act: Callable[[], T]) -> T:
    """Does something for a variation; a mistake of the user names it."""
    try:
        return act()
    except UserError as error:
        raise UserError(f"variation {name!r}: {error}") from error


def _status_text(status: int) -> str:
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return f"status {status}"
