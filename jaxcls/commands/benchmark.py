"""`jaxcls benchmark`: the speed of data, augmentation and step, separately and together."""

import dataclasses
import json
import math
from typing import Annotated

import tyro

from jaxcls.commands.common import parse_with_config, require_devices, validate_and_resolve
from jaxcls.config import Config
from jaxcls.distributed.compile_cache import keep_compiled
from jaxcls.system.errors import UserError
from jaxcls.system.output import put, say


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Measures the data pipeline, the augmentation and the step, separately and together."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    synthetic: bool = False
    """Read no data; use random images of 1,000 classes."""
    seconds: float = 5.0
    """Shortest time for which each part is measured."""
    json: bool = False
    """Print one JSON object as the last line."""


def run(arguments: list[str]) -> int:
    """Runs `jaxcls benchmark CONFIG …`; returns the exit status."""
    options = parse_with_config(Benchmark, "jaxcls benchmark CONFIG", arguments)
    if not options.seconds >= 0 or math.isinf(options.seconds):
        raise UserError(f"--seconds: must be at least 0 and finite, got {options.seconds}")
    config = validate_and_resolve(options.config)
    require_devices()
    keep_compiled()
    from jaxcls.measure.benchmark import benchmark, describe_benchmark

    report = benchmark(config, synthetic=options.synthetic, seconds=options.seconds)
    say(describe_benchmark(report))
    if options.json:
        put(json.dumps(report))
    return 0
