"""Figures of runs, schedules, images and confusion matrices, with Matplotlib."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure, FigureBase
from matplotlib.ticker import MaxNLocator, PercentFormatter

from jaxcls.data.viewable import viewable
from jaxcls.pictures.gallery import Row
from jaxcls.system.errors import UserError
from jaxcls.training.schedules import Plan

COUNTED = 20  # the most classes for which a confusion matrix shows counts
NAMED = 40  # the most classes for which it shows names
LISTED = 20  # the most pairs of confused classes that are listed
MARKED = 50  # the most points of a curve that get a marker each

# Of the metrics that are not drawn as a whole line.
_LINE_STYLES = {"top5": "--", "raw_top1": ":", "map": "-."}


def plot_schedule(plan: Plan) -> Figure:
    """Plots the learning rate over steps and epochs; dashed lines separate the stages."""
    steps = np.unique(np.linspace(0, plan.num_steps, 1001).round())
    rates = jax.vmap(plan.learning_rate)(jnp.asarray(steps, jnp.float32))
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(steps, np.asarray(rates))
    axes.set_xlabel("step")
    axes.set_ylabel("learning rate")
    axes.set_xlim(0, plan.num_steps)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    for end in plan.stage_ends[:-1]:
        axes.axvline(end, color="0.5", linestyle="--", linewidth=1)
    _mark_epochs(axes, plan.steps_per_epoch)
    return figure


def plot_run(
    metrics: Mapping[str, np.ndarray] | None,
    confusion: np.ndarray | None,
    class_names: Sequence[str],
    *,
    title: str = "",
) -> Figure:
    """Plots the curves of a training beside its confusion matrix, or the one that is given.

    Args:
      metrics: as for `plot_curves`, or None.
      confusion: as for `plot_confusion`, or None.
      class_names: as for `plot_confusion`.
      title: the title of the confusion matrix.
    """
    if confusion is None:
        assert metrics is not None, "one of the two is given"
        return plot_curves(metrics)
    if metrics is None:
        return plot_confusion(confusion, class_names, title=title)
    width, height = _confusion_size(len(class_names))
    figure = Figure(figsize=(6 + width, max(8.0, height)), layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(6, width))[0]
    _draw_curves(left, metrics)
    _draw_confusion(right, confusion, class_names, title=title)
    return figure


def plot_curves(metrics: Mapping[str, np.ndarray]) -> Figure:
    """Plots loss, accuracy and learning rate over the steps and epochs of a training.

    Args:
      metrics: the columns of metrics.csv, float [rows]; NaN where a row has no value. Used are
        loss, top1, top5, the same with the prefix eval_, and learning_rate.
    """
    figure = Figure(figsize=(7, 8), layout="constrained")
    _draw_curves(figure, metrics)
    return figure


def plot_comparison(runs: Sequence[tuple[str, Mapping[str, np.ndarray]]]) -> Figure:
    """Plots loss, top-1 and learning rate of several trainings over their steps.

    Args:
      runs: the name of each run and its metrics, as for `plot_curves`; at least one.
    """
    columns = 1 if max(len(name) for name, _ in runs) > 40 else 2
    height = 8 + 0.22 * -(-len(runs) // columns)
    figure = Figure(figsize=(8, height), layout="constrained")
    loss, accuracy, rate = figure.subplots(3, 1, sharex=True)
    few = len(runs) <= 10
    places = np.arange(len(runs)) if few else np.linspace(0.05, 0.95, len(runs))
    palette = colormaps["tab10" if few else "turbo"](places)
    for color, (name, metrics) in zip(palette, runs, strict=True):
        loss.plot([], [], color=color, linewidth=2.5, label=shorten(name, 90))
        _draw_curve(rate, metrics, "learning_rate", color=color)
        for axes, column in ((loss, "loss"), (accuracy, "top1")):
            _draw_curve(axes, metrics, column, color=color, linewidth=0.8, alpha=0.6)
            _draw_curve(axes, metrics, f"eval_{column}", color=color, linewidth=2)
    for axes, label in ((loss, "loss"), (accuracy, "top-1"), (rate, "learning rate")):
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    loss.set_title("bold: evaluation, thin: training", fontsize=9)
    _scale_loss(loss, [metrics for _, metrics in runs])
    _scale_axes(accuracy, rate, last_step=max(metrics["step"].max() for _, metrics in runs))
    legend = figure.legend(loc="outside lower center", ncols=columns, fontsize=8)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def _draw_curve(axes: Axes, metrics: Mapping[str, np.ndarray], column: str, **style: Any) -> None:
    """Draws one column over the steps, where it has values."""
    there = np.isfinite(metrics[column])
    marker = "o" if there.sum() == 1 else None  # a line needs two points
    axes.plot(metrics["step"][there], metrics[column][there], marker=marker, **style)


def plot_confusion(confusion: np.ndarray, class_names: Sequence[str], *, title: str = "") -> Figure:
    """Plots a confusion matrix as shares of the examples of each class.

    With up to 20 classes it shows the counts. With more than 40 it shows no names, and the pairs
    that are confused most often are listed below it.

    Args:
      confusion: the number of examples of class i predicted as class j, int [classes, classes].
      class_names: the names of the classes; long ones are shortened.
      title: the title of the figure.
    """
    figure = Figure(figsize=_confusion_size(len(class_names)), layout="constrained")
    _draw_confusion(figure, confusion, class_names, title=title)
    return figure


def _mark_epochs(axes: Axes, steps_per_epoch: float) -> None:
    epochs = axes.secondary_xaxis(
        "top",
        functions=(
            lambda step: np.divide(step, steps_per_epoch),
            lambda count: np.multiply(count, steps_per_epoch),
        ),
    )
    epochs.set_xlabel("epoch")


def _scale_axes(accuracy: Axes, rate: Axes, *, last_step: float) -> None:
    """Sets the scales: accuracies from 0 to 100 %, the learning rate from 0, steps below."""
    accuracy.set_ylim(-0.02, 1.02)
    accuracy.yaxis.set_major_formatter(PercentFormatter(1))
    rate.set_ylim(bottom=0)
    rate.set_xlabel("step")
    rate.set_xlim(0, last_step * 1.02)


def _scale_loss(axes: Axes, runs: Sequence[Mapping[str, np.ndarray]]) -> None:
    """Cuts off evaluation losses far above the training's, for example at another image size."""
    highest = {
        name: max((np.nanmax(metrics[name], initial=0) for metrics in runs), default=0)
        for name in ("loss", "eval_loss")
    }
    if highest["eval_loss"] > 3 * highest["loss"] > 0:
        axes.set_ylim(0, 1.5 * highest["loss"])


