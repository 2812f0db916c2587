"""The config and the results of command-line tests, whose fixtures are in conftest.py."""

import dataclasses
from collections.abc import Callable

TINY_CONFIG = """\
from jaxcls.config import *


def get_config():
    return Config(
        model=ModelConfig(name="tiny"),
        data=DataConfig(batch_size=32, image_size=16, canvas_size=8),
        num_steps=12,
    )
"""


@dataclasses.dataclass(frozen=True)
class Result:
    status: int
    out: str
    err: str


type Run = Callable[..., Result]
type Message = Callable[..., str]
