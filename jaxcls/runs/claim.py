"""One writer per run: a training claims the directory of its run, and a second one is refused.

The claim is a file, writer.N.json, of the N-th training that wrote to the run. The highest N
counts. When the training ends, it records that in the file and keeps it, so numbers only grow. The
next training creates N + 1. Only one process can do so (`create_whole`), even if several try at the
same moment.

A claim without a recorded end may belong to a training that is still running or to a dead one:

- On the same machine (and in the same container) its process is looked up by number and start time,
  because another process may have the same number by now. A dead one is replaced at once.
- On another machine only the file can be read, which its writer renews every RENEW_SECONDS. It is
  watched for LEASE_SECONDS, by the clock of the reader, so that clocks need not agree. If it
  changes, the writer is running; if it does not change, the writer is replaced.

A writer that could not renew its claim for that long, because it was suspended or cut off from the
disk, may have been replaced. It notices this at its next renewal, before each save and before it
ends, and then writes nothing more; only a write that is already in progress is completed. It does
the same if its own claim is gone or is another training's, because then the directory was moved,
emptied or unmounted. Two trainings cannot be kept apart on a disk that shows other machines an old
state for longer than the lease, or that lets two processes create the same file, as some FUSE
mounts do.
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
from jaxcls.runs.directory import RunError, RunLostError, writing
from jaxcls.system.json_text import parse_json
from jaxcls.system.paths import RunPath
from jaxcls.system.whole_files import create_whole, write_whole

RENEW_SECONDS = 10.0
LEASE_SECONDS = 60.0

_FILE = re.compile(r"writer\.([0-9]+)\.json")
_held_tokens: set[str] = set()  # of the claims that this process holds

logger = logging.getLogger("jaxcls")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Writer:
    """The process that writes to a run.

    Attributes:
      host: the name of its machine, for people.
      process: its process number.
      since: when it claimed the run, in its own time zone.
      ended: when it ended; None before that.
      renewed: its last sign of life, in seconds since 1970 by the clock of its machine.
      machine: identifies the running system or container in which the process number is valid.
      started: when the process started, in that system's clock ticks; None if it is unknown.
      folder: the inode number of the directory, which a copy does not have; None in a bucket.
      token: a random text that identifies this claim.
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
class _ClaimFile:
    """A claim in a directory: its number, 0 if there is no claim, and its text."""

    number: int
    text: str = ""

    def writer(self) -> Writer | None:
        """The process that wrote it; None if the text cannot be read."""
        try:
            return decode_fields(Writer, parse_json(self.text), prefix="")
        except (ValueError, TypeError):
            return None


def last_writer(run: RunPath) -> Writer | None:
    """The process that writes to a run, or wrote last; None if that is unknown."""
    try:
        return _newest(run).writer()
    except OSError:
        return None


def writer_status(writer: Writer, run: RunPath) -> Literal["running", "gone", "unknown"]:
    """Whether a writer is still running, as far as this machine can tell without waiting."""
    if writer.ended is not None:
        return "gone"
    if writer.machine != _machine():
        return "unknown"
    with contextlib.suppress(PermissionError):  # a process of another user, which exists
        try:
            os.kill(writer.process, 0)
        except ProcessLookupError:
            return "gone"
    if (started := _start_of(writer.process)) is None:
        return "unknown"
    if started != writer.started:
        return "gone"
    if writer.process == os.getpid() and writer.token not in _held_tokens:
        return "gone"
    # In a copy of a run's directory, the writer may be writing to the original.
    return "running" if writer.folder == _inode(run) else "unknown"


