"""`jaxcls data`: what a data set holds, and how fast it is read."""

import dataclasses
import json
from typing import Annotated

import tyro

from jaxcls.commands.common import (
    resolved,
    take_config,
)
from jaxcls.commands.options import parse
from jaxcls.config import Config
from jaxcls.system.errors import UserError


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


def run(arguments: list[str]) -> int:
    """Runs `jaxcls data CONFIG …`; returns the exit status."""
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
