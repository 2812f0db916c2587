"""One trial: a small training in a folder of its own, a fault, and a comparison with its twin.

The twin is the same training on the same devices, undisturbed. A trial survives if every process of
it ends with a status and a message that a user can act on, and the training, resumed with the same
command, ends as its twin: the same arrays bit for bit, the same rows in metrics.csv, nothing left.
"""

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
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from ports import free_address

HERE = Path(__file__).resolve().parent
CONFIG = HERE / "training" / "storm_config.py"
STEPS = 24  # of the training, which saves after every fourth and keeps two
PATIENCE = 180.0  # seconds in which a process must end
MEASURED = ("seconds", "images_per_second", "data_wait_share")  # columns that differ by nature
type Row = Mapping[str, str]

STATUS_STOPPED, STATUS_MISTAKE = 75, 2
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
      first: the number of the first disturbed call, counted from 1.
      errno: the error with which it fails; 0 kills the process instead.
      times: how many calls fail; 0 for all that follow.
    """

    path: str
    calls: str = "open,write,sync,rename,mkdir,delete"
    first: int
    errno: int = 0
    times: int = 0

    def variables(self) -> dict[str, str]:
        """The environment that disturb.c reads."""
        return {
            "STORM_PATH": self.path,
            "STORM_CALLS": self.calls,
            "STORM_FROM": str(self.first),
            "STORM_ERRNO": str(self.errno),
            "STORM_TIMES": str(self.times),
            "STORM_KILL": "0" if self.errno else "1",
        }


class Process:
    """A process of the command `jaxcls`, whose output goes to a file."""

    def __init__(self, arguments: Sequence[str], *, output: Path, environment: Mapping[str, str]):
        self.output = output
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

    def ended(self) -> bool:
        """Whether the process has ended."""
        return self._process.poll() is not None

    def wait_until(self, holds: Callable[[], bool]) -> bool:
        """Waits until the condition holds or the process has ended; returns whether it holds."""
        while not (held := holds()) and not self.ended():
            require(self._age() < PATIENCE, f"{self.output}: waited in vain for {PATIENCE:.0f} s")
            time.sleep(0.002)
        return held

    def says(self, text: str) -> bool:
        """Whether the output contains a text."""
        return text in self.text()

    def text(self) -> str:
        """The output so far."""
        return self.output.read_text(errors="replace")

    def wait(self, *, within: float = PATIENCE) -> int:
        """Waits for the end, and returns the status; negative if a signal has killed the process.

        Raises:
          LostError: the process does not end in `within` seconds, or prints a traceback.
        """
        try:
            status = self._process.wait(within)
        except subprocess.TimeoutExpired:
            raise LostError(f"{self.output}: did not end within {within:.0f} s") from None
        finally:
            self.kill()
        require("Traceback" not in self.text(), f"{self.output}: a traceback")
        return status

    def kill(self) -> None:
        """Kills the process and its workers."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        self._process.wait()

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
        self._locks: dict[object, threading.Lock] = {}
        self._lock = threading.Lock()
        self._twins: dict[Shape, Path] = {}

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

    def twin(self, shape: Shape) -> Path:
        """The run of the undisturbed training of a shape, which keeps all its checkpoints."""
        with self._lock:
            lock = self._locks.setdefault(shape, threading.Lock())
        with lock:
            if shape not in self._twins:
                name = f"twin-{shape.processes}-{shape.devices}-{shape.workers}"
                trial = Trial(self, self.folder / name, random.Random(0), shape)
                trial.finish("--checkpoint.keep-latest", "9")
                self._twins[shape] = trial.run
            return self._twins[shape]

    def count(self, disturbance: Disturbance) -> int:
        """How many calls of an undisturbed training a disturbance would concern."""
        key = (disturbance.path, disturbance.calls)
        with self._lock:
            lock = self._locks.setdefault(key, threading.Lock())
        counts = self.folder / f"calls-{abs(hash(key))}"
        with lock:
            if not counts.exists():
                trial = Trial(self, counts.with_suffix(".run"), random.Random(0), ONE)
                variables = {**disturbance.variables(), "STORM_FROM": "0"}
                trial.finish(variables={**variables, "STORM_LOG": str(counts)})
        return len(counts.read_text().splitlines())


