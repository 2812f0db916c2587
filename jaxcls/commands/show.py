"""The `jaxcls show` commands: pictures of a config or a run, written to a file."""

import csv
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from jaxcls.commands.common import read_step, require_devices, resolved, take_config
from jaxcls.commands.options import parse
from jaxcls.config import Config
from jaxcls.config.augment import OpName
from jaxcls.config.decoding import MAX_INT, nearest
from jaxcls.system.caches import set_library_caches
from jaxcls.system.errors import UserError
from jaxcls.system.names import printable
from jaxcls.system.shell import command, path_word

if TYPE_CHECKING:
    import numpy as np

    from jaxcls.inference.classifier import ImageClassifier
    from jaxcls.system.paths import RunPath

MOST_CLASSES = 2000  # of a confusion matrix

USAGE = """\
usage: jaxcls show WHAT ...

  jaxcls show augment CONFIG -o FILE.png    what augmentation does to images
  jaxcls show data CONFIG -o FILE.png       raw training images with labels
  jaxcls show run RUN ... -o FILE.png       curves of runs, confusion of one
  jaxcls show schedule CONFIG -o FILE.png   picture of the learning rate
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShowSchedule:
    """Draws the learning rate over the training."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Picture file: png, svg or pdf."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShowData:
    """Draws the first training images with their labels, before any augmentation."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Picture file: png, svg or pdf."""
    count: int = 24
    """Images at most; no more than a batch or the set has."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShowAugment:
    """Draws what the augmentation does to the first images of a training batch."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Picture file: png, svg or pdf."""
    op: OpName | None = None
    """Draw this operation alone, at magnitudes from 0 to 1."""
    step: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """Step of the training whose batch and draws are shown."""
    count: int | None = None
    """Images (None: 8, or the whole batch if it is smaller)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShowRun:
    """Draws a run's curves, and the confusion of its classes on the evaluation split; of several
    runs, the curves in one picture."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN ...")]
    """Directories that training wrote."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Picture file: png, svg or pdf."""
    step: str = "latest"
    """Checkpoint of the confusion matrix: latest, best (by top-1 during training) or a step's
    number."""
    split: str | None = None
    """Split of the confusion matrix, in TFDS syntax (None: data.eval_split of the run)."""
    data_dir: str | None = None
    """Folder of the prepared data sets (None: as the run had it)."""


def run(arguments: list[str]) -> int:
    """Runs `jaxcls show WHAT …`; returns the exit status."""
    if arguments[:1] in (["-h"], ["--help"]):
        print(USAGE, end="")
        return 0
    known = ", ".join(PICTURES)
    if not arguments:
        raise UserError(
            f"show: expected one of {known}; usage: jaxcls show WHAT CONFIG|RUN -o FILE"
        )
    what, *rest = arguments
    if what not in PICTURES:
        raise UserError(
            f"show: unknown picture {what!r}{nearest(what, PICTURES)} (known: {known}); "
            f"usage: jaxcls show WHAT CONFIG|RUN -o FILE"
        )
    set_library_caches()
    return PICTURES[what](rest)


def _schedule(arguments: list[str]) -> int:
    prog = "jaxcls show schedule CONFIG"
    _, config, rest = take_config(arguments, prog)
    default = ShowSchedule(config=config, output=tyro.MISSING)
    options = parse(ShowSchedule, prog, rest, default=default)
    from jaxcls.data.sources import open_source
    from jaxcls.pictures.plots import plot_schedule, save_figure
    from jaxcls.training.schedules import make_plan

    config = resolved(options.config)
    require_devices()
    source = open_source(config.data, config.data.train_split)
    save_figure(plot_schedule(make_plan(config, len(source))), options.output)
    print(f"wrote {printable(options.output)}")
    return 0


def _data(arguments: list[str]) -> int:
    prog = "jaxcls show data CONFIG"
    _, config, rest = take_config(arguments, prog)
    default = ShowData(config=config, output=tyro.MISSING)
    options = parse(ShowData, prog, rest, default=default)
    if options.count < 1:
        raise UserError(f"--count: must be at least 1, got {options.count}")
    from jaxcls.data.sources import open_source
    from jaxcls.pictures.gallery import training_images
    from jaxcls.pictures.plots import plot_images, save_figure

    config = resolved(options.config)
    require_devices()
    source = open_source(config.data, config.data.train_split)
    images, names = training_images(config, source, count=options.count)
    save_figure(plot_images(images, names), options.output)
    print(f"wrote {printable(options.output)}")
    return 0


