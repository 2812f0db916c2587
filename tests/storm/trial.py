"""One trial: a small training in a folder of its own, a fault, and a comparison with its twin.

The twin is the same training on the same devices, undisturbed. A trial survives if every process of
it ends with a status and a message that a user can act on, and the training, resumed with the same
command, ends as its twin: the same arrays bit for bit, the same rows in metrics.csv, nothing left.
"""

import contextlib
import csv
import dataclasses
import functools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from ports import free_address

HERE = Path(__file__).resolve().parent
CONFIG = HERE / "training" / "storm_config.py"
STEPS = 24  # of the training, which saves after every fourth and keeps two
PATIENCE = 180.0  # seconds in which a process must end
MEASURED = ("seconds", "images_per_second", "data_wait_share")  # columns that differ by nature
WRITES = "open,write,sync,rename,mkdir"  # the calls of disturb.c that need room on a disk
type Row = Mapping[str, str]

STATUS_STOPPED, STATUS_MISTAKE = 75, 2
FIRST_STEP = "took the first step"  # what a training says then
LEFTOVER = re.compile(r"^\..*|.*(tmp|\.trial|\.damaged|\.replaced|\.pruned).*")


class LostError(Exception):
    """What did not survive."""


def require(survived: object, problem: str) -> None:
    """Raises LostError unless the condition holds."""
    if not survived:
        raise LostError(problem)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Disturbance:
    """Which system calls of a process are disturbed, and how; see disturb.c.

    Attributes:
      path: a part of the path that a call must concern.
      calls: the kinds of calls, of open, write, sync, rename, mkdir and delete.
      first: the number of the first disturbed call, counted from 1; 0 for none.
      errno: the error with which it fails; 0 kills the process instead.
      times: how many calls fail; 0 for all that follow.
      log: a file that gets a line for each call that is counted.
    """

    path: str
    calls: str = "open,write,sync,rename,mkdir,delete"
    first: int
    errno: int = 0
    times: int = 0
    log: str = ""

    def variables(self) -> dict[str, str]:
        """The environment that disturb.c reads."""
        variables = {
            "STORM_PATH": self.path,
            "STORM_CALLS": self.calls,
            "STORM_FROM": str(self.first),
            "STORM_ERRNO": str(self.errno),
            "STORM_TIMES": str(self.times),
            "STORM_KILL": "0" if self.errno else "1",
        }
        return variables | ({"STORM_LOG": self.log} if self.log else {})


class Process:
    """A process of the command `jaxcls`, whose output goes to a file."""

    def __init__(self, arguments: Sequence[str], *, output: Path, environment: Mapping[str, str]):
        self.output = output
        self._killed = False
        self._started = time.monotonic()
        with output.open("wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "jaxcls", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                start_new_session=True,  # so that its workers can be found and killed with it
            )
        self.pid = self._process.pid

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to the process, if it still runs."""
        if self._process.poll() is None:
            self._process.send_signal(number)

    def send_to_child(self, number: signal.Signals, chance: random.Random) -> bool:
        """Sends a signal to one of its children, if there is one; returns whether there was."""
        children = [] if self.ended() else self.children()
        if children:
            os.kill(chance.choice(children), number)
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
          LostError: the process does not end in time, or prints a traceback that it may not.
        """
        try:
            status = self._process.wait(within)
        except subprocess.TimeoutExpired:
            raise LostError(f"{self.output}: did not end within {within:.0f} s") from None
        finally:
            self.kill()
        require(tracebacks or "Traceback" not in self.text(), f"{self.output}: a traceback")
        return status

    def kill(self) -> None:
        """Kills the process and its workers, unless this was done before."""
        if self._killed:  # somebody else may have its number by now
            return
        self._killed = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """On what a training runs.

    Attributes:
      processes: the number of its processes.
      devices: the number of devices of each.
      workers: the number of processes that decode images, for each; 0 for threads.
    """

    processes: int = 1
    devices: int = 1
    workers: int = 0


