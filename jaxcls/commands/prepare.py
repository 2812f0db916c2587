"""`jaxcls prepare`: prepares a data set."""

import dataclasses
from typing import Annotated

import tyro

from jaxcls.commands.common import is_config, load_file_or_run
from jaxcls.commands.options import parse
from jaxcls.system.output import say


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepare:
    """Prepares a data set: downloads and converts it once, or indexes a folder."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """tfds:NAME[:VERSION], folder:PATH or digits, as in data.source; or a CONFIG that has one."""
    data_dir: str | None = None
    """Folder of the prepared data sets (None: TFDS' default folder)."""


def run(arguments: list[str]) -> int:
    """Runs `jaxcls prepare SOURCE`; returns the exit status."""
    options = parse(Prepare, "jaxcls prepare", arguments)
    source, data_dir = options.source, options.data_dir
    if is_config(source):
        data = load_file_or_run(source).data
        source, data_dir = data.source, data.data_dir if data_dir is None else data_dir
    from jaxcls.data.sources import prepare_source

    say(prepare_source(source, data_dir))
    return 0
