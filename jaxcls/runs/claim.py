"""One writer a run: a training claims the directory of its run, and a second one is refused.

The claim is a file, writer.N.json, of the N-th training that began to write there. The highest N
counts, and the file stays when the training has ended, which it then says; so numbers only grow.
Who comes next creates N + 1, which one process alone can do (`create_whole`), whether it
finds a training that has ended, a dead one, or another one that comes at the same moment.

Whether a writer that has not said that it ended is still there:

- on the same machine (and in the same container) its process is looked at, with the time at which
  it began, for another process may have got its number. One that is gone is followed at once.
- on another machine only its file can be looked at, which the writer renews every RENEW_SECONDS. It
  is watched for LEASE_SECONDS by the watcher's own clock, so that wrong clocks do no harm: a change
  says that the writer is there; without one it is followed.

A writer that could not renew its claim for that long, because it was suspended or cut off from the
disk, may find that it was followed. It notices at its next renewal, before each save and before it
ends; then it writes nothing more. What it was writing in that very moment is not held back. And a
disk that shows other machines an old state for longer than the lease, or that lets two processes
create the same file (some FUSE mounts do), cannot keep two trainings apart.
"""

import contextlib
import dataclasses
import datetime
import json
import logging
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Self

from jaxcls.config.decoding import decode_fields
from jaxcls.distributed.agree import by_main_process
from jaxcls.runs.directory import RunError, TakenOverError, writing
from jaxcls.system.paths import RunPath
from jaxcls.system.whole_files import create_whole, write_whole

RENEW_SECONDS = 10.0
LEASE_SECONDS = 60.0

_FILE = re.compile(r"writer\.([0-9]+)\.json")
_ours: set[str] = set()  # tokens of the claims that this process holds

logger = logging.getLogger("jaxcls")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Writer:
    """Who writes to a run.

    Attributes:
      host, process: its name and number, for people.
      since: when it began, in its own time zone.
      ended: when it ended; None before that.
      renewed: the last sign of life, in seconds since 1970 by the clock of its host.
      machine: the running system that it is a process of; numbers of processes count within it.
      started: when the process began, as that system counts; None where it does not tell.
      folder: inode number of the directory, which a copy does not have; None in a bucket.
      token: of this claim alone.
    """

    host: str
    process: int
    since: str
    ended: str | None
    renewed: float
    machine: str
    started: str | None
    folder: int | None
    token: str

    def __str__(self) -> str:
        return f"process {self.process} on {self.host} (started {self.since})"


@dataclasses.dataclass(frozen=True)
class _Found:
    """The newest claim in a directory: its number, 0 where there is none, and its text."""

    number: int
    text: str = ""

    def writer(self) -> Writer | None:
        """Who wrote it; None where that cannot be read."""
        try:
            return decode_fields(Writer, json.loads(self.text), prefix="")
        except (ValueError, TypeError):
            return None


def last_writer(run: RunPath) -> Writer | None:
    """Who writes to a run, or did last; None where that is not known."""
    try:
        return _newest(run).writer()
    except OSError:
        return None


def fate(writer: Writer, run: RunPath) -> Literal["there", "gone", "unknown"]:
    """What became of a writer, as far as this machine can tell at once."""
    if writer.ended is not None:
        return "gone"
    if writer.machine != _machine():
        return "unknown"
    with contextlib.suppress(PermissionError):  # another user's
        try:
            os.kill(writer.process, 0)
        except ProcessLookupError:
            return "gone"
    if (started := _start_of(writer.process)) is None:
        return "unknown"
    if started != writer.started:
        return "gone"
    if writer.process == os.getpid() and writer.token not in _ours:
        return "gone"
    return "there" if writer.folder == _folder(run) else "unknown"  # it may write to the original