def _draw_curves(figure: FigureBase, metrics: Mapping[str, np.ndarray]) -> None:
    panels = {
        "loss": {"training": "loss", "evaluation": "eval_loss"},
        "accuracy": {
            "training top-1": "top1",
            "training top-5": "top5",
            "evaluation top-1": "eval_top1",
            "evaluation top-5": "eval_top5",
            "evaluation top-1 without averaging": "eval_raw_top1",
            "evaluation mAP": "eval_map",
        },
        "learning rate": {"": "learning_rate"},
    }
    steps = metrics["step"]
    all_axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (label, curves) in zip(all_axes, panels.items(), strict=True):
        for name, column in curves.items():
            there = np.isfinite(metrics[column])
            if not there.any():
                continue
            evaluation = column.startswith("eval_")
            axes.plot(
                steps[there],
                metrics[column][there],
                color="tab:orange" if evaluation else "tab:blue",
                linestyle=_LINE_STYLES.get(column.removeprefix("eval_"), "-"),
                marker="o" if there.sum() <= MARKED else None,
                markersize=3,
                label=name,
            )
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        if len(axes.lines) > 1:
            axes.legend(fontsize=8)
    loss, accuracy, rate = all_axes
    _scale_loss(loss, [metrics])
    _scale_axes(accuracy, rate, last_step=steps.max())
    _mark_epochs(loss, _steps_per_epoch(metrics))


def _steps_per_epoch(metrics: Mapping[str, np.ndarray]) -> float:
    """Computes steps per epoch from the last row, where the rounding of the epoch matters least."""
    last = np.argmax(metrics["step"])
    return metrics["step"][last] / max(metrics["epoch"][last], 1e-4)


def _confusion_size(num_classes: int) -> tuple[float, float]:
    """Returns width and height of the figure in inches."""
    if num_classes > NAMED:
        return 9.0, 12.0
    side = max(5.0, 2.0 + 0.3 * num_classes)
    return side + 1.5, side  # the matrix is square; the rest is for the colour bar