class Trial:
    """A training in a folder of its own."""

    def __init__(self, storm: Storm, folder: Path, chance: random.Random, shape: Shape = ONE):
        """`chance` decides all that is random in the trial."""
        self.storm, self.folder, self.chance, self.shape = storm, folder, chance, shape
        self.run = folder / "run"
        self._number = 0
        folder.mkdir()

    # Processes

    def start(
        self,
        *options: str,
        shape: Shape | None = None,
        disturbance: Disturbance | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> list[Process]:
        """Starts the processes of the training.

        Args:
          options: more options of the command.
          shape: another shape than the trial's.
          disturbance: of the first process.
          variables: more environment variables.
        """
        shape = shape or self.shape
        arguments = [*self.arguments(), "--data.num-workers", str(shape.workers), *options]
        address = free_address() if shape.processes > 1 else None
        started = []
        for process in range(shape.processes):
            place = ["--coordinator", address, "--num-processes", str(shape.processes)]
            mine = [*arguments, *place, "--process-id", str(process)] if address else arguments
            disturbed = {} if process or disturbance is None else disturbance.variables()
            flags = f"--xla_force_host_platform_device_count={shape.devices}"
            environment = {"XLA_FLAGS": flags, **disturbed, **(variables or {})}
            started.append(self.command(*mine, variables=environment))
        return started

    def start_one(self, *options: str, disturbance: Disturbance | None = None) -> Process:
        """Starts the only process of the training; see `start`."""
        (process,) = self.start(*options, disturbance=disturbance)
        return process

    def arguments(self) -> list[str]:
        """The arguments of the command that trains."""
        return ["train", str(CONFIG), "--workdir", str(self.run)]

    def command(self, *arguments: str, variables: Mapping[str, str] | None = None) -> Process:
        """Starts any command of jaxcls."""
        self._number += 1
        own = {
            "PYTHONPATH": str(CONFIG.parent),
            "XDG_CACHE_HOME": str(self.storm.folder / "cache"),
            "JAX_PLATFORMS": "cpu",
            **(variables or {}),
        }
        if "STORM_PATH" in own:
            require(self.storm.library, "this fault needs a C compiler and Linux")
            own["LD_PRELOAD"] = str(self.storm.library)
        return Process(arguments, output=self.folder / f"{self._number}.log", environment=own)

    def finish(
        self,
        *options: str,
        shape: Shape | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> str:
        """Runs the training to its end; returns what its first process says."""
        processes = self.start(*options, shape=shape, variables=variables)
        statuses = [process.wait() for process in processes]
        require(not any(statuses), f"{processes[0].output}: ended with {statuses}, not 0")
        return processes[0].text()

    # States

    def begin_at(self, step: int) -> None:
        """Makes the run of a training that was killed after a step, out of the twin's."""
        shutil.copytree(self.storm.twin(self.shape), self.run)
        checkpoints = self.run / "checkpoints"
        for folder in checkpoints.iterdir():
            if folder.is_dir() and int(folder.name) > step:
                shutil.rmtree(folder)
        (checkpoints / "verified.json").write_text(json.dumps({"steps": self.saved_steps()}))
        (self.run / "state.json").unlink()

    def saved_steps(self) -> list[int]:
        """The steps of the checkpoints, ascending."""
        names = (path.name for path in (self.run / "checkpoints").iterdir())
        return sorted(int(name) for name in names if name.isdigit())

    def require_twin(self, shape: Shape | None = None, *, stopped: bool = False) -> None:
        """Compares the run with the undisturbed training of its shape.

        Args:
          shape: another shape than the trial's.
          stopped: whether the training was stopped after some step, which it logged. Then the mean
            of the next row begins there.

        Raises:
          LostError: they differ, or files are left that do not belong to a run.
        """
        twin, mine = end_of(self.storm.twin(shape or self.shape)), end_of(self.run)
        require(mine.arrays.keys() == twin.arrays.keys(), "other arrays than the twin's")
        for name, array in twin.arrays.items():
            same = array.tobytes() == mine.arrays[name].tobytes()
            require(same, f"array {name} differs from the twin's")
        _require_rows(mine.rows, twin.rows, stopped=stopped)
        self.require_tidy()

    def require_like_twin(self) -> None:
        """Compares with the twin a run that went on on other devices, which round differently.

        Raises:
          LostError: the values differ by more than rounding explains, or rows are missing.
        """
        twin, mine = end_of(self.storm.twin(self.shape)), end_of(self.run)
        for name, array in twin.arrays.items():
            if not name.startswith("rng"):
                close = np.allclose(array, mine.arrays[name], rtol=1e-3, atol=1e-4)
                require(close, f"array {name} is far from the twin's")
        missing = set(map(_key, twin.rows)) - set(map(_key, mine.rows))
        require(not missing, f"metrics.csv: rows are missing: {sorted(missing)}")
        self.require_tidy()

    def require_tidy(self) -> None:
        """Raises LostError if temporary files are left."""
        folders = [self.run, self.run / "checkpoints"]
        left = [path for folder in folders for path in folder.iterdir() if _is_left(path)]
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


def _is_left(path: Path) -> bool:
    return LEFTOVER.fullmatch(path.name) is not None


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
