"""Writes metrics and images to a file of events for TensorBoard."""

import contextlib
import math
import socket
import time
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
from tensorboardX import summary
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import RecordWriter

from jaxcls.config import Config
from jaxcls.runs.trackers.tracker import BeginTracker, TrackedRun

HYPERPARAMETER_SCORES = ("eval/top1", "eval/loss")  # shown beside the hyperparameters
FLUSH_SECONDS = 120.0


def how_to_begin(_config: Config) -> BeginTracker:
    """TensorBoard's file is always written."""
    return TensorBoard


class TensorBoard:
    """Writes events to a new file in the run's folder; all methods raise `OSError`."""

    def __init__(self, run: TrackedRun):
        """Begins a file; TensorBoard ignores events of older files after `run.start_step`."""
        # TensorBoard reads the files in the order of their names.
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"
        self._file = RecordWriter(str(run.folder / name))
        self._flushed_at = -math.inf
        try:
            self._write(0, file_version="brain.Event:2")
            # At this event TensorBoard drops events with later steps, as of an earlier attempt.
            self._write(run.start_step + 1, session_log={"status": "START"})
            scores = dict.fromkeys(HYPERPARAMETER_SCORES, 0.0)
            for part in summary.hparams(dict(run.hyperparameters), scores):
                self._write(0, summary=part)
            self._flush_if_due()
        except Exception:
            with contextlib.suppress(OSError):  # the first error tells more
                self._file.close()
            raise

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes metrics after a training step."""
        for tag, value in metrics.items():
            self._write(step, summary=summary.scalar(tag, value))
        self._flush_if_due()

    def show(self, step: int, name: str, images: np.ndarray) -> None:
        """Writes images side by side."""
        self._write(step, summary=summary.image(name, images, dataformats="NHWC"))

    def close(self, *, failed: bool) -> None:
        """Closes the file."""
        self._file.close()

    def _write(self, step: int, **content: Any) -> None:
        # The class is made when the module is imported, so type checkers do not see it.
        event = cast(Any, event_pb2).Event(step=step, wall_time=time.time(), **content)
        self._file.write(event.SerializeToString())

    def _flush_if_due(self) -> None:
        if time.monotonic() - self._flushed_at > FLUSH_SECONDS:
            self._flushed_at = time.monotonic()
            self._file.flush()