class Claim:
    """Inside the `with`, the job of this process is the one that may write to a run.

    Process 0 claims it for all of them.

    Attributes:
      notes: what is to be said of the training that was followed, if it had not ended by itself.
    """

    def __init__(self, run: RunPath, *, on_taken_over: Callable[[], None]):
        """`on_taken_over` is called once, by a thread, when another training is found to write."""
        self.notes = ""
        self._run = run
        self._on_taken_over = on_taken_over
        self._number = 0
        self._mine = _this_process(run)
        self._left = threading.Event()
        self._renewing = threading.Thread(target=self._keep, name="jaxcls-claim", daemon=True)

    def __enter__(self) -> Self:
        """Claims the run; all processes of the job together.

        Raises:
          RunError: another training has it, or the directory cannot be written.
          JobError: process 0 says so.
        """
        by_main_process(self._take)
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def require(self) -> None:
        """Checks that the run is still this job's; all processes together.

        Raises:
          TakenOverError: another training writes to it.
          JobError: process 0 says so.
        """
        by_main_process(self.require_alone)

    def require_alone(self) -> None:
        """`require`, of one process and in any thread."""
        try:
            found = self._successor()
        except Exception:  # a bucket's come in many types; what cannot be read is not written
            return
        if found is not None:
            who = found.writer() or _name(found.number)
            raise TakenOverError(
                f"another training, {who}, has taken over run {str(self._run)!r}, because this one "
                f"gave no sign of life for {LEASE_SECONDS:.0f} s (suspended, or cut off from the "
                f"disk); stopping without writing anything more"
            )

    def release(self) -> None:
        """Notes that this training has ended; from any thread, and once."""
        if self._mine.token not in _ours:
            return
        self._left.set()
        if self._renewing.is_alive():
            self._renewing.join(RENEW_SECONDS)  # a bucket may not answer
        try:
            if self._number and self._successor() is None:
                self._write(ended=_now())
        except Exception as error:  # a bucket's come in many types
            logger.warning("the end of the training was not noted in %s: %s", self._run, error)
        _ours.discard(self._mine.token)

    def _take(self) -> None:
        _ours.add(self._mine.token)
        try:
            with writing(self._run):
                while not self._number:
                    self._number = self._follow(_newest(self._run))
                self._tidy()
        except BaseException:
            _ours.discard(self._mine.token)
            raise
        self._renewing.start()

    def _follow(self, last: _Found) -> int:
        """Takes the next number, if the last writer is gone; 0 where all must be looked at again.

        Raises:
          RunError: the last writer is still there.
        """
        writer = last.writer()
        if last.number and not self._is_gone(last, writer):
            return 0
        number = last.number + 1
        create_whole(self._run / _name(number), self._text())
        # Not what `create_whole` says: where the answer of a server is lost, it finds its own file.
        # And a number that was free may be below the newest one by now.
        if (newest := _newest(self._run)).number != number or not self._is_mine(newest):
            if self._is_mine(_read(self._run, number)):
                (self._run / _name(number)).unlink()
            return 0
        if writer is not None and writer.ended is None:
            self.notes = f"takes over from {writer}, which ended without saying so"
        return number

    def _is_gone(self, last: _Found, writer: Writer | None) -> bool:
        """Whether a writer is gone; False where there is a newer one.

        Raises:
          RunError: it is there.
        """
        now = fate(writer, self._run) if writer else "unknown"
        if now == "gone":
            return True
        if now == "unknown":
            who = writer or f"the writer of {_name(last.number)}, which cannot be read"
            logger.warning(
                "run %r was last written by %s; this machine cannot tell whether that is still "
                "running, so waiting up to %.0f s for a sign of life",
                str(self._run),
                who,
                LEASE_SECONDS,
            )
            newer = self._watch(last)
            if newer is None:
                return True
            if newer.number != last.number or _has_ended(newer):
                return False
            writer = newer.writer()
        raise RunError(
            f"run {str(self._run)!r} is already being trained, by {writer or 'another process'}; "
            f"let it end, stop it there{'' if writer is None else f' (kill {writer.process})'}, or "
            f"use another --workdir"
        )

    def _watch(self, last: _Found) -> _Found | None:
        """Waits for a change of the newest claim; None if there is none for LEASE_SECONDS."""
        until = time.monotonic() + LEASE_SECONDS
        while time.monotonic() < until:
            time.sleep(min(1.0, LEASE_SECONDS / 10))
            if (now := _newest(self._run)) != last:
                return now
        return None

    def _tidy(self) -> None:
        """Deletes the claims before this one."""
        for number in _numbers(self._run):
            if number < self._number:
                with contextlib.suppress(FileNotFoundError):
                    (self._run / _name(number)).unlink()

    def _keep(self) -> None:
        """Renews the claim, in a thread, until it is released or another training has the run."""
        while not self._left.wait(RENEW_SECONDS):
            try:
                if self._successor() is not None:
                    self._on_taken_over()
                    return
                self._write()
            except Exception as error:  # the next time may be better
                logger.debug("the claim of %s was not renewed: %s", self._run, error)

    def _successor(self) -> _Found | None:
        """The claim of the training that followed this one, if there is one."""
        newest = _newest(self._run)
        return newest if newest.number > self._number > 0 else None

    def _is_mine(self, found: _Found) -> bool:
        writer = found.writer()
        return writer is not None and writer.token == self._mine.token

    def _text(self, ended: str | None = None) -> str:
        now = dataclasses.replace(self._mine, renewed=time.time(), ended=ended)
        return json.dumps(dataclasses.asdict(now), indent=2) + "\n"

    def _write(self, ended: str | None = None) -> None:
        write_whole(self._run / _name(self._number), self._text(ended))


def _name(number: int) -> str:
    return f"writer.{number}.json"


def _numbers(run: RunPath) -> list[int]:
    try:
        found = [_FILE.fullmatch(path.name) for path in run.iterdir()]
    except FileNotFoundError:  # a bucket has no empty folders
        return []
    return [int(match[1]) for match in found if match]


def _newest(run: RunPath) -> _Found:
    return _read(run, max(_numbers(run), default=0))


def _read(run: RunPath, number: int) -> _Found:
    try:
        return _Found(number, (run / _name(number)).read_text() if number else "")
    except (FileNotFoundError, UnicodeDecodeError):
        return _Found(number)


def _has_ended(found: _Found) -> bool:
    writer = found.writer()
    return writer is not None and writer.ended is not None


def _this_process(run: RunPath) -> Writer:
    return Writer(
        host=socket.gethostname(),
        process=os.getpid(),
        since=_now(),
        ended=None,
        renewed=time.time(),
        machine=_machine(),
        started=_start_of(os.getpid()),
        folder=_folder(run),
        token=secrets.token_hex(8),
    )


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")


def _machine() -> str:
    """The running system, or container, whose process numbers this process sees."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # not on Linux
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _start_of(process: int) -> str | None:
    """When a process began, in clock ticks since the system did, or "" for one that only waits to
    be forgotten; None where the system does not tell."""
    try:
        state, *fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return "" if state in "ZX" else fields[18]


def _folder(run: RunPath) -> int | None:
    return os.stat(run).st_ino if isinstance(run, Path) and run.exists() else None
