"""`jaxcls show`: draws pictures of a config or a run."""

import csv
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from jaxcls.commands.common import (
    parse_with_config,
    read_step,
    require_devices,
    validate_and_resolve,
)
from jaxcls.commands.options import parse
from jaxcls.config import Config
from jaxcls.config.augment import OpName
from jaxcls.config.decoding import MAX_INT, nearest
from jaxcls.system.caches import set_library_caches
from jaxcls.system.errors import UserError
from jaxcls.system.file_names import printable
from jaxcls.system.output import say
from jaxcls.system.shell import command, path_word

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

    from jaxcls.data.source import Source
    from jaxcls.inference.classifier import ImageClassifier
    from jaxcls.system.paths import RunPath

MAX_CLASSES = 2000  # of a confusion matrix

USAGE = """\
usage: jaxcls show WHAT ...

  jaxcls show augment CONFIG -o FILE.png    training images after augmentation
  jaxcls show data CONFIG -o FILE.png       raw training images with labels
  jaxcls show run RUN ... -o FILE.png       curves of runs, confusion matrix of one run
  jaxcls show schedule CONFIG -o FILE.png   the learning rate over the training
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
    """Largest number of images; at most those of a batch or of the data set are drawn."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShowAugment:
    """Draws the first images of a training batch before and after augmentation."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Picture file: png, svg or pdf."""
    op: OpName | None = None
    """Draw only this operation, at magnitudes from 0 to 1."""
    step: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """Training step whose batch and random draws are shown."""
    count: int | None = None
    """Number of images (None: 8, or the whole batch if it is smaller)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShowRun:
    """Draws the curves and the confusion matrix of a run, or the curves of several runs."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN ...")]
    """Directories of the runs."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Picture file: png, svg or pdf."""
    step: str = "latest"
    """Checkpoint for the confusion matrix: latest, best (by top-1 during training) or the number of
    a step."""
    split: str | None = None
    """Split for the confusion matrix, in TFDS syntax (None: data.eval_split of the run)."""
    data_dir: str | None = None
    """Folder of the prepared data sets (None: the folder that the run used)."""


def run(arguments: list[str]) -> int:
    """Runs `jaxcls show WHAT …`; returns the exit status."""
    if arguments[:1] in (["-h"], ["--help"]):
        say(USAGE.rstrip("\n"))
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
    options = parse_with_config(ShowSchedule, "jaxcls show schedule CONFIG", arguments)
    config, source = _open(options)
    from jaxcls.pictures.plots import plot_schedule
    from jaxcls.training.schedules import make_plan

    return _save(plot_schedule(make_plan(config, len(source))), options.output)


def _data(arguments: list[str]) -> int:
    options = parse_with_config(ShowData, "jaxcls show data CONFIG", arguments)
    if options.count < 1:
        raise UserError(f"--count: must be at least 1, got {options.count}")
    config, source = _open(options)
    from jaxcls.pictures.gallery import training_images
    from jaxcls.pictures.plots import plot_images

    images, names = training_images(config, source, count=options.count)
    return _save(plot_images(images, names), options.output)


def _augment(arguments: list[str]) -> int:
    options = parse_with_config(ShowAugment, "jaxcls show augment CONFIG", arguments)
    if not 0 <= options.step <= MAX_INT:
        raise UserError(f"--step: must be at least 0 and at most {MAX_INT}, got {options.step}")
    config, source = _open(options)
    from jaxcls.pictures.gallery import augmentation_rows, magnitude_rows
    from jaxcls.pictures.plots import plot_gallery

    count = min(8, config.data.batch_size) if options.count is None else options.count
    if options.op is None:
        rows = augmentation_rows(config, source, step=options.step, count=count)
    else:
        rows = magnitude_rows(config, source, op=options.op, step=options.step, count=count)
    return _save(plot_gallery(rows), options.output)


def _open(options: ShowSchedule | ShowData | ShowAugment) -> "tuple[Config, Source]":
    """Checks that the picture can be written; then resolves the config and opens the data."""
    from jaxcls.data.sources import open_source
    from jaxcls.pictures.plots import require_picture

    require_picture(options.output)
    config = validate_and_resolve(options.config)
    require_devices()
    return config, open_source(config.data, config.data.train_split)


def _save(figure: "Figure", output: Path) -> int:
    from jaxcls.pictures.plots import save_figure

    save_figure(figure, output)
    say(f"wrote {printable(output)}")
    return 0


def _run(arguments: list[str]) -> int:
    options = parse(ShowRun, "jaxcls show run", arguments)
    step = read_step(options.step)
    from jaxcls.inference.classifier import ImageClassifier
    from jaxcls.pictures.plots import plot_run, require_picture
    from jaxcls.system.paths import run_path

    require_picture(options.output)
    run, *others = options.runs or ("",)
    if not run:
        raise UserError("show run: give the directory of one or more runs")
    if others:
        return _compare(options)
    require_devices()
    classifier = ImageClassifier.from_run(run, step=step)
    metrics = _curves(run_path(run))
    confusion, title = _confusion(classifier, options)
    if metrics is None and confusion is None:
        raise UserError(f"show run: {run!r} has nothing that can be drawn")
    figure = plot_run(metrics, confusion, classifier.class_names, title=title)
    return _save(figure, options.output)


def _compare(options: ShowRun) -> int:
    """Draws the curves of several runs, with labels that say how the runs differ."""
    from jaxcls.config.diff import labels
    from jaxcls.pictures.plots import plot_comparison
    from jaxcls.runs.directory import recorded_config
    from jaxcls.system.paths import run_path

    for name in ("step", "split", "data_dir"):
        if getattr(options, name) != getattr(ShowRun, name):
            raise UserError(
                f"--{name.replace('_', '-')}: concerns the confusion matrix, which is drawn only "
                f"for a single run; leave the option out"
            )
    names = labels(options.runs, [recorded_config(run_path(run)) for run in options.runs])
    curves = [
        (name, metrics)
        for name, run in zip(names, options.runs, strict=True)
        if (metrics := _curves(run_path(run))) is not None
    ]
    if not curves:
        raise UserError("show run: these runs have nothing that can be drawn")
    return _save(plot_comparison(curves), options.output)


def _curves(run: "RunPath") -> "dict[str, np.ndarray] | None":
    """The columns of metrics.csv; None after a message that says why there are none."""
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
    """The confusion matrix and its title; None after a message that says why there is none."""
    num_classes = len(classifier.class_names)
    if num_classes > MAX_CLASSES:
        _leave_out(
            "confusion matrix",
            f"it would have {num_classes:,} classes; to list them: "
            f"{command('evaluate', path_word(options.runs[0]), '--per-class')}",
        )
        return None, ""
    from jaxcls.inference.report import Evaluation

    if classifier.multi_label:
        _leave_out(
            "confusion matrix",
            f"images have several labels; for a table of the classes: "
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
    assert isinstance(evaluation, Evaluation)
    metrics, source = evaluation.metrics, evaluation.source
    title = (
        f"step {metrics['step']}: top-1 {metrics['top1']:.2%} of {metrics['num_examples']:,} "
        f"examples of {source.name} {source.split!r}"
    )
    return evaluation.confusion_matrix(), title


def _leave_out(what: str, why: str) -> None:
    say(f"the picture is without {what}: {why}", sys.stderr)


PICTURES: dict[str, Callable[[list[str]], int]] = {
    "augment": _augment,
    "data": _data,
    "run": _run,
    "schedule": _schedule,
}
