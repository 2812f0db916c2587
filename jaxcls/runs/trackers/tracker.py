"""What a tracker does, and what it is told of the run."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jaxcls.system.paths import RunPath


class Tracker(Protocol):
    """Receives the metrics and images of a run. Its methods may raise any exception."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records metrics after a training step, by names such as eval/top1."""
        ...

    def show(self, step: int, name: str, images: np.ndarray) -> None:
        """Records images, uint8 [count, height, width, 3]."""
        ...

    def close(self, *, failed: bool) -> None:
        """Sends what is left, and whether the training failed."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """What a tracker is told of a run.

    Attributes:
      run: the directory of the run.
      folder: a local folder for the tracker's files; the same as `run` unless that is in a bucket.
      start_step: the training step that the run begins or resumes at.
      hyperparameters: the fields of the config by their dotted names.
      say: prints a message for the user.
    """

    run: RunPath
    folder: Path
    start_step: int
    hyperparameters: Mapping[str, Any]
    say: Callable[[str], None]


type BeginTracker = Callable[[TrackedRun], Tracker]
