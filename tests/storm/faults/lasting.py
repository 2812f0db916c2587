"""What shows only after a long time, or between two starts: leaks, damaged caches, other clocks."""

import dataclasses
import os
import resource
import shutil
import signal
import time
from pathlib import Path

from damage import flipped
from ends import require_tidy
from expect import require
from process import STATUS_STOPPED, Disturbance, Process, require_done
from trial import FIRST_STEP, ONE, Shape, Trial

from faults.fault import Fault

_LONG = ("--num-steps", "10000", "--eval-every-steps", "500", "--log-every-steps", "100")
_MOST_GROWTH = 1.10  # of memory, threads and open files after a fifth of the steps


def ten_thousand_steps(trial: Trial) -> None:
    """Memory, threads and open files hardly grow over 10,000 steps and 20 evaluations."""
    process = trial.start_one(*_LONG, "--checkpoint.every-steps", "500")
    require(process.wait_for("step 2000/10000"), "it ended too soon")
    before = _resources(process)
    require(process.wait_for("step 9500/10000"), "it ended too soon")
    after = _resources(process)
    require(process.wait() == 0, "it failed")
    for name, least in before.items():
        grown = after[name] / least
        require(grown <= _MOST_GROWTH, f"{name}: {least} became {after[name]}")
    require_tidy(trial.run_dir)


def compile_cache_damaged(trial: Trial) -> None:
    """Programs in the compile cache are damaged or exchanged: compiled again, the same result."""
    trial.storm.twin(ONE)  # has filled the cache
    cache = trial.folder / "cache"
    shutil.copytree(trial.storm.folder / "cache", cache)
    programs = sorted(path for path in (cache / "jaxcls" / "compiled").iterdir() if path.is_file())
    require(programs, "no program was kept")
    kind = trial.rng.choice(("flip", "cut", "exchange"))
    if kind == "exchange":
        order = trial.rng.sample(programs, len(programs))
        contents = [path.read_bytes() for path in order]
        for path, content in zip(programs, contents, strict=True):
            path.write_bytes(content)
    for path in programs if kind != "exchange" else ():
        data = flipped(path.read_bytes(), trial.rng)
        path.write_bytes(data if kind == "flip" else data[: len(data) // 2])
    trial.variables["XDG_CACHE_HOME"] = str(cache)
    trial.finish_as_twin()


def other_state_layout(trial: Trial) -> None:
    """A run is resumed with its state split in another way, and other workers, and back."""
    trial.begin_at(8)
    layouts = ("replicated", "zero1", "fsdp")
    for layout in trial.rng.sample(layouts, 2):
        shape = Shape(devices=trial.rng.choice((1, 2, 4, 8)), workers=trial.rng.choice((0, 1)))
        (process,) = trial.start("--parallel.state", layout, shape=shape)
        process.wait_for(FIRST_STEP)
        process.send(signal.SIGTERM)
        require(process.wait() in (0, STATUS_STOPPED), f"{layout}: {process.output}")
    trial.finish(shape=ONE)
    trial.require_close_to_twin()


def clock_set_back(trial: Trial) -> None:
    """The clock of the process jumps backwards in mid-run; files keep the right times."""
    where = Disturbance(path="/run/", first=1)
    first = trial.rng.randint(1, trial.count(where))
    back = -trial.rng.choice((10, 3600, 365 * 86_400))
    process = trial.start_one(disturbance=dataclasses.replace(where, first=first, clock=back))
    require_done([process])
    trial.hit = process.was_disturbed()
    trial.require_equal_to_twin()


def files_from_the_future(trial: Trial) -> None:
    """Files of the run are from the future, as after a clock was set back between two starts."""
    trial.begin_at(12)
    later = time.time() + trial.rng.choice((3600, 10 * 365 * 86_400))
    for path in [trial.run_dir, *trial.run_dir.rglob("*")]:
        os.utime(path, (later, later))
    trial.finish_as_twin()


def memory_short(trial: Trial) -> None:
    """In mid-run the process can reserve hardly more memory: it ends in some way, nothing is lost.

    Compiled code ends a process by a signal if an allocation fails, and even a message needs
    memory, so the status and the text are not checked.
    """
    process = trial.start_one("--stuck-after-seconds", "20")
    process.wait_for(FIRST_STEP)
    limit = _resources(process)["reserved"] * 1024 + trial.rng.randrange(64 << 20)
    resource.prlimit(process.pid, resource.RLIMIT_AS, (limit, limit))
    trial.hit = process.wait(tracebacks=True) != 0
    trial.finish_as_twin(stopped=True)


def _resources(process: Process) -> dict[str, int]:
    folder = Path(f"/proc/{process.pid}")
    status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    return {
        "reserved": int(status["VmSize"].split()[0]),  # kilobytes
        "memory": int(status["VmRSS"].split()[0]),
        "threads": int(status["Threads"]),
        "files": len(list((folder / "fd").iterdir())),
    }


FAULTS = {
    "ten-thousand-steps": Fault(inject=ten_thousand_steps, trials=2),
    "compile-cache-damaged": Fault(inject=compile_cache_damaged, trials=10),
    "other-state-layout": Fault(inject=other_state_layout, trials=5),
    "memory-short": Fault(inject=memory_short, trials=5),
    "clock-set-back": Fault(inject=clock_set_back, trials=6, needs="compiler"),
    "files-from-the-future": Fault(inject=files_from_the_future, trials=2),
}
