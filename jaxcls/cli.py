"""The `jaxcls` command. Imports what a command needs only when it runs, so that help is quick."""

import dataclasses
import json
import logging
import math
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import tyro

from jaxcls.arguments import (
    ALONE,
    check_arguments,
    checked,
    is_config,
    read_config,
    read_step,
    require_devices,
    resolved,
    start_job,
    take_config,
    workdir_of,
)
from jaxcls.cluster import (
    EXIT_FAILED,
    EXIT_USER_ERROR,
    JobOptions,
    end_with,
    joined,
    leave,
)
from jaxcls.compile_cache import keep_compiled
from jaxcls.config import Config
from jaxcls.decoding import MAX_INT, nearest
from jaxcls.errors import UserError, mistake_behind
from jaxcls.names import printable
from jaxcls.options import parse
from jaxcls.output import protect_output, require_printed
from jaxcls.paths import run_path
from jaxcls.shell import command, path_word
from jaxcls.signals import EXIT_STOPPED, ignore_signals, work_is_done

USAGE = """\
usage: jaxcls COMMAND ...

  jaxcls train CONFIG [--workdir DIR] [--field.sub VALUE ...]   train, or go on with a run
  jaxcls sweep CONFIG [--index N] [--list] [--workdir DIR]      train the variations of a config
  jaxcls runs [DIR] [--diff RUN RUN] [--json]                   table of runs, and what differs
  jaxcls evaluate MODEL [--step latest|best|N] [--split NAME]   loss and accuracy
  jaxcls evaluate MODEL --per-class --predictions FILE.csv      of every class and example
  jaxcls predict MODEL IMAGE ... [--top 5] [--format table]     classes of image files
  jaxcls export RUN -o DIR [--step latest|best|N]               a program and weights, to serve it
  jaxcls convert WEIGHTS -o FILE.safetensors [--model NAME]     anybody's weights to a file of ours
  jaxcls prepare SOURCE [--data-dir DIR]                        download and prepare a data set
  jaxcls data CONFIG [--json]                                   what the data holds, and how fast
  jaxcls show augment CONFIG -o FILE.png                        what augmentation does to images
  jaxcls show data CONFIG -o FILE.png                           raw training images with labels
  jaxcls show run RUN ... -o FILE.png                           curves of runs, confusion of one
  jaxcls show schedule CONFIG -o FILE.png                       picture of the learning rate
  jaxcls benchmark CONFIG [--json]                              images a second, and where time goes
  jaxcls compile CONFIG [--topology v5e:4x4] [--search]         whether it fits, before it is run

CONFIG is a Python file that defines get_config(), or the directory of a run. MODEL and WEIGHTS are
the directory of a run, a preset such as efficientnet_lite0_imagenet, or a weights file.
`jaxcls COMMAND --help` explains every option and every field of the config with its default.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    """Trains the network that CONFIG describes, or goes on where the run stopped."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    workdir: str | None = None
    """Directory of the run, or gs://BUCKET/FOLDER; made if it is not there (None: runs/CONFIG, with
    the fields that the command line changes)."""
    allow_changes: bool = False
    """Go on with a run although fields that decide its result have changed."""
    profile: Annotated[int, tyro.conf.arg(metavar="STEPS")] = 0
    """Write a profile of this many steps, after the first ones, to the run's folder `profile`."""
    job: Annotated[JobOptions, tyro.conf.arg(name="")] = ALONE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepare:
    """Makes a data set ready: downloads and converts it once, or indexes a folder."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """tfds:NAME[:VERSION], folder:PATH or digits, as in data.source; or a CONFIG that has one."""
    data_dir: str | None = None
    """Folder of the prepared data sets (None: the usual place of TFDS)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """Reads a split and tells its classes, sizes, formats, broken images and the rate."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    split: str | None = None
    """Split to read, in TFDS syntax (None: data.train_split)."""
    limit: int | None = None
    """Look at no more images than this, evenly spread."""
    json: bool = False
    """Print one JSON object as the last line."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Measures the data pipeline, the augmentation and the step, apart and together."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    synthetic: bool = False
    """Leave the data out: random images of 1,000 classes."""
    seconds: float = 5.0
    """Least time that each part is measured for."""
    json: bool = False
    """Print one JSON object as the last line."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compile:
    """Compiles the training step and tells whether it fits, its memory, traffic and collectives."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    topology: str | None = None
    """TPUs to compile for, such as v5e:4x4, which need not be there (None: this machine's devices).
    Needs the extra tpu-compiler."""
    batch_per_chip: int | None = None
    """Sets data.batch_size to this many images for each device."""
    num_classes: int | None = None
    """Of the classifier (None: as the data have; they need not be there for ImageNet)."""
    search: bool = False
    """Find the largest batch a device that fits, by up to six more compiles."""
    json: bool = False
    """Print one JSON object as the last line."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
    """Writes a run as a program that needs jax alone, with weights, classes and a model card."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Directory of the run."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="DIR")]
    """Folder to make; one that is there must be empty."""
    step: str = "latest"
    """Checkpoint: latest, best (by top-1 during training) or a step's number."""
    platforms: tuple[str, ...] = ("cpu", "cuda", "tpu")
    """Where the program shall run; all of them from one file."""


