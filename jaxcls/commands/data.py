"""`jaxcls data`: the content of a data set, and how fast it is read."""

import dataclasses
import json
from typing import Annotated

import tyro

from jaxcls.commands.common import parse_with_config, validate_and_resolve
from jaxcls.config import Config
from jaxcls.system.errors import UserError
from jaxcls.system.output import put, say
from jaxcls.system.shell import join_words


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """Reads a split and reports its classes, image sizes, formats, broken images and the speed."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    split: str | None = None
    """Split to read, in TFDS syntax (None: data.train_split)."""
    limit: int | None = None
    """Read at most this many images, evenly spread over the split."""
    json: bool = False
    """Print one JSON object as the last line."""


def run(arguments: list[str]) -> int:
    """Runs `jaxcls data CONFIG …`; returns the exit status."""
    options = parse_with_config(Data, "jaxcls data CONFIG", arguments)
    if options.limit is not None and options.limit < 1:
        raise UserError(f"--limit: must be at least 1, got {options.limit}")
    data = validate_and_resolve(options.config).data
    from jaxcls.data.sources import open_source
    from jaxcls.data.survey import describe, survey

    split = data.train_split if options.split is None else options.split
    field = None if options.split is None else "--split"
    found = survey(open_source(data, split, field=field), data, limit=options.limit)
    say(describe(found))
    other = data.eval_split if split == data.train_split else data.train_split
    hint = "" if other == split else f"; to read the other one: --split {join_words([other])}"
    say(f"read only the split {split!r}{hint}")
    if options.json:
        put(json.dumps(dataclasses.asdict(found)))
    return 0
