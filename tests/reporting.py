"""Reporters of a training for tests, and metrics to report."""

import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from tensorboardX.proto import event_pb2

from jaxcls.config import Config
from jaxcls.runs.reporter import Reporter

TRAIN = {
    "loss": 1.25,
    "top1": 0.5,
    "top5": 0.75,
    "grad_norm": 2.0,
    "learning_rate": 0.1,
    "images_per_second": 1234.4,
    "steps_per_second": 2.0,
    "data_wait_share": 0.01,
}
CONFIG = Config(num_steps=100)
EVAL = {"loss": 0.5, "top1": 0.875, "top5": 1.0, "num_examples": 360}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def open_reporter(
    run: Path, stream: io.StringIO, *, start_step: int = 0, start_evaluated: bool = True
) -> Reporter:
    return Reporter(
        run,
        config=CONFIG,
        num_steps=100,
        steps_per_epoch=8.0,
        start_step=start_step,
        start_evaluated=start_evaluated,
        stream=stream,
    )


def values(run: Path) -> Iterator[tuple[int, Any]]:
    """(step, value) of all TensorBoard events of a run, in the order of the files."""
    for path in sorted(run.glob("events.*")):
        content = path.read_bytes()
        while content:  # length, its checksum, an event, its checksum
            (length,) = struct.unpack("<Q", content[:8])
            event = cast(Any, event_pb2).Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            for value in event.summary.value:
                yield event.step, value


def scalars(run: Path) -> Iterator[tuple[str, int, float]]:
    """(tag, step, value) of what is no picture and no table of hyper-parameters."""
    for step, value in values(run):
        if not value.HasField("image") and not value.tag.startswith("_hparams_"):
            yield value.tag, step, value.simple_value