def run() -> NoReturn:
    """The program `jaxcls`, once `jaxcls.__main__` has seen to its signals."""
    protect_output()
    end_with(main())


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        status = _dispatch(arguments)
        if arguments and arguments[0] not in WORK_IS_ELSEWHERE:
            require_printed()
    except Exception as error:
        if (mistake := mistake_behind(error)) is not None:
            print(f"jaxcls: {printable(str(mistake))}", file=sys.stderr)
            status = EXIT_USER_ERROR
        elif not joined():
            raise
        else:
            traceback.print_exc()
            status = EXIT_FAILED
    work_is_done(status)
    return leave(status)


def _dispatch(arguments: list[str]) -> int:
    if arguments[:1] == ["help"] and len(arguments) > 1:
        arguments = [*arguments[1:], "--help"]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0 if arguments else EXIT_USER_ERROR
    if arguments[0] == "--version":
        from jaxcls import __version__

        print(__version__)
        return 0
    check_arguments(arguments)
    name, *rest = arguments
    if name not in COMMANDS:
        raise UserError(f"unknown command {name!r}{nearest(name, COMMANDS)}\n\n{USAGE}")
    return COMMANDS[name](rest)


def _train(arguments: list[str]) -> int:
    name, written, rest = take_config(arguments, "jaxcls train CONFIG")
    options = parse(Train, "jaxcls train CONFIG", rest, default=Train(config=written))
    config = checked(options.config)
    workdir = options.workdir
    if workdir is None:
        workdir = workdir_of(name, [(written, config)])
    workdir = str(run_path(workdir))
    return _train_in(config, workdir, options.allow_changes, options.job, profile=options.profile)


def _train_in(
    config: Config, workdir: str, allow_changes: bool, job: JobOptions, *, profile: int = 0
) -> int:
    start_job(job, stops=True, run=workdir)
    from jaxcls.distributed import is_first
    from jaxcls.training.loop import train

    outcome = train(
        config,
        workdir,
        allow_changes=allow_changes,
        log_all_processes=job.log_all_processes,
        profile_steps=profile,
    )
    if outcome.stopped_by:
        ignore_signals()
        print(
            f"stopped by {outcome.stopped_by} after step {outcome.step} of {outcome.num_steps}, "
            f"which is saved; the same command goes on from there",
            file=sys.stderr,
        )
        return EXIT_STOPPED
    if is_first():
        print(f"the run lies in {workdir}; evaluate it with:")
        print(f"  {command('evaluate', path_word(workdir))}")
    return 0


def _sweep(arguments: list[str]) -> int:
    from jaxcls.sweep import sweep

    return sweep(arguments, train=_train_in)


def _runs(arguments: list[str]) -> int:
    from jaxcls.runs import runs

    return runs(arguments)


def _show(arguments: list[str]) -> int:
    from jaxcls.show import show

    return show(arguments, usage=USAGE)


