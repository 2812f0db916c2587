"""The `jaxcls show` commands: pictures of a config or a run, written to a file."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import tyro

from jaxcls.arguments import checked, parse, take_config
from jaxcls.config import Config
from jaxcls.decoding import nearest
from jaxcls.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShowSchedule:
    """Draws the learning rate over the training."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Picture file: png, svg or pdf."""


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


PICTURES: dict[str, Callable[[list[str]], int]] = {"schedule": _schedule}
