"""Trackers of a run's metrics: TensorBoard, and Weights & Biases through its own library.

A tracker may fail, hang and die; `Background` sees to it that none of that reaches the training.
"""

import contextlib
import importlib.util
import math
import queue
import secrets
import socket
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from tensorboardX import summary
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import RecordWriter

from jaxcls.distributed.job import TRACKER
from jaxcls.system.errors import UserError
from jaxcls.system.paths import RunPath, write_whole

ID_FILE = "wandb_id.txt"  # of the run, so that a training that goes on does so there, too
HYPERPARAMETER_SCORES = ("eval/top1", "eval/loss")  # that TensorBoard shows beside them
FINISH_SECONDS = 60.0  # for a tracker to send what is left
MOST_WAITING = 1000  # calls that a tracker may be behind
FLUSH_SECONDS = 120.0


class Tracker(Protocol):
    """Where metrics and images of a run go. What goes wrong is raised, whatever it is."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Notes metrics after a step, by names such as eval/top1."""
        ...

    def show(self, step: int, name: str, images: np.ndarray) -> None:
        """Notes images, uint8 [count, height, width, 3]."""
        ...

    def close(self, *, failed: bool) -> None:
        """Sends what is left, and how the training ended."""
        ...


class Background:
    """A tracker in a thread of its own, where it can neither delay nor end the training.

    What goes wrong first is said, once; from then on the training goes on without the tracker.
    """

    def __init__(
        self,
        name: str,
        begin: Callable[[], Tracker],
        *,
        say: Callable[[str], None],
        patience: float = FINISH_SECONDS,
    ):
        """Begins the tracker.

        Args:
          name: what the user calls it.
          begin: makes it, in the thread.
          say: tells the user.
          patience: seconds that it gets in the end for what is left.
        """
        self._name, self._say, self._patience = name, say, patience
        self._calls: queue.Queue[Callable[[Tracker], None] | None] = queue.Queue(MOST_WAITING)
        self._behind = False
        self._training_failed = False
        self._thread = threading.Thread(target=self._work, args=(begin,), name=TRACKER, daemon=True)
        self._thread.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """As the tracker's, later."""
        self._put(lambda tracker: tracker.log(step, metrics))

    def show(self, step: int, name: str, images: np.ndarray) -> None:
        """As the tracker's, later."""
        self._put(lambda tracker: tracker.show(step, name, images))

    def close(self, *, failed: bool) -> None:
        """Waits for the tracker to end, for so long and no longer."""
        until = time.monotonic() + self._patience
        self._training_failed = failed
        with contextlib.suppress(queue.Full):
            if self._thread.is_alive():
                self._calls.put(None, timeout=self._patience)
        self._thread.join(max(0.0, until - time.monotonic()))
        if self._thread.is_alive():
            self._say(
                f"{self._name} has not ended within {self._patience:.0f} s; the training ends "
                f"without it"
            )

    def _put(self, call: Callable[[Tracker], None]) -> None:
        if not self._thread.is_alive():
            return
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            if not self._behind:
                self._behind = True
                self._say(
                    f"{self._name} does not keep up; the training goes on, and some of its metrics "
                    f"are missing there (metrics.csv has all)"
                )

    def _work(self, begin: Callable[[], Tracker]) -> None:
        try:
            tracker = begin()
            try:
                while (call := self._calls.get()) is not None:
                    call(tracker)
            except Exception:
                with contextlib.suppress(Exception):  # the first error tells more
                    tracker.close(failed=True)
                raise
            tracker.close(failed=self._training_failed)
        except Exception as error:  # every tracker has its own
            why = textwrap.shorten(str(error) or repr(error), 300, placeholder=" …")
            self._say(
                f"{self._name} has failed ({why}); the training goes on without it, and "
                f"metrics.csv has all metrics"
            )


