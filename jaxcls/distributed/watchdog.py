"""A watchdog over the processes of a job: when one is gone or stuck, the others end and name it.

Each process tells the others, through the key-value store of JAX's coordination service, how far it
is. That store lives in process 0.
"""

import dataclasses
import json
import math
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, Self

import jax

from jaxcls.distributed.agree import client, is_main_process, num_processes, process_id
from jaxcls.distributed.job import EXIT_FAILED, end_now

GONE_SECONDS = 60.0  # below the 100 s after which JAX itself aborts, without saying much
FAILED_SECONDS = 10.0  # for the others to see their own error
STARTING, COMPILING = "starting", "compiling"  # the two phases in which programs are compiled
COMPILE_PATIENCE = 6  # compiling may take that many times as long as anything else

_PREFIX = "jaxcls/progress/"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a process is.

    Attributes:
      moves: how often it has gone on to something; the same sequence in every process.
      step: the last step that it took.
      phase: what it is doing.
      ended: "done" or "failed" once it has left the training.
      beat: counts the messages, so that a silent process can be told from one that is stuck.
    """

    moves: int = 0
    step: int = 0
    phase: str = STARTING
    ended: str | None = None
    beat: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seen:
    """The last message of a process, and when by our own clock, in seconds, it went on."""

    progress: Progress
    moved_at: float
    heard_at: float

    def update(self, progress: Progress, now: float) -> "Seen":
        same = dataclasses.replace(progress, beat=self.progress.beat) == self.progress
        return Seen(
            progress=progress,
            moved_at=self.moved_at if same else now,
            heard_at=now if progress.beat != self.progress.beat else self.heard_at,
        )


def verdict(seen: Mapping[int, Seen], now: float, *, stuck_after: float) -> str | None:
    """What is wrong with the job, naming the processes; None if nothing is.

    Args:
      seen: of each process.
      now: the time, in seconds.
      stuck_after: seconds without a move after which a process is stuck.
    """
    for process, its in sorted(seen.items()):
        if its.progress.ended == "failed" and now - its.moved_at > FAILED_SECONDS:
            return f"process {process} failed after {_where(its.progress)}; its own log says why"
        patience = _patience(its.progress, stuck_after)
        if not its.progress.ended and now - its.heard_at > _silence(patience):
            return (
                f"process {process} has not been heard of for {now - its.heard_at:.0f} s; it was "
                f"last at {_where(its.progress)}"
            )
    running = {process: its for process, its in seen.items() if not its.progress.ended}
    if not running:
        return None
    # The others may wait for those that are furthest behind.
    moves = min(its.progress.moves for its in running.values())
    behind = {process: its for process, its in running.items() if its.progress.moves == moves}
    its = next(iter(behind.values()))
    since = max(its.moved_at for its in behind.values())
    if now - since <= _patience(its.progress, stuck_after):
        return None
    one = len(behind) == 1
    names = ("process " if one else "processes ") + ", ".join(map(str, sorted(behind)))
    has = "has" if one else "have"
    return f"{names} {has} been at {_where(its.progress)} for {now - since:.0f} s"


def _patience(progress: Progress, stuck_after: float) -> float:
    return stuck_after * (COMPILE_PATIENCE if progress.phase in (STARTING, COMPILING) else 1)


def _silence(patience: float) -> float:
    """Seconds without a message after which a process is gone; sooner than it looks stuck."""
    return min(GONE_SECONDS, patience / 2)


def _where(progress: Progress) -> str:
    return f"step {progress.step} ({progress.phase})"


class Watchdog:
    """Inside the `with`, ends this process with status 1 when one of the job is gone or stuck.

    Does nothing where there is one process. All processes call `note_progress` at the same places.
    """

    def __init__(self, *, stuck_after: float):
        """`stuck_after`: seconds without a move after which a process is stuck; 0 turns all off."""
        self._client: Any = client() if stuck_after else None
        self._stuck_after = stuck_after
        self._interval = min(5.0, stuck_after / 10)
        self._mine = Progress()
        self._lock = threading.Lock()  # two threads change it
        self._seen: dict[int, Seen] = {}
        self._answered_at = time.monotonic()
        self._left = threading.Event()

    def note_progress(self, step: int, phase: str) -> None:
        """Notes what this process does from now on, `step` being the last step it took."""
        with self._lock:
            self._mine = dataclasses.replace(
                self._mine, moves=self._mine.moves + 1, step=step, phase=phase
            )

    def __enter__(self) -> Self:
        if self._client is not None:
            # One that says nothing is stuck before its start, not gone: it may come yet.
            unheard = Seen(
                progress=Progress(moves=-1), moved_at=time.monotonic(), heard_at=math.inf
            )
            self._seen = dict.fromkeys(range(num_processes()), unheard)
            # Two threads: where process 0 is stopped as a whole, the first one hangs, too.
            for work in (self._exchange, self._judge):
                threading.Thread(target=work, name="jaxcls-watchdog", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._lock:
            self._mine = dataclasses.replace(self._mine, ended="failed" if kind else "done")
        self._left.set()

    def _exchange(self) -> None:
        """Tells how far this process is, and hears of the others."""
        leaving = False
        while not leaving:
            leaving = self._left.wait(self._interval)
            try:
                self._tell()
                self._hear()
            except jax.errors.JaxRuntimeError:  # `_judge` tells how long that lasts
                continue
            self._answered_at = time.monotonic()

    def _tell(self) -> None:
        with self._lock:
            self._mine = dataclasses.replace(self._mine, beat=self._mine.beat + 1)
            text = json.dumps(dataclasses.asdict(self._mine))
        key = f"{_PREFIX}{process_id()}"
        self._client.key_value_set(key, text, allow_overwrite=True)

    def _hear(self) -> None:
        now = time.monotonic()
        seen = dict(self._seen)
        for key, text in self._client.key_value_dir_get(_PREFIX):
            process, progress = int(key.rpartition("/")[2]), Progress(**json.loads(text))
            seen[process] = seen[process].update(progress, now)
        self._seen = seen

    def _judge(self) -> None:
        while not self._left.wait(self._interval):
            now = time.monotonic()
            silent = now - self._answered_at
            patience = _patience(self._mine, self._stuck_after)
            if silent > _silence(patience) + self._interval:
                problem = f"process 0, through which all others talk, is silent for {silent:.0f} s"
            else:
                problem = verdict(self._seen, now, stuck_after=self._stuck_after)
            if problem and not self._left.is_set():
                print(f"jaxcls: {problem}", file=sys.stderr, flush=True)
                # Process 0 goes last: without it the others abort before they have said why.
                if is_main_process() and self._left.wait(2 * self._interval):
                    return
                end_now(EXIT_FAILED, f"jaxcls: process {process_id()} ends")
