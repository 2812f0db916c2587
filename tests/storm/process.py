"""A process of jaxcls in a trial, and what disturbs its system calls."""

import contextlib
import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from expect import TrialFailed, require

ROOT = Path(__file__).resolve().parents[2]  # of the repository
PATIENCE = 180.0  # seconds in which a process must end
STATUS_STOPPED, STATUS_MISTAKE = 75, 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Disturbance:
    """Which system calls of a process are disturbed, and how; see disturb.c.

    If neither `errno`, `delay` nor `clock` is set, the first disturbed call kills the process.

    Attributes:
      path: a part of the path that a call must concern.
      calls: the kinds of calls, of open, write, sync, rename, mkdir and delete.
      first: the number of the first disturbed call, counted from 1; 0 for none.
      errno: the error with which it fails.
      delay: the milliseconds by which it is delayed.
      clock: the seconds by which the clock of the process is moved then; negative: backwards.
      times: how many calls fail or are delayed; 0 for all that follow.
    """

    path: str
    calls: str = "open,write,sync,rename,mkdir,delete"
    first: int
    errno: int = 0
    delay: int = 0
    clock: int = 0
    times: int = 0

    def variables(self) -> dict[str, str]:
        """The environment that disturb.c reads."""
        return {
            "STORM_PATH": self.path,
            "STORM_CALLS": self.calls,
            "STORM_FROM": str(self.first),
            "STORM_ERRNO": str(self.errno),
            "STORM_TIMES": str(self.times),
            "STORM_DELAY": str(self.delay),
            "STORM_CLOCK": str(self.clock),
            "STORM_KILL": "0" if self.errno or self.delay or self.clock else "1",
        }


def require_done(processes: Sequence["Process"]) -> None:
    """Waits until the processes of a command have ended, and requires status 0 of each."""
    statuses = [process.wait() for process in processes]
    require(not any(statuses), f"{processes[0].output}: ended with {statuses}, not 0")


class Process:
    """A process of the command `jaxcls`, whose output goes to a file.

    Attributes:
      output: the file.
      pid: its number.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        output: Path,
        environment: Mapping[str, str],
        disturbance: Disturbance | None = None,
        library: Path | None = None,
    ):
        """Starts it.

        Args:
          arguments: those of `jaxcls`.
          output: where its output goes.
          environment: variables beside those of this process.
          disturbance: of its system calls.
          library: the compiled disturb.c, for a disturbance.
        """
        self.output = output
        self._calls = output.with_suffix(".calls")  # gets a line for each call that is counted
        self._disturbance = disturbance
        disturbed = {}
        if disturbance is not None:
            require(library, "this fault needs a C compiler and Linux")
            disturbed = {"LD_PRELOAD": str(library), "STORM_LOG": str(self._calls)}
            disturbed |= disturbance.variables()
        self._killed = False
        self._started = time.monotonic()
        with output.open("wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "jaxcls", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env={**os.environ, **environment, **disturbed},
                start_new_session=True,  # so that its workers can be found and killed with it
            )
        self.pid = self._process.pid

    def send(self, number: signal.Signals) -> bool:
        """Sends a signal to the process; returns whether it was still running."""
        running = not self.ended()
        if running:
            self._process.send_signal(number)
        return running

    def send_to_child(self, number: signal.Signals, rng: random.Random) -> bool:
        """Sends a signal to one of its children; returns whether it had any."""
        children = [] if self.ended() else self.children()
        if children:
            os.kill(rng.choice(children), number)
        return bool(children)

    def ended(self) -> bool:
        """Whether the process has ended."""
        return self._process.poll() is not None

    def wait_until(self, holds: Callable[[], bool]) -> bool:
        """Waits until the condition holds or the process has ended; returns whether it holds."""
        while not (held := holds()) and not self.ended():
            require(self._age() < PATIENCE, f"{self.output}: waited in vain for {PATIENCE:.0f} s")
            time.sleep(0.002)
        return held

    def wait_for(self, text: str) -> bool:
        """Waits until the output contains a text or the process has ended, as `wait_until`."""
        return self.wait_until(lambda: self.says(text))

    def says(self, text: str) -> bool:
        """Whether the output contains a text."""
        return text in self.text()

    def message(self) -> str:
        """What it has said since it began a line with `jaxcls: `; empty without such a line."""
        _, found, message = f"\n{self.text()}".rpartition("\njaxcls: ")
        return message if found else ""

    def require_refusal(self, *texts: str, within: float = PATIENCE) -> None:
        """Waits until the process ends with status 2 and a message that contains the texts."""
        status = self.wait(within=within)
        require(status == STATUS_MISTAKE, f"{self.output}: status {status}")
        require(self.message(), f"{self.output}: no message")
        for text in texts:
            require(text in self.message(), f"{self.output}: the message lacks {text!r}")

    def text(self) -> str:
        """The output so far."""
        return self.output.read_text(errors="replace")

    def wait(self, *, within: float = PATIENCE, tracebacks: bool = False) -> int:
        """Waits for the end, and returns the status; negative if a signal has killed the process.

        Args:
          within: the seconds in which it must end.
          tracebacks: whether it may print some.

        Raises:
          TrialFailed: the process does not end in time, or prints a traceback that it may not.
        """
        try:
            status = self._process.wait(within)
        except subprocess.TimeoutExpired:
            raise TrialFailed(f"{self.output}: did not end within {within:.0f} s") from None
        finally:
            self.kill()
        require(tracebacks or "Traceback" not in self.text(), f"{self.output}: a traceback")
        return status

    def kill(self) -> bool:
        """Kills the process and its workers; returns whether it was still running."""
        running = not self.ended()
        if not self._killed:  # else somebody else may have its number by now
            self._killed = True
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()
        return running

    def calls(self) -> list[str]:
        """The kinds of its calls that were counted, in their order; see `Disturbance`."""
        if not self._calls.exists():
            return []
        return [line.split()[1] for line in self._calls.read_text().splitlines()]

    def was_disturbed(self) -> bool:
        """Whether it came to the first call that its disturbance concerns."""
        return self._disturbance is not None and len(self.calls()) >= self._disturbance.first

    def children(self) -> list[int]:
        """Its children, without the helpers of Python's multiprocessing."""
        numbers = []
        # Each thread has children of its own.
        for file in Path("/proc").glob(f"{self.pid}/task/*/children"):
            with contextlib.suppress(OSError):  # the thread has ended
                numbers += file.read_text().split()
        found = []
        for number in numbers:
            with contextlib.suppress(OSError):  # it has ended
                if b"resource_tracker" not in Path(f"/proc/{number}/cmdline").read_bytes():
                    found.append(int(number))
        return found

    def _age(self) -> float:
        return time.monotonic() - self._started
