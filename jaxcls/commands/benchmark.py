"""`jaxcls benchmark`: the speed of data, augmentation and step, apart and together."""

import dataclasses
import json
import math
from typing import Annotated

import tyro

from jaxcls.commands.common import (
    require_devices,
    resolved,
    take_config,
)
from jaxcls.commands.options import parse
from jaxcls.config import Config
from jaxcls.distributed.compile_cache import keep_compiled
from jaxcls.system.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Measures the data pipeline, the augmentation and the step, apart and together."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    synthetic: bool = False
    """Leave the data out: random images of 1,000 classes."""
    seconds: float = 5.0
    """Least time that each part is measured for."""
    json: bool = False
    """Print one JSON object as the last line."""


def run(arguments: list[str]) -> int:
    """Runs `jaxcls benchmark CONFIG …`; returns the exit status."""
    prog = "jaxcls benchmark CONFIG"
    _, config, rest = take_config(arguments, prog)
    options = parse(Benchmark, prog, rest, default=Benchmark(config=config))
    if not options.seconds >= 0 or math.isinf(options.seconds):
        raise UserError(f"--seconds: must be at least 0 and finite, got {options.seconds}")
    config = resolved(options.config)
    require_devices()
    keep_compiled()
    from jaxcls.measure.benchmark import benchmark, describe_benchmark

    report = benchmark(config, synthetic=options.synthetic, seconds=options.seconds)
    print(describe_benchmark(report))
    if options.json:
        print(json.dumps(report))
    return 0