def _draw_confusion(
    figure: FigureBase, confusion: np.ndarray, class_names: Sequence[str], *, title: str
) -> None:
    num_classes = len(class_names)
    examples = confusion.sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        shares = confusion / examples  # NaN without examples, drawn grey
    if num_classes > NAMED:
        figure, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(3, 2))[:, 0]
        _draw_confused_pairs(below.add_subplot(), confusion, class_names)
    axes = figure.add_subplot()
    colors = colormaps["Blues"].with_extremes(bad="lightgrey")
    # The square root makes rare confusions visible.
    image = axes.imshow(shares, cmap=colors, norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    beside = axes.inset_axes((1.03, 0, 0.04, 1))  # as high as the matrix
    bar = figure.colorbar(image, cax=beside, format=PercentFormatter(1, decimals=0))
    bar.set_ticks([0, 0.05, 0.2, 0.5, 1])
    bar.set_label("share of the examples of a class")
    axes.set_xlabel("predicted")
    axes.set_ylabel("class")
    axes.set_title(textwrap.fill(title, 60), fontsize=10, parse_math=False)
    if num_classes <= NAMED:
        names = [shorten(name, 18) for name in class_names]
        size = 9 if num_classes <= COUNTED else 7
        turned = max(map(len, names)) > 2
        axes.set_xticks(
            range(num_classes), names, rotation=90 if turned else 0, fontsize=size, parse_math=False
        )
        axes.set_yticks(range(num_classes), names, fontsize=size, parse_math=False)
    if num_classes <= COUNTED:
        for (row, column), count in np.ndenumerate(confusion):
            if count:
                color = "white" if shares[row, column] > 0.3 else "black"
                axes.text(
                    column, row, f"{count}", ha="center", va="center", color=color, fontsize=8
                )


def _draw_confused_pairs(axes: Axes, confusion: np.ndarray, class_names: Sequence[str]) -> None:
    wrong = confusion * ~np.eye(len(confusion), dtype=bool)
    order = np.argsort(-wrong, axis=None, kind="stable")[:LISTED]
    pairs = [divmod(int(place), len(confusion)) for place in order]
    pairs = [pair for pair in pairs if wrong[pair]]
    if not pairs:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "no class is confused with another", ha="center", va="center")
        return
    counts = [wrong[pair] for pair in pairs]
    shares = [wrong[pair] / confusion[pair[0]].sum() for pair in pairs]
    names = [f"{shorten(class_names[i], 24)} → {shorten(class_names[j], 24)}" for i, j in pairs]
    bars = axes.barh(range(len(pairs)), counts, color="tab:blue")
    axes.bar_label(bars, [f" {share:.0%}" for share in shares], fontsize=8)
    axes.set_yticks(range(len(pairs)), names, fontsize=8, parse_math=False)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("examples, and their share of the class")
    axes.set_title("most often confused: class → predicted", fontsize=10)


def shorten(name: str, length: int) -> str:
    """Shortens a name to a length, with … at the end."""
    return name if len(name) <= length else name[: length - 1].rstrip() + "…"


def plot_gallery(rows: Sequence[Row]) -> Figure:
    """Plots rows of images, each with its title on the left and a caption below every image.

    Args:
      rows: at least one row; images may differ in size.
    """
    columns = max(len(row.images) for row in rows)
    longest = max(len(caption) for row in rows for caption in row.captions)
    width = max(1.5, 0.075 * min(longest, 26) + 0.1)
    # A long title needs 1.4 inches.
    heights = [max(_height(row.images, width=width) + 0.35, 1.4) for row in rows]
    figure = Figure(figsize=(width * columns + 0.4, sum(heights)), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False, height_ratios=heights)
    for line, row in zip(grid, rows, strict=True):
        for axes in line:
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_frame_on(False)
        line[0].set_ylabel(row.title, fontsize=9, parse_math=False)
        for axes, image, caption in zip(line, row.images, row.captions, strict=False):
            small = max(image.shape[:2]) < 64
            axes.imshow(viewable(image), interpolation="nearest" if small else "antialiased")
            caption = textwrap.shorten(caption, 40, placeholder=" …")
            axes.set_xlabel(caption, fontsize=7, parse_math=False)
    return figure


def plot_images(images: Sequence[np.ndarray], titles: Sequence[str]) -> Figure:
    """Plots images, each with a title and its size.

    Args:
      images: uint8 [height, width, channels] each, of any sizes; at least one.
      titles: a title for each image; long ones are shortened.
    """
    columns = min(6, len(images))
    rows = -(-len(images) // columns)
    height = _height(images, width=2) + 0.3
    figure = Figure(figsize=(2 * columns, height * rows), layout="constrained")
    cells = figure.subplots(rows, columns, squeeze=False).flat
    for axes in cells:
        axes.set_axis_off()
    for axes, image, title in zip(figure.axes, images, titles, strict=False):
        height, width = image.shape[:2]
        small = max(height, width) < 64
        axes.imshow(viewable(image), interpolation="nearest" if small else "antialiased")
        title = f"{textwrap.shorten(title, 24)}\n{width} × {height}"
        axes.set_title(title, fontsize=8, parse_math=False)
    return figure


def _height(images: Sequence[np.ndarray], *, width: float) -> float:
    """The height of a row whose images are drawn in that width; the narrowest are drawn smaller."""
    tallest = max(image.shape[0] / image.shape[1] for image in images)
    return width * min(tallest, 2)


def require_picture(path: Path) -> None:
    """Checks that a picture can be written, before its content is computed.

    Raises:
      UserError: as `save_figure`.
    """
    formats = FigureCanvasBase.get_supported_filetypes()
    if path.suffix.removeprefix(".").lower() not in formats:
        raise UserError(
            f"cannot write picture {str(path)!r}: Format {path.suffix.removeprefix('.')!r} is not "
            f"supported (supported formats: {', '.join(sorted(formats))})"
        )
    if not path.parent.is_dir():
        raise UserError(f"cannot write picture {str(path)!r}: there is no folder {path.parent}")
    if path.is_dir():
        raise UserError(f"cannot write picture {str(path)!r}: it is a folder")


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure in the format of the file's suffix.

    Raises:
      UserError: the format is unknown, or the file cannot be written.
    """
    try:
        figure.savefig(path, dpi=150, format=path.suffix.removeprefix("."))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write picture {str(path)!r}: {error}") from error
