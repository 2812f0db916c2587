import threading
import time
from collections.abc import Iterator, Mapping

import numpy as np
import pytest

from jaxcls.distributed.job import TRACKER
from jaxcls.runs.trackers import background as background_module
from jaxcls.runs.trackers.background import Background


class Recorder:
    """A tracker that notes its calls, and fails or hangs in those that it is told."""

    def __init__(self, *, fails: str = "", hangs: str = "") -> None:
        self.calls: list[str] = []
        self.released = threading.Event()
        self._fails, self._hangs = fails, hangs
        self._act("begin")

    def _act(self, call: str) -> None:
        self.calls.append(call)
        if call.startswith(self._fails or " "):
            raise RuntimeError(f"{call} fails")
        if call.startswith(self._hangs or " "):
            self.released.wait(60)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._act(f"log {step}")

    def show(self, step: int, name: str, images: np.ndarray) -> None:
        self._act(f"show {name}")

    def close(self, *, failed: bool) -> None:
        self._act(f"close {failed}")


@pytest.fixture(autouse=True)
def no_tracker_is_left() -> Iterator[None]:
    yield
    for thread in threading.enumerate():
        if thread.name == TRACKER:
            thread.join(10)
            assert not thread.is_alive()


def test_calls_reach_the_tracker_in_their_order() -> None:
    said: list[str] = []
    tracker = Recorder()
    background = Background("T", lambda: tracker, say=said.append)
    background.log(1, {})
    background.show(1, "batch", np.zeros(1))
    background.log(2, {})
    background.close(failed=True)
    assert tracker.calls == ["begin", "log 1", "show batch", "log 2", "close True"]
    assert said == []


@pytest.mark.parametrize("fails", ["begin", "log", "show", "close"])
def test_what_fails_is_reported_once(fails: str) -> None:
    said: list[str] = []
    background = Background("T", lambda: Recorder(fails=fails), say=said.append)
    for step in range(5):
        background.log(step, {})
        background.show(step, "batch", np.zeros(1))
    background.close(failed=False)
    (line,) = said
    assert line.startswith(f"T has failed ({fails}")
    assert "the training continues without it" in line


def test_a_tracker_that_has_failed_is_closed_and_left_alone() -> None:
    tracker = Recorder(fails="log 1")
    background = Background("T", lambda: tracker, say=lambda _: None)
    for step in range(4):
        background.log(step, {})
    background.close(failed=False)
    assert tracker.calls == ["begin", "log 0", "log 1", "close True"]


@pytest.mark.parametrize("hangs", ["log", "show", "close"])
def test_what_hangs_is_waited_for_so_long_and_no_longer(hangs: str) -> None:
    said: list[str] = []
    tracker = Recorder(hangs=hangs)
    background = Background("T", lambda: tracker, say=said.append, patience=0.2)
    background.log(1, {})
    background.show(1, "batch", np.zeros(1))
    start = time.monotonic()
    background.close(failed=False)
    assert 0.1 < time.monotonic() - start < 10
    tracker.released.set()
    assert said == ["T has not finished within 0 s; the training ends without waiting longer"]


def test_a_tracker_that_never_begins_delays_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background_module, "MAX_WAITING", 3)
    said: list[str] = []
    released = threading.Event()

    def begin() -> Recorder:
        released.wait(60)
        return Recorder()

    start = time.monotonic()
    background = Background("T", begin, say=said.append, patience=0.2)
    for step in range(20):
        background.log(step, {})
    background.close(failed=False)
    assert time.monotonic() - start < 10
    assert "T does not keep up" in said[0]
    assert "has not finished" in said[1]
    assert len(said) == 2
    released.set()
    background._calls.put(None)
