"""Two variations of the storm's training, one after the other."""

import dataclasses
from collections.abc import Iterator

from storm_config import get_config

from jaxcls.config import Config


def sweep() -> Iterator[tuple[str, Config]]:
    for seed in (0, 1):
        yield f"seed={seed}", dataclasses.replace(get_config(), seed=seed)