ONE = Shape()
TWO = Shape(processes=2)
EIGHT = Shape(devices=8)
SPLIT = ("--parallel.state", "fsdp")  # each device has a part of the state


@dataclasses.dataclass(frozen=True, kw_only=True)
class End:
    """How a training has ended.

    Attributes:
      arrays: those of the last checkpoint, by name.
      rows: those of metrics.csv, without times.
    """

    arrays: Mapping[str, np.ndarray]
    rows: Sequence[Row]


class Storm:
    """What all trials share: a folder, the compile cache, twins, and the disturbing library."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._ended = False
        self._processes: list[Process] = []
        self._lock = threading.Lock()
        self._locks: dict[object, threading.Lock] = {}
        self._made: dict[object, Any] = {}

    @functools.cached_property
    def library(self) -> Path | None:
        """The compiled disturb.c; None without a C compiler or outside Linux."""
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None or sys.platform != "linux":
            return None
        library = self.folder / "disturb.so"
        source = str(HERE / "disturb.c")
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), source, "-ldl"])
        return library if library.is_file() else None

    def once[T](self, key: object, make: Callable[[], T]) -> T:
        """Makes something at the first call with a key, while other trials wait, and keeps it."""
        with self._lock:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            if key not in self._made:
                self._made[key] = make()
            return self._made[key]

    def add(self, process: Process) -> None:
        """Notes a process of a trial, so that `end` kills it, too."""
        self._processes.append(process)
        if self._ended:
            process.kill()
            raise LostError("the storm was interrupted")

    def end(self) -> None:
        """Kills all processes; trials that still run fail."""
        self._ended = True
        for process in list(self._processes):
            process.kill()

    def new_folder(self, name: str) -> Path:
        """A folder for something that several trials need."""
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder))

    def twin(self, shape: Shape, options: Sequence[str] = ()) -> Path:
        """The run of an undisturbed training, which keeps all its checkpoints.

        Args:
          shape: on what it runs.
          options: more options of the command.
        """

        def make() -> Path:
            folder = self.new_folder("twin") / "trial"
            with Trial(self, folder, random.Random(0), shape=shape, options=options) as trial:
                trial.finish("--checkpoint.keep-latest", "9")
                return trial.run_dir

        return self.once(("twin", shape, tuple(options)), make)


class Trial:
    """A training in a folder of its own. When the `with` ends, no process of it survives.

    Attributes:
      run_dir: the directory of its run.
      workdir: the same, as the command gets it.
      variables: environment variables of all its processes, beside the usual ones.
    """

    def __init__(
        self,
        storm: Storm,
        folder: Path,
        chance: random.Random,
        *,
        number: int = 0,
        shape: Shape = ONE,
        options: Sequence[str] = (),
    ):
        """Makes the folder.

        Args:
          storm: what it shares with other trials.
          folder: is made.
          chance: decides all that is random in the trial.
          number: the number of the trial among those of its fault, from 0.
          shape: on what the training runs.
          options: more options of the command, which its twin has, too.
        """
        self.storm, self.folder, self.chance, self.number = storm, folder, chance, number
        self.shape, self.options = shape, tuple(options)
        self.run_dir = folder / "run"
        self.workdir = str(self.run_dir)
        self.variables: dict[str, str] = {}
        self._processes: list[Process] = []
        folder.mkdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()

    # Processes

    def start(
        self,
        *options: str,
        shape: Shape | None = None,
        disturbance: Disturbance | None = None,
        victim: int = 0,
    ) -> list[Process]:
        """Starts the processes of the training.

        Args:
          options: more options of the command.
          shape: another shape than the trial's.
          disturbance: of one of the processes.
          victim: which of them is disturbed.
        """
        shape = shape or self.shape
        arguments = [*self.arguments(), "--data.num-workers", str(shape.workers), *options]
        address = free_address() if shape.processes > 1 else None
        started = []
        for process in range(shape.processes):
            place = ["--coordinator", address, "--num-processes", str(shape.processes)]
            mine = [*arguments, *place, "--process-id", str(process)] if address else arguments
            flags = f"--xla_force_host_platform_device_count={shape.devices}"
            disturbed = disturbance if process == victim else None
            started.append(self.command(*mine, disturbance=disturbed, XLA_FLAGS=flags))
        return started

    def count(self, disturbance: Disturbance, *, victim: int = 0) -> int:
        """How many calls of the same training, undisturbed, a disturbance would concern.

        Args:
          disturbance: says which calls.
          victim: the process whose calls are counted.
        """
        shape, options = self.shape, self.options

        def make() -> list[str]:
            folder = self.storm.new_folder("calls")
            log = str(folder / "calls.txt")
            counting = Disturbance(path=disturbance.path, first=0, log=log)
            with Trial(
                self.storm, folder / "trial", random.Random(0), shape=shape, options=options
            ) as trial:
                trial.finish(disturbance=counting, victim=victim)
            return [line.split()[1] for line in Path(log).read_text().splitlines()]

        calls = self.storm.once(("calls", disturbance.path, shape, options, victim), make)
        return sum(call in disturbance.calls.split(",") for call in calls)

    def start_one(self, *options: str, disturbance: Disturbance | None = None) -> Process:
        """Starts the only process of the training; see `start`."""
        (process,) = self.start(*options, disturbance=disturbance)
        return process

    def arguments(self) -> list[str]:
        """The arguments of the command that trains."""
        return ["train", str(CONFIG), "--workdir", self.workdir, *self.options]

    def command(
        self, *arguments: str, disturbance: Disturbance | None = None, **variables: str
    ) -> Process:
        """Starts any command of jaxcls, with more environment variables."""
        own = {
            "PYTHONPATH": str(CONFIG.parent),
            "XDG_CACHE_HOME": str(self.storm.folder / "cache"),
            "JAX_PLATFORMS": "cpu",
            **self.variables,
            **variables,
        }
        if disturbance is not None:
            require(self.storm.library, "this fault needs a C compiler and Linux")
            own |= {"LD_PRELOAD": str(self.storm.library), **disturbance.variables()}
        output = self.folder / f"{len(self._processes) + 1}.log"
        process = Process(arguments, output=output, environment=own)
        self._processes.append(process)
        self.storm.add(process)
        return process

    def finish(
        self,
        *options: str,
        shape: Shape | None = None,
        disturbance: Disturbance | None = None,
        victim: int = 0,
    ) -> str:
        """Runs the training to its end; returns what its first process says. Takes as `start`."""
        processes = self.start(*options, shape=shape, disturbance=disturbance, victim=victim)
        statuses = [process.wait() for process in processes]
        require(not any(statuses), f"{processes[0].output}: ended with {statuses}, not 0")
        return processes[0].text()

    def finish_as_twin(self, *options: str, stopped: bool = False) -> str:
        """Runs the training to its end, and compares; see `finish` and `require_twin`."""
        text = self.finish(*options)
        self.require_twin(stopped=stopped)
        return text

    # States

    def move_to(self, folder: Path) -> None:
        """From now on the run is in another folder, which exists already."""
        self.run_dir, self.workdir = folder, str(folder)

    def begin_at(self, step: int) -> None:
        """Makes the run of a training that was killed after a step, out of the twin's."""
        shutil.copytree(self.storm.twin(self.shape, self.options), self.run_dir)
        checkpoints = self.run_dir / "checkpoints"
        for folder in checkpoints.iterdir():
            if folder.is_dir() and int(folder.name) > step:
                shutil.rmtree(folder)
        (checkpoints / "verified.json").write_text(json.dumps({"steps": self.saved_steps()}))
        (self.run_dir / "state.json").unlink()

    def saved_steps(self) -> list[int]:
        """The steps of the checkpoints, ascending."""
        names = (path.name for path in (self.run_dir / "checkpoints").iterdir())
        return sorted(int(name) for name in names if name.isdigit())

    def require_twin(self, *, stopped: bool = False) -> None:
        """Compares the run with the same training, undisturbed.

        Args:
          stopped: whether the training was stopped after some step, which it logged. Then the mean
            of the next row begins there.

        Raises:
          LostError: they differ, or files are left that do not belong to a run.
        """
        twin = self.storm.twin(self.shape, self.options)
        require_same_end(self.run_dir, twin, stopped=stopped)

    def require_like_twin(self) -> None:
        """Compares with the twin a run that went on on other devices, which round differently.

        Raises:
          LostError: the values differ by more than rounding explains, or rows are missing.
        """
        twin = end_of(self.storm.twin(self.shape, self.options))
        mine = end_of(self.run_dir)
        for name, array in twin.arrays.items():
            if not name.startswith("rng"):
                close = np.allclose(array, mine.arrays[name], rtol=1e-3, atol=1e-4)
                require(close, f"array {name} is far from the twin's")
        missing = set(map(_key, twin.rows)) - set(map(_key, mine.rows))
        require(not missing, f"metrics.csv: rows are missing: {sorted(missing)}")
        require_tidy(self.run_dir)