def _evaluate(arguments: list[str]) -> int:
    from jaxcls.evaluate import evaluate

    return evaluate(arguments)


def _predict(arguments: list[str]) -> int:
    from jaxcls.predict import predict

    return predict(arguments)


def _export(arguments: list[str]) -> int:
    options = parse(Export, "jaxcls export", arguments)
    step = read_step(options.step)
    require_devices()
    keep_compiled()
    from jaxcls.export import export_run

    step = export_run(options.run, options.output, step=step, platforms=options.platforms)
    print(f"wrote {printable(options.output)}: step {step}, for {', '.join(options.platforms)}")
    return 0


def _convert(arguments: list[str]) -> int:
    from jaxcls.convert import convert

    return convert(arguments)


def _benchmark(arguments: list[str]) -> int:
    prog = "jaxcls benchmark CONFIG"
    _, config, rest = take_config(arguments, prog)
    options = parse(Benchmark, prog, rest, default=Benchmark(config=config))
    if not options.seconds >= 0 or math.isinf(options.seconds):
        raise UserError(f"--seconds: must be at least 0 and finite, got {options.seconds}")
    config = resolved(options.config)
    require_devices()
    keep_compiled()
    from jaxcls.benchmark import benchmark, describe

    report = benchmark(config, synthetic=options.synthetic, seconds=options.seconds)
    print(describe(report))
    if options.json:
        print(json.dumps(report))
    return 0


def _compile(arguments: list[str]) -> int:
    prog = "jaxcls compile CONFIG"
    _, config, rest = take_config(arguments, prog)
    options = parse(Compile, prog, rest, default=Compile(config=config))
    for name, value in (
        ("--batch-per-chip", options.batch_per_chip),
        ("--num-classes", options.num_classes),
    ):
        if value is not None and not 1 <= value <= MAX_INT:
            raise UserError(f"{name}: must be at least 1 and at most {MAX_INT}, got {value}")
    from jaxcls.topologies import chip_of, devices_of, prepare_environment

    devices = chip = None
    if options.topology is not None:
        chip = chip_of(options.topology)
        prepare_environment()
    require_devices()
    if options.topology is not None:
        devices = devices_of(options.topology)
    import jax

    from jaxcls.rehearsal import describe, rehearse

    config = options.config
    if options.batch_per_chip is not None:
        size = options.batch_per_chip * len(devices or jax.devices())
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=size))
    report = rehearse(
        resolved(config),
        devices=devices,
        chip=chip,
        num_classes=options.num_classes,
        search=options.search,
    )
    print(describe(report))
    if options.json:
        print(json.dumps(report))
    return 0 if report["fits"] else 1


def _prepare(arguments: list[str]) -> int:
    options = parse(Prepare, "jaxcls prepare", arguments)
    source, data_dir = options.source, options.data_dir
    if is_config(source):
        data = read_config(source).data
        source, data_dir = data.source, data.data_dir if data_dir is None else data_dir
    from jaxcls.data.sources import prepare_source

    print(prepare_source(source, data_dir))
    return 0


def _data(arguments: list[str]) -> int:
    prog = "jaxcls data CONFIG"
    _, config, rest = take_config(arguments, prog)
    options = parse(Data, prog, rest, default=Data(config=config))
    if options.limit is not None and options.limit < 1:
        raise UserError(f"--limit: must be at least 1, got {options.limit}")
    data = resolved(options.config).data
    from jaxcls.data.sources import open_source
    from jaxcls.data.survey import describe, survey

    split = data.train_split if options.split is None else options.split
    field = None if options.split is None else "--split"
    found = survey(open_source(data, split, field=field), data, limit=options.limit)
    print(describe(found))
    if options.json:
        print(json.dumps(dataclasses.asdict(found)))
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": _train,
    "sweep": _sweep,
    "runs": _runs,
    "evaluate": _evaluate,
    "predict": _predict,
    "export": _export,
    "convert": _convert,
    "prepare": _prepare,
    "data": _data,
    "show": _show,
    "benchmark": _benchmark,
    "compile": _compile,
}

WORK_IS_ELSEWHERE = ("train", "sweep")  # not in what they print