class Claim:
    """Inside the `with`, only the job of this process may write to a run.

    Process 0 claims the run for the whole job.

    Attributes:
      message: for the log, if this training replaces one that did not record its end; else empty.
    """

    def __init__(self, run: RunPath, *, on_lost: Callable[[], None]):
        """`on_lost` is called once, in a thread, when `require_here` begins to raise."""
        self.message = ""
        self._run = run
        self._on_lost = on_lost
        self._number = 0
        self._writer = _this_process(run)
        self._released = threading.Event()
        self._renewing = threading.Thread(target=self._renew, name="jaxcls-claim", daemon=True)

    def __enter__(self) -> Self:
        """Claims the run; all processes of the job must call it.

        Raises:
          RunError: another training writes to the run, or the directory cannot be written.
          JobError: one of these happened in process 0.
        """
        by_main_process(self._take)
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def require(self) -> None:
        """Checks that the run still belongs to this training; all processes must call it.

        Raises:
          RunLostError: another training has taken it over, or the directory is another one.
          JobError: process 0 found this.
        """
        by_main_process(self.require_here)

    def require_here(self) -> None:
        """Does the same as `require` for one process; can be called in any thread."""
        try:
            problem = self._problem()
        except Exception:  # errors of a bucket have many types; then it cannot be written either
            return
        if problem is not None:
            raise RunLostError(f"{problem}; stopping without writing anything more")

    def release(self) -> None:
        """Records that this training has ended; can be called in any thread, and several times."""
        if self._writer.token not in _held_tokens:
            return
        self._released.set()
        if self._renewing.is_alive():
            self._renewing.join(RENEW_SECONDS)  # not longer, in case a bucket does not answer
        try:
            if self._number and self._problem() is None:
                self._write(ended=_now())
        except Exception as error:  # errors of a bucket have many types
            logger.warning("cannot record the end of the training in %s: %s", self._run, error)
        _held_tokens.discard(self._writer.token)

    def _take(self) -> None:
        _held_tokens.add(self._writer.token)
        try:
            with writing(self._run):
                while not self._number:
                    self._number = self._try_to_replace(_newest(self._run))
                self._delete_older()
        except BaseException:
            _held_tokens.discard(self._writer.token)
            raise
        self._renewing.start()

    def _try_to_replace(self, last: _ClaimFile) -> int:
        """Takes the next number if the last writer is gone; returns 0 if the caller must try again.

        Raises:
          RunError: the last writer is still running.
        """
        writer = last.writer()
        if last.number and not self._is_gone(last, writer):
            return 0
        number = last.number + 1
        create_whole(self._run / _name(number), self._text())
        # The result of `create_whole` is not used: if the answer of a server is lost, it finds its
        # own file and returns False. Also, the number may be below the newest one by now.
        if (newest := _newest(self._run)).number != number or not self._is_mine(newest):
            if self._is_mine(_read(self._run, number)):
                (self._run / _name(number)).unlink()
            return 0
        if writer is not None and writer.ended is None:
            self.message = f"takes over from {writer}, which did not record its end"
        return number

    def _is_gone(self, last: _ClaimFile, writer: Writer | None) -> bool:
        """Whether the last writer is gone; False if there is a newer one meanwhile.

        Raises:
          RunError: the last writer is still running.
        """
        status = writer_status(writer, self._run) if writer else "unknown"
        if status == "gone":
            return True
        if status == "unknown":
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
            writer = newer.writer() or writer
        raise RunError(
            f"run {str(self._run)!r} is already being trained, by {writer or 'another process'}; "
            f"wait for its end, stop it{'' if writer is None else f' (kill {writer.process})'}, or "
            f"use another --workdir"
        )

    def _watch(self, last: _ClaimFile) -> _ClaimFile | None:
        """Waits until the newest claim changes, and returns it; None after LEASE_SECONDS."""
        until = time.monotonic() + LEASE_SECONDS
        while time.monotonic() < until:
            time.sleep(min(1.0, LEASE_SECONDS / 10))
            if (now := _newest(self._run)) != last:
                return now
        return None

    def _delete_older(self) -> None:
        """Deletes the claims with lower numbers."""
        for number in _numbers(self._run):
            if number < self._number:
                with contextlib.suppress(FileNotFoundError):
                    (self._run / _name(number)).unlink()

    def _renew(self) -> None:
        """Renews the claim, in a thread, until it is released or lost."""
        while not self._released.wait(RENEW_SECONDS):
            try:
                if self._problem() is not None:
                    self._on_lost()
                    return
                self._write()
            except Exception as error:  # the next renewal may succeed
                logger.debug("the claim of %s was not renewed: %s", self._run, error)

    def _problem(self) -> str | None:
        """Why the run no longer belongs to this training; None if it does."""
        if not self._number:
            return None
        newest = _newest(self._run)
        rival = newest.writer()
        if newest.number > self._number:
            return (
                f"another training, {rival or _name(newest.number)}, has taken over run "
                f"{str(self._run)!r}, because this one gave no sign of life for "
                f"{LEASE_SECONDS:.0f} s (suspended, or cut off from the disk)"
            )
        if newest.number == self._number and rival and not self._is_mine(newest):
            return (
                f"another training, {rival}, has begun in run {str(self._run)!r}, because the "
                f"directory of this one was moved or deleted"
            )
        if newest.number < self._number and not (self._run / _name(self._number)).exists():
            return (
                f"{self._run / _name(self._number)} is gone: run {str(self._run)!r} was moved, "
                f"deleted, emptied or unmounted; bring it back, and the same command resumes it"
            )
        return None

    def _is_mine(self, claim: _ClaimFile) -> bool:
        writer = claim.writer()
        return writer is not None and writer.token == self._writer.token

    def _text(self, ended: str | None = None) -> str:
        now = dataclasses.replace(self._writer, renewed=time.time(), ended=ended)
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


def _newest(run: RunPath) -> _ClaimFile:
    return _read(run, max(_numbers(run), default=0))


def _read(run: RunPath, number: int) -> _ClaimFile:
    try:
        return _ClaimFile(number, (run / _name(number)).read_text() if number else "")
    except (FileNotFoundError, UnicodeDecodeError):
        return _ClaimFile(number)


def _has_ended(claim: _ClaimFile) -> bool:
    writer = claim.writer()
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
        folder=_inode(run),
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
    """When a process started, in clock ticks since the system's start.

    Returns:
      "" for a process that has ended but is still listed (a zombie); None if it is unknown.
    """
    try:
        state, *fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return "" if state in "ZX" else fields[18]


def _inode(run: RunPath) -> int | None:
    return os.stat(run).st_ino if isinstance(run, Path) and run.exists() else None