def require_same_end(run: Path, twin: Path, *, stopped: bool = False) -> None:
    """Raises LostError unless a run and its twin end alike; see `Trial.require_twin`."""
    its, mine = end_of(twin), end_of(run)
    require(mine.arrays.keys() == its.arrays.keys(), "other arrays than the twin's")
    for name, array in its.arrays.items():
        same = array.tobytes() == mine.arrays[name].tobytes()
        require(same, f"array {name} differs from the twin's")
    _require_rows(mine.rows, its.rows, stopped=stopped)
    require_tidy(run)


def require_tidy(run: Path) -> None:
    """Raises LostError if temporary files are left in a run."""
    left = [
        path
        for folder in (run, run / "checkpoints")
        for path in folder.iterdir()
        if LEFTOVER.fullmatch(path.name)
    ]
    require(not left, f"left behind: {left}")


def _require_rows(mine: Sequence[Row], twin: Sequence[Row], *, stopped: bool) -> None:
    theirs = {_key(row): row for row in twin}
    missing = theirs.keys() - map(_key, mine)
    require(not missing, f"metrics.csv: rows are missing: {sorted(missing)}")
    cut = False  # whether the means of the row begin at a stop
    for row in mine:
        its = theirs.get(_key(row))
        require(its or stopped, f"metrics.csv: a row too many: {row}")
        require(its is None or cut or row == its, f"metrics.csv: {row} differs from {its}")
        cut = its is None


def _key(row: Row) -> tuple[int, bool]:
    """The step of a row, and whether it is an evaluation."""
    return int(row["step"]), bool(row["eval_loss"])


def end_of(run: Path) -> End:
    """Reads how a training has ended.

    Raises:
      LostError: it has no checkpoint after its last step.
    """
    from orbax.checkpoint import v1 as ocp

    folder = run / "checkpoints" / str(STEPS)
    require(folder.is_dir(), f"{folder} is missing")
    record = json.loads((folder / "_CHECKPOINT_METADATA").read_bytes())["custom_metadata"]["record"]
    names = [name for name, array in record["arrays"].items() if 0 not in array["shape"]]
    arrays = ocp.load(str(folder), dict.fromkeys(names, np.ndarray))
    with (run / "metrics.csv").open(newline="") as file:
        rows = [
            {name: value for name, value in row.items() if name not in MEASURED}
            for row in csv.DictReader(file)
        ]
    steps = [_key(row) for row in rows]
    require(steps == sorted(set(steps)), f"metrics.csv repeats steps: {steps}")
    return End(arrays=arrays, rows=rows)
