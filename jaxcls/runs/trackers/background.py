"""Runs a tracker in a thread of its own, so that it can neither delay nor end the training."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Mapping

import numpy as np

from jaxcls.distributed.job import TRACKER
from jaxcls.runs.trackers.tracker import Tracker
from jaxcls.system.errors import one_line

FINISH_SECONDS = 60.0  # for a tracker to send what is left
MAX_WAITING = 1000  # calls that a tracker may be behind


class Background:
    """A tracker in a thread of its own; it may fail, hang or die.

    The first error is reported once. From then on the training continues without the tracker.
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
          name: the tracker's name in messages.
          begin: makes the tracker; it is called in the thread.
          say: prints a message for the user.
          patience: seconds that the tracker gets at the end to send what is left.
        """
        self._name, self._say, self._patience = name, say, patience
        self._calls: queue.Queue[Callable[[Tracker], None] | None] = queue.Queue(MAX_WAITING)
        self._behind = False
        self._training_failed = False
        self._thread = threading.Thread(target=self._work, args=(begin,), name=TRACKER, daemon=True)
        self._thread.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Calls the tracker's `log`, later."""
        self._put(lambda tracker: tracker.log(step, metrics))

    def show(self, step: int, name: str, images: np.ndarray) -> None:
        """Calls the tracker's `show`, later."""
        self._put(lambda tracker: tracker.show(step, name, images))

    def close(self, *, failed: bool) -> None:
        """Waits until the tracker has ended, but not longer than `patience`."""
        until = time.monotonic() + self._patience
        self._training_failed = failed
        with contextlib.suppress(queue.Full):
            if self._thread.is_alive():
                self._calls.put(None, timeout=self._patience)
        self._thread.join(max(0.0, until - time.monotonic()))
        if self._thread.is_alive():
            self._say(
                f"{self._name} has not finished within {self._patience:.0f} s; the training ends "
                f"without waiting longer"
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
                    f"{self._name} does not keep up; the training continues, and some of its "
                    f"metrics are missing there (metrics.csv has all)"
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
        except Exception as error:  # each tracker has its own exceptions
            self._say(
                f"{self._name} has failed ({one_line(error)}); the training continues without "
                f"it, and metrics.csv has all metrics"
            )
