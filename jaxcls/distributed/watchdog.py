"""A watchdog over the processes of a job: if one is gone or stuck, the others end and name it.

A process alone only says that it is stuck. In a job, each process reports its progress through the
key-value store of JAX's coordination service, which runs in process 0.
"""

import dataclasses
import json
import logging
import math
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, Self

import jax

from jaxcls.distributed.agree import client, is_main_process, num_processes, process_id
from jaxcls.distributed.job import EXIT_FAILED, end_now
from jaxcls.system.output import say

GONE_SECONDS = 60.0  # JAX itself aborts, with an unclear message, after 120 s or more
FAILED_SECONDS = 10.0  # time for the others to fail with their own error
STARTING, COMPILING, VERIFYING = "starting", "compiling", "verifying the data"
LONG_PHASES = (STARTING, COMPILING, VERIFYING)
LONG_PATIENCE = 6  # these may take this many times as long as anything else

_PREFIX = "jaxcls/progress/"

logger = logging.getLogger("jaxcls")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """The progress that a process reports.

    Attributes:
      moves: the number of calls of `note_progress`, which are the same in every process.
      step: the last training step that it finished.
      phase: what it is doing.
      ended: "done" or "failed" once it has left the training.
      beat: counts the reports, which distinguishes a silent process from a stuck one.
    """

    moves: int = 0
    step: int = 0
    phase: str = STARTING
    ended: str | None = None
    beat: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seen:
    """The last report of a process.

    Attributes:
      progress: what it reported.
      moved_at: when its progress changed, in seconds by the clock of this process.
      heard_at: when the report arrived, likewise.
    """

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
    """Says what is wrong with the job, and in which processes; None if nothing is wrong.

    Args:
      seen: the last report of each process.
      now: the time, in seconds.
      stuck_after: seconds without progress after which a process counts as stuck.
    """
    for process, its in sorted(seen.items()):
        if its.progress.ended == "failed" and now - its.moved_at > FAILED_SECONDS:
            return f"process {process} failed after {_where(its.progress)}; its own log says why"
        patience = _patience(its.progress, stuck_after)
        if not its.progress.ended and now - its.heard_at > _silence(patience):
            return (
                f"process {process} has been silent for {now - its.heard_at:.0f} s; its last "
                f"report was from {_where(its.progress)}"
            )
    running = {process: its for process, its in seen.items() if not its.progress.ended}
    if not running:
        return None
    # Only those that are furthest behind are to blame: the others may be waiting for them.
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
    return stuck_after * (LONG_PATIENCE if progress.phase in LONG_PHASES else 1)


def _silence(patience: float) -> float:
    """Seconds without a report after which a process is gone; less than for a stuck one."""
    return min(GONE_SECONDS, patience / 2)


def _where(progress: Progress) -> str:
    return f"step {progress.step} ({progress.phase})"


class Watchdog:
    """Inside the `with`, ends this process with status 1 if a process of the job is gone or stuck.

    A process alone warns of each phase in which it is stuck, and goes on. All processes must call
    `note_progress` at the same points of the training.
    """

    def __init__(self, *, stuck_after: float):
        """`stuck_after`: seconds without progress after which a process is stuck; 0 means never."""
        self._client: Any = client() if stuck_after else None
        self._stuck_after = stuck_after
        self._interval = min(5.0, stuck_after / 10)
        self._mine = Progress()
        self._lock = threading.Lock()  # two threads change it
        self._seen: dict[int, Seen] = {}
        self._answered_at = time.monotonic()
        self._exited = threading.Event()

    def note_progress(self, step: int, phase: str) -> None:
        """Notes that this process begins a phase, such as "compiling", after step `step`."""
        with self._lock:
            self._mine = dataclasses.replace(
                self._mine, moves=self._mine.moves + 1, step=step, phase=phase
            )

    def __enter__(self) -> Self:
        if self._client is not None:
            # A process without any report counts as stuck, not as gone: it may still be starting.
            unheard = Seen(
                progress=Progress(moves=-1), moved_at=time.monotonic(), heard_at=math.inf
            )
            self._seen = dict.fromkeys(range(num_processes()), unheard)
            # Two threads, because the first one hangs if process 0 is suspended as a whole.
            for work in (self._exchange, self._judge):
                threading.Thread(target=work, name="jaxcls-watchdog", daemon=True).start()
        elif self._stuck_after and client() is None:
            threading.Thread(target=self._warn, name="jaxcls-watchdog", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._lock:
            self._mine = dataclasses.replace(self._mine, ended="failed" if kind else "done")
        self._exited.set()

    def _warn(self) -> None:
        """In a process alone, warns once of each phase that takes too long."""
        phase, intervals = self._mine, 0  # not the clock, which goes on while a user debugs
        while not self._exited.wait(self._interval):
            if self._mine is not phase:
                phase, intervals = self._mine, 0
            patience = _patience(phase, self._stuck_after)
            intervals += 1
            if intervals == math.ceil(patience / self._interval):
                logger.warning(
                    "no progress for %.0f s at %s; a disk, the network or a device may "
                    "hang (it goes on waiting; a signal ends it)",
                    patience,
                    _where(phase),
                )

    def _exchange(self) -> None:
        """Sends the progress of this process and reads that of the others, until the exit."""
        exited = False
        while not exited:
            exited = self._exited.wait(self._interval)
            try:
                self._send()
                self._receive()
            except jax.errors.JaxRuntimeError:  # `_judge` measures how long this lasts
                continue
            self._answered_at = time.monotonic()

    def _send(self) -> None:
        with self._lock:
            self._mine = dataclasses.replace(self._mine, beat=self._mine.beat + 1)
            text = json.dumps(dataclasses.asdict(self._mine))
        key = f"{_PREFIX}{process_id()}"
        self._client.key_value_set(key, text, allow_overwrite=True)

    def _receive(self) -> None:
        now = time.monotonic()
        seen = dict(self._seen)
        for key, text in self._client.key_value_dir_get(_PREFIX):
            process, progress = int(key.rpartition("/")[2]), Progress(**json.loads(text))
            seen[process] = seen[process].update(progress, now)
        self._seen = seen

    def _judge(self) -> None:
        while not self._exited.wait(self._interval):
            now = time.monotonic()
            silent = now - self._answered_at
            patience = _patience(self._mine, self._stuck_after)
            if silent > _silence(patience) + self._interval:
                problem = (
                    f"process 0, through which all processes communicate, has been silent for "
                    f"{silent:.0f} s"
                )
            else:
                problem = verdict(self._seen, now, stuck_after=self._stuck_after)
            if problem and not self._exited.is_set():
                say(f"jaxcls: {problem}", sys.stderr)
                # Process 0 ends last: without it the others abort before they can say why.
                if is_main_process() and self._exited.wait(2 * self._interval):
                    return
                end_now(
                    EXIT_FAILED,
                    f"jaxcls: process {process_id()} ends, because a job needs all its processes; "
                    f"look at the log and the machine of the one that is named, and start the job "
                    f"again to resume",
                )
