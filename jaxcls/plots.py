"""Pictures of a run, as Matplotlib figures."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from jaxcls.errors import UserError
from jaxcls.gallery import Row
from jaxcls.training.schedules import Plan


def plot_schedule(plan: Plan) -> Figure:
    """The learning rate over all steps, with the epochs above."""
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
    epoch = plan.steps_per_epoch
    epochs = axes.secondary_xaxis(
        "top",
        functions=(lambda step: np.divide(step, epoch), lambda count: np.multiply(count, epoch)),
    )
    epochs.set_xlabel("epoch")
    return figure


def plot_gallery(rows: Sequence[Row]) -> Figure:
    """Rows of images, each with its title at the left and a caption under every image.

    Args:
      rows: at least one; images may differ in size.
    """
    columns = max(len(row.images) for row in rows)
    longest = max(len(caption) for row in rows for caption in row.captions)
    width = max(1.5, 0.075 * min(longest, 26) + 0.1)
    figure = Figure(figsize=(width * columns + 0.4, 1.85 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for line, row in zip(grid, rows, strict=True):
        for axes in line:
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_frame_on(False)
        line[0].set_ylabel(row.title, fontsize=9)
        for axes, image, caption in zip(line, row.images, row.captions, strict=False):
            small = max(image.shape[:2]) < 64
            axes.imshow(image, interpolation="nearest" if small else "antialiased")
            axes.set_xlabel(textwrap.shorten(caption, 40, placeholder=" …"), fontsize=7)
    return figure


def plot_images(images: Sequence[np.ndarray], titles: Sequence[str]) -> Figure:
    """A gallery of images, each with a title and its size.

    Args:
      images: uint8 [height, width, 3] each, of any sizes; at least one.
      titles: one an image; long ones are cut.
    """
    columns = min(6, len(images))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(2 * columns, 2.3 * rows), layout="constrained")
    cells = figure.subplots(rows, columns, squeeze=False).flat
    for axes in cells:
        axes.set_axis_off()
    for axes, image, title in zip(figure.axes, images, titles, strict=False):
        height, width = image.shape[:2]
        axes.imshow(image, interpolation="nearest" if max(height, width) < 64 else "antialiased")
        axes.set_title(f"{textwrap.shorten(title, 24)}\n{width} × {height}", fontsize=8)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure in the format that the file's name asks for.

    Raises:
      UserError: the format is unknown or the file cannot be written.
    """
    try:
        figure.savefig(path, dpi=150, format=path.suffix.removeprefix("."))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write picture {str(path)!r}: {error}") from error
