"""The `jaxcls show` commands: pictures of a config or a run, written to a file."""

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import tyro

from jaxcls.arguments import checked, take_config
from jaxcls.config import Config
from jaxcls.decoding import nearest
from jaxcls.errors import UserError


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
    """Images at most; no more than a batch has."""


def show(arguments: list[str], *, usage: str) -> int:
    """Runs `jaxcls show WHAT …`; returns the exit status."""
    if arguments[:1] in (["-h"], ["--help"]):
        print(usage, end="")
        return 0
    known = ", ".join(PICTURES)
    if not arguments:
        raise UserError(f"show: expected one of {known}; usage: jaxcls show WHAT CONFIG -o FILE")
    what, *rest = arguments
    if what not in PICTURES:
        raise UserError(
            f"show: unknown picture {what!r}{nearest(what, PICTURES)} (known: {known}); "
            f"usage: jaxcls show WHAT CONFIG -o FILE"
        )
    return PICTURES[what](rest)


def _schedule(arguments: list[str]) -> int:
    prog = "jaxcls show schedule CONFIG"
    _, config, rest = take_config(arguments, prog)
    default = ShowSchedule(config=config, output=tyro.MISSING)
    options = tyro.cli(ShowSchedule, prog=prog, args=rest, default=default)
    from jaxcls.data.sources import open_source
    from jaxcls.plots import plot_schedule, save_figure
    from jaxcls.training.schedules import make_plan

    config = checked(options.config)
    source = open_source(config.data, config.data.train_split)
    save_figure(plot_schedule(make_plan(config, len(source))), options.output)
    print(f"wrote {options.output}")
    return 0


def _data(arguments: list[str]) -> int:
    prog = "jaxcls show data CONFIG"
    _, config, rest = take_config(arguments, prog)
    default = ShowData(config=config, output=tyro.MISSING)
    options = tyro.cli(ShowData, prog=prog, args=rest, default=default)
    if options.count < 1:
        raise UserError(f"--count: must be at least 1, got {options.count}")
    from jaxcls.data.batches import train_batches
    from jaxcls.data.sources import open_source
    from jaxcls.plots import plot_images, save_figure

    config = checked(options.config)
    source = open_source(config.data, config.data.train_split)
    rows = range(min(options.count, config.data.batch_size))
    with contextlib.closing(
        train_batches(source, config.data, seed=config.seed, rows=rows)
    ) as batches:
        batch = next(batches)
    images = [
        image[:height, :width]
        for image, (height, width) in zip(batch["images"], batch["sizes"], strict=True)
    ]
    titles = [source.class_names[label] for label in batch["labels"]]
    save_figure(plot_images(images, titles), options.output)
    print(f"wrote {options.output}")
    return 0


PICTURES: dict[str, Callable[[list[str]], int]] = {"data": _data, "schedule": _schedule}
