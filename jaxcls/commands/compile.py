"""`jaxcls compile`: whether a training fits, before it is run."""

import dataclasses
import json
from typing import Annotated

import tyro

from jaxcls.commands.common import (
    require_devices,
    resolved,
    take_config,
)
from jaxcls.commands.options import parse
from jaxcls.config import Config
from jaxcls.config.decoding import MAX_INT
from jaxcls.system.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compile:
    """Compiles the training step and tells whether it fits, its memory, traffic and collectives."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    topology: str | None = None
    """TPUs to compile for, such as v5e:4x4, which need not be there (None: this machine's devices).
    Needs the extra tpu-compiler."""
    batch_per_chip: int | None = None
    """Sets data.batch_size to this many images for each device."""
    num_classes: int | None = None
    """Of the classifier (None: as the data have; they need not be there for ImageNet)."""
    search: bool = False
    """Find the largest batch a device that fits, by up to six more compiles."""
    json: bool = False
    """Print one JSON object as the last line."""


def run(arguments: list[str]) -> int:
    """Runs `jaxcls compile CONFIG …`; returns the exit status."""
    prog = "jaxcls compile CONFIG"
    _, config, rest = take_config(arguments, prog)
    options = parse(Compile, prog, rest, default=Compile(config=config))
    for name, value in (
        ("--batch-per-chip", options.batch_per_chip),
        ("--num-classes", options.num_classes),
    ):
        if value is not None and not 1 <= value <= MAX_INT:
            raise UserError(f"{name}: must be at least 1 and at most {MAX_INT}, got {value}")
    from jaxcls.measure.topologies import chip_of, devices_of, prepare_environment

    devices = chip = None
    if options.topology is not None:
        chip = chip_of(options.topology)
        prepare_environment()
    require_devices()
    if options.topology is not None:
        devices = devices_of(options.topology)
    import jax

    from jaxcls.measure.rehearsal import describe_rehearsal, rehearse

    config = options.config
    if options.batch_per_chip is not None:
        size = options.batch_per_chip * len(devices or jax.devices())
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=size))
    report = rehearse(
        resolved(config),
        devices=devices,
        chip=chip,
        num_classes=options.num_classes,
        search=options.search,
    )
    print(describe_rehearsal(report))
    if options.json:
        print(json.dumps(report))
    return 0 if report["fits"] else 1
