"""`jaxcls export`: exports a run as a program that needs only jax."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from jaxcls.commands.common import read_step, require_devices
from jaxcls.commands.options import parse
from jaxcls.distributed.compile_cache import keep_compiled
from jaxcls.system.file_names import printable
from jaxcls.system.output import say


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
    """Exports a run as a program that needs only jax, with weights, classes and a model card."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Directory of the run."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="DIR")]
    """Folder to create; if it exists, it must be empty."""
    step: str = "latest"
    """Checkpoint: latest, best (by top-1 during training) or the number of a step."""
    platforms: tuple[str, ...] = ("cpu", "cuda", "tpu")
    """Platforms on which the one exported file can run."""


def run(arguments: list[str]) -> int:
    """Runs `jaxcls export RUN -o DIR`; returns the exit status."""
    options = parse(Export, "jaxcls export", arguments)
    step = read_step(options.step)
    require_devices()
    keep_compiled()
    from jaxcls.inference.export import export_run

    step = export_run(options.run, options.output, step=step, platforms=options.platforms)
    say(f"wrote {printable(options.output)}: step {step}, for {', '.join(options.platforms)}")
    return 0
