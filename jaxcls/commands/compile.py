"""`jaxcls compile`: whether a training fits into memory, without running it."""

import dataclasses
import json
from typing import Annotated

import tyro

from jaxcls.commands.common import parse_with_config, require_devices, validate_and_resolve
from jaxcls.config import Config
from jaxcls.config.decoding import MAX_INT
from jaxcls.system.errors import UserError
from jaxcls.system.output import put, say


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compile:
    """Compiles the training step; reports whether it fits, its memory, traffic and collectives."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    topology: str | None = None
    """TPUs or GPUs to compile for, such as v5e:4x4, tpu7x:2x2x1 (four chips, which are eight
    devices), h200:8 or h200:2x8 (two hosts), which this machine need not have (None: this
    machine's devices). Needs the extra tpu-compiler or gpu-compiler."""
    batch_per_chip: int | None = None
    """Set data.batch_size to this many images per device: a GPU, a TPU chip, or half a chip of
    tpu7x."""
    num_classes: int | None = None
    """Number of classes of the classifier (None: that of the data, which for ImageNet need not be
    prepared)."""
    search: bool = False
    """Find the largest batch per device that fits, with up to six more compilations."""
    json: bool = False
    """Print one JSON object as the last line."""


def run(arguments: list[str]) -> int:
    """Runs `jaxcls compile CONFIG …`; returns the exit status."""
    options = parse_with_config(Compile, "jaxcls compile CONFIG", arguments)
    for name, value in (
        ("--batch-per-chip", options.batch_per_chip),
        ("--num-classes", options.num_classes),
    ):
        if value is not None and not 1 <= value <= MAX_INT:
            raise UserError(f"{name}: must be at least 1 and at most {MAX_INT}, got {value}")
    from jaxcls.measure.topologies import find_topology

    topology = find_topology(options.topology) if options.topology is not None else None
    if topology:
        topology.prepare_compiler()
    require_devices()
    devices = topology.devices() if topology else None
    import jax

    from jaxcls.measure.rehearsal import describe_rehearsal, rehearse

    config = options.config
    if options.batch_per_chip is not None:
        size = options.batch_per_chip * len(devices or jax.devices())
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=size))
    report = rehearse(
        validate_and_resolve(config),
        devices=devices,
        chip=topology.chip if topology else None,
        num_classes=options.num_classes,
        search=options.search,
    )
    say(describe_rehearsal(report))
    if options.json:
        put(json.dumps(report))
    return 0 if report["fits"] else 1
