"""The `jaxcls show` commands: pictures of a config or a run, written to a file."""

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import tyro

from jaxcls.arguments import checked, parse, take_config
from jaxcls.augment_config import OpName
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
    options = parse(ShowSchedule, prog, rest, default=default)
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
    options = parse(ShowData, prog, rest, default=default)
    if options.count < 1:
        raise UserError(f"--count: must be at least 1, got {options.count}")
    from jaxcls.data.batches import train_batches
    from jaxcls.data.sources import open_source
    from jaxcls.gallery import valid_images
    from jaxcls.plots import plot_images, save_figure

    config = checked(options.config)
    source = open_source(config.data, config.data.train_split)
    rows = range(min(options.count, config.data.batch_size, len(source)))
    data = dataclasses.replace(config.data, last_batch="straddle")  # a set may be small
    with contextlib.closing(train_batches(source, data, seed=config.seed, rows=rows)) as batches:
        batch = next(batches)
    titles = [source.class_names[label] for label in batch["labels"]]
    save_figure(plot_images(valid_images(batch), titles), options.output)
    print(f"wrote {options.output}")
    return 0


def _augment(arguments: list[str]) -> int:
    prog = "jaxcls show augment CONFIG"
    _, config, rest = take_config(arguments, prog)
    default = ShowAugment(config=config, output=tyro.MISSING)
    options = parse(ShowAugment, prog, rest, default=default)
    if options.step < 0:
        raise UserError(f"--step: must be at least 0, got {options.step}")
    from jaxcls.data.sources import open_source
    from jaxcls.gallery import augmentation_rows, sweep_rows
    from jaxcls.plots import plot_gallery, save_figure

    config = checked(options.config)
    source = open_source(config.data, config.data.train_split)
    count = min(8, config.data.batch_size) if options.count is None else options.count
    if options.op is None:
        rows = augmentation_rows(config, source, step=options.step, count=count)
    else:
        rows = sweep_rows(config, source, op=options.op, step=options.step, count=count)
    save_figure(plot_gallery(rows), options.output)
    print(f"wrote {options.output}")
    return 0


PICTURES: dict[str, Callable[[list[str]], int]] = {
    "augment": _augment,
    "data": _data,
    "schedule": _schedule,
}