def _augment(arguments: list[str]) -> int:
    prog = "jaxcls show augment CONFIG"
    _, config, rest = take_config(arguments, prog)
    default = ShowAugment(config=config, output=tyro.MISSING)
    options = parse(ShowAugment, prog, rest, default=default)
    if not 0 <= options.step <= MAX_INT:
        raise UserError(f"--step: must be at least 0 and at most {MAX_INT}, got {options.step}")
    from jaxcls.data.sources import open_source
    from jaxcls.pictures.gallery import augmentation_rows, sweep_rows
    from jaxcls.pictures.plots import plot_gallery, save_figure

    config = resolved(options.config)
    require_devices()
    source = open_source(config.data, config.data.train_split)
    count = min(8, config.data.batch_size) if options.count is None else options.count
    if options.op is None:
        rows = augmentation_rows(config, source, step=options.step, count=count)
    else:
        rows = sweep_rows(config, source, op=options.op, step=options.step, count=count)
    save_figure(plot_gallery(rows), options.output)
    print(f"wrote {printable(options.output)}")
    return 0


def _run(arguments: list[str]) -> int:
    options = parse(ShowRun, "jaxcls show run", arguments)
    step = read_step(options.step)
    from jaxcls.inference.classifier import ImageClassifier
    from jaxcls.pictures.plots import plot_run, require_picture, save_figure
    from jaxcls.system.paths import run_path

    require_picture(options.output)
    run, *others = options.runs or ("",)
    if not run:
        raise UserError("show run: give the directory of a run, or of several")
    if others:
        return _compare(options)
    require_devices()
    classifier = ImageClassifier.from_run(run, step=step)
    metrics = _curves(run_path(run))
    confusion, title = _confusion(classifier, options)
    if metrics is None and confusion is None:
        raise UserError(f"show run: there is nothing to draw of {run!r}")
    figure = plot_run(metrics, confusion, classifier.class_names, title=title)
    save_figure(figure, options.output)
    print(f"wrote {printable(options.output)}")
    return 0


def _compare(options: ShowRun) -> int:
    """Draws the curves of several runs, each by what sets it apart."""
    from jaxcls.config.diff import labels
    from jaxcls.pictures.plots import plot_comparison, save_figure
    from jaxcls.runs.directory import recorded_config
    from jaxcls.system.paths import run_path

    for name in ("step", "split", "data_dir"):
        if getattr(options, name) != getattr(ShowRun, name):
            raise UserError(
                f"--{name.replace('_', '-')}: belongs to the confusion matrix, which is drawn of "
                f"one run alone"
            )
    names = labels(options.runs, [recorded_config(run_path(run)) for run in options.runs])
    curves = [
        (name, metrics)
        for name, run in zip(names, options.runs, strict=True)
        if (metrics := _curves(run_path(run))) is not None
    ]
    if not curves:
        raise UserError("show run: there is nothing to draw of these runs")
    save_figure(plot_comparison(curves), options.output)
    print(f"wrote {printable(options.output)}")
    return 0


def _curves(run: "RunPath") -> "dict[str, np.ndarray] | None":
    """The columns of metrics.csv, or None, having said why."""
    from jaxcls.runs.reporter import metric_columns, read_metrics

    path = run / "metrics.csv"
    try:
        rows = read_metrics(path)
        if rows:
            return metric_columns(rows)
        _leave_out("curves", f"{path} has no rows")
    except OSError as error:
        _leave_out("curves", f"{path}: {error.strerror}")
    except (ValueError, csv.Error) as error:
        _leave_out("curves", f"{path} is damaged ({error})")
    return None


def _confusion(classifier: "ImageClassifier", options: ShowRun) -> "tuple[np.ndarray | None, str]":
    """The confusion matrix with its title, or None, having said why."""
    num_classes = len(classifier.class_names)
    if num_classes > MOST_CLASSES:
        _leave_out(
            "confusion matrix",
            f"it would have {num_classes:,} classes; they are listed by: "
            f"{command('evaluate', path_word(options.runs[0]), '--per-class')}",
        )
        return None, ""
    try:
        data = classifier.config.data
        if options.data_dir is not None:
            data = dataclasses.replace(data, data_dir=options.data_dir)
        evaluation = classifier.examine(data, split=options.split, top=1)
    except UserError as error:
        if options.split is not None or options.data_dir is not None:
            raise
        _leave_out("confusion matrix", str(error))
        return None, ""
    metrics, source = evaluation.metrics, evaluation.source
    title = (
        f"step {metrics['step']}: top-1 {metrics['top1']:.2%} of {metrics['num_examples']:,} "
        f"examples of {source.name} {source.split!r}"
    )
    return evaluation.confusion_matrix(), title


def _leave_out(what: str, why: str) -> None:
    print(f"the picture is without {what}: {why}", file=sys.stderr)


PICTURES: dict[str, Callable[[list[str]], int]] = {
    "augment": _augment,
    "data": _data,
    "run": _run,
    "schedule": _schedule,
}