class TensorBoard:
    """Events for TensorBoard in a file of a folder, written when they come."""

    def __init__(self, folder: Path, *, start_step: int, hyperparameters: Mapping[str, Any]):
        """Begins a file; events of other files after `start_step` are taken back.

        Raises:
          OSError: the folder cannot be written; as do all methods.
        """
        # TensorBoard reads files in the order of their names.
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"
        self._file = RecordWriter(str(folder / name))
        self._flushed_at = -math.inf
        try:
            self._write(0, file_version="brain.Event:2")
            # What has a later step is dropped by TensorBoard, as an earlier attempt's.
            self._write(start_step + 1, session_log={"status": "START"})
            scores = dict.fromkeys(HYPERPARAMETER_SCORES, 0.0)
            for part in summary.hparams(dict(hyperparameters), scores):
                self._write(0, summary=part)
            self._flush_now_and_then()
        except Exception:
            with contextlib.suppress(OSError):  # the first error tells more
                self._file.close()
            raise

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Notes metrics after a step."""
        for tag, value in metrics.items():
            self._write(step, summary=summary.scalar(tag, value))
        self._flush_now_and_then()

    def show(self, step: int, name: str, images: np.ndarray) -> None:
        """Notes images side by side."""
        self._write(step, summary=summary.image(name, images, dataformats="NHWC"))

    def close(self, *, failed: bool) -> None:
        """Closes the file."""
        self._file.close()

    def _write(self, step: int, **content: Any) -> None:
        # Its messages are made when it is imported, which type checkers do not see.
        event = cast(Any, event_pb2).Event(step=step, wall_time=time.time(), **content)
        self._file.write(event.SerializeToString())

    def _flush_now_and_then(self) -> None:
        if time.monotonic() - self._flushed_at > FLUSH_SECONDS:
            self._flushed_at = time.monotonic()
            self._file.flush()


class WandbRun:
    """One run of a project in Weights & Biases (https://docs.wandb.ai)."""

    def __init__(
        self, project: str, run: RunPath, *, folder: Path, hyperparameters: Mapping[str, Any]
    ):
        """Begins the run, or goes on with it.

        Args:
          project: its name there.
          run: the directory of the training.
          folder: for the library's files.
          hyperparameters: what its table of runs shows.

        Raises:
          Exception: whatever the library raises, without a login or a network, say; as do all
            methods.
        """
        import wandb

        self._wandb = wandb
        with self._tearing_down():
            self._run = wandb.init(
                project=project,
                id=_id_of(run),
                name=run.name,
                dir=folder,
                resume="allow",
                config=dict(hyperparameters),
                settings=wandb.Settings(console="off", silent=True),
            )
            # Its own count of steps would drop those that a resumed run takes again.
            self._run.define_metric("*", step_metric="step")

    @property
    def url(self) -> str | None:
        """Where to look at it; None without a network."""
        return None if self._run.offline else self._run.url  # offline, it warns of being asked

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Notes metrics after a step, by names such as eval/top1."""
        self._run.log({"step": step, **metrics})

    def show(self, step: int, name: str, images: np.ndarray) -> None:
        """Notes images, uint8 [count, height, width, 3]."""
        self._run.log({"step": step, name: [self._wandb.Image(image) for image in images]})

    def close(self, *, failed: bool) -> None:
        """Sends what is left, and how the training ended."""
        with self._tearing_down():
            self._run.finish(exit_code=int(failed))

    @contextlib.contextmanager
    def _tearing_down(self) -> Iterator[None]:
        """After an error, what the library would do when the program ends, and wait for, is done
        here."""
        try:
            yield
        except Exception:
            with contextlib.suppress(Exception):
                self._wandb.teardown(exit_code=1)
            raise


def require_wandb(project: str) -> None:
    """Checks that the library is there.

    Raises:
      UserError: it is missing.
    """
    if importlib.util.find_spec("wandb") is None:
        raise UserError(
            f"wandb_project: {project!r} needs the package wandb; install the extra: "
            f"pip install 'jaxcls[wandb]'"
        )


def _id_of(run: RunPath) -> str:
    file = run / ID_FILE
    if not file.exists():
        write_whole(file, secrets.token_hex(8))
    return file.read_text().strip()
