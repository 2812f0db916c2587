"""One trial: a small training in a folder of its own, a fault, and a comparison with its twin.

The twin is the same training on the same devices, undisturbed. A trial passes if every process of
it ends with a status and a message that a user can act on, and the training, resumed with the same
command, ends as its twin: the same arrays bit for bit, the same rows in metrics.csv, nothing left.
"""

import dataclasses
import functools
import json
import random
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from ends import STEPS, require_close_end, require_same_end
from expect import TrialFailed
from ports import free_address
from process import Disturbance, Process, require_done
from xla_flags import QUICK, xla_flags

HERE = Path(__file__).resolve().parent
CONFIG = HERE / "training" / "storm_config.py"
FIRST_STEP = "took the first step"  # what a training says then
WRITES = "open,write,sync,rename,mkdir"  # the calls of disturb.c that need room on a disk


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
            raise TrialFailed("the storm was interrupted")

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
      hit: whether the fault has hit; a fault sets it to False if it came, for example, too late.
    """

    def __init__(
        self,
        storm: Storm,
        folder: Path,
        rng: random.Random,
        *,
        number: int = 0,
        shape: Shape = ONE,
        options: Sequence[str] = (),
    ):
        """Makes the folder.

        Args:
          storm: what it shares with other trials.
          folder: is made.
          rng: decides all that is random in the trial.
          number: the number of the trial among those of its fault, from 0.
          shape: on what the training runs.
          options: more options of the command, which its twin has, too.
        """
        self.storm, self.folder, self.rng, self.number = storm, folder, rng, number
        self.shape, self.options = shape, tuple(options)
        self.run_dir = folder / "run"
        self.workdir = str(self.run_dir)
        self.variables: dict[str, str] = {}
        self.hit = True
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
            flags = xla_flags(devices=shape.devices)
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
            counting = Disturbance(path=disturbance.path, first=0)
            with Trial(
                self.storm, folder / "trial", random.Random(0), shape=shape, options=options
            ) as trial:
                processes = trial.start(disturbance=counting, victim=victim)
                require_done(processes)
                return processes[victim].calls()

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
            "XLA_FLAGS": QUICK,
            **self.variables,
            **variables,
        }
        process = Process(
            arguments,
            output=self.folder / f"{len(self._processes) + 1}.log",
            environment=own,
            disturbance=disturbance,
            library=self.storm.library if disturbance else None,
        )
        self._processes.append(process)
        self.storm.add(process)
        return process

    def finish(self, *options: str, shape: Shape | None = None) -> None:
        """Runs the training to its end; takes the same arguments as `start`."""
        require_done(self.start(*options, shape=shape))

    def finish_as_twin(self, *options: str, stopped: bool = False) -> None:
        """Runs the training to its end, and compares; see `finish` and `require_equal_to_twin`."""
        self.finish(*options)
        self.require_equal_to_twin(stopped=stopped)

    def wait_for_a_save(self, process: Process) -> None:
        """Waits until a random save begins, which is not the last, or the process has ended."""
        step = self.rng.choice(range(4, STEPS, 4))
        begun = self.run_dir / "checkpoints" / f"{step}.orbax-checkpoint-tmp"
        process.wait_until(lambda: begun.exists() or begun.with_suffix("").exists())

    def wait_for_row(self, process: Process, step: int) -> None:
        """Waits until metrics.csv has the loss of a step, or the process has ended.

        The row is written just before the step is evaluated and saved, if it is.
        """
        file = self.run_dir / "metrics.csv"
        process.wait_until(lambda: file.exists() and f"\n{step}," in file.read_text())

    # States

    def move_to(self, folder: Path) -> None:
        """From now on the run is in another folder."""
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

    def require_equal_to_twin(self, *, stopped: bool = False) -> None:
        """Compares the run with the same training, undisturbed.

        Args:
          stopped: whether the training was stopped after some step, which it logged. Then the mean
            of the next row begins there.

        Raises:
          TrialFailed: they differ, or files are left that do not belong to a run.
        """
        twin = self.storm.twin(self.shape, self.options)
        require_same_end(self.run_dir, twin, stopped=stopped)

    def require_close_to_twin(self) -> None:
        """Compares with the twin a run that went on on other devices, which round differently.

        Raises:
          TrialFailed: the values differ by more than rounding explains, or rows are missing.
        """
        require_close_end(self.run_dir, self.storm.twin(self.shape, self.options))
