"""kill -9 at any moment: while a process saves, prunes, starts, compiles or keeps a program."""

import dataclasses
import random
import signal
import time

from expect import require
from process import Disturbance, require_done
from trial import EIGHT, FIRST_STEP, SPLIT, Storm, Trial

from faults.fault import Fault

_KILLED = -signal.SIGKILL


def kill_at_a_call(trial: Trial) -> None:
    """Kills the process at one of the system calls that change its checkpoints."""
    where = Disturbance(path="/run/checkpoints", first=1)
    _kill_at(trial, where, calls=trial.count(where))


def kill_at_a_deletion(trial: Trial) -> None:
    """Kills the process while it prunes checkpoints."""
    where = Disturbance(path="/run/checkpoints", calls="delete,rename", first=1)
    _kill_at(trial, where, calls=trial.count(where))


def kill_at_a_run_file(trial: Trial) -> None:
    """Kills the process at a call that changes any file of the run."""
    where = Disturbance(path="/run/", first=1)
    _kill_at(trial, where, calls=trial.count(where))


def kill_in_a_save(trial: Trial) -> None:
    """Kills the process a little after a save has begun; needs no compiler."""
    process = trial.start_one()
    trial.wait_for_a_save(process)
    _pause(trial, 0.2)
    trial.hit = process.kill()
    trial.finish_as_twin()


def kill_at_any_time(trial: Trial) -> None:
    """Kills the process at a random time, twice."""
    trial.hit = False
    for _ in range(2):
        process = trial.start_one()
        if trial.rng.random() < 0.5:
            process.wait_for(FIRST_STEP)
        _pause(trial, 6)
        trial.hit |= process.kill()
    trial.finish_as_twin()


def kill_while_a_program_is_kept(trial: Trial) -> None:
    """Kills the process while it writes to the compile cache, which the next one then reads."""
    trial.variables["XDG_CACHE_HOME"] = str(trial.folder / "cache")
    calls = trial.storm.once("calls to the cache", lambda: _count_calls_to_a_cache(trial.storm))
    _kill_at(trial, Disturbance(path="/cache/", first=1), calls=calls)


def _kill_at(trial: Trial, where: Disturbance, *, calls: int) -> None:
    """Kills the process at a random one of the calls that a disturbance concerns."""
    first = trial.rng.randint(1, calls)
    process = trial.start_one(disturbance=dataclasses.replace(where, first=first))
    status = process.wait()
    require(status in (0, _KILLED), f"call {first}: status {status}")
    trial.hit = status == _KILLED
    trial.finish_as_twin()


def _count_calls_to_a_cache(storm: Storm) -> int:
    """How many calls of a training change its cache, which is empty before."""
    with Trial(storm, storm.new_folder("calls") / "trial", random.Random(0)) as trial:
        trial.variables["XDG_CACHE_HOME"] = str(trial.folder / "cache")
        process = trial.start_one(disturbance=Disturbance(path="/cache/", first=0))
        require_done([process])
        return len(process.calls())


def _pause(trial: Trial, most: float) -> None:
    time.sleep(trial.rng.uniform(0, most))


FAULTS = {
    "kill-at-a-call": Fault(inject=kill_at_a_call, trials=50, needs="compiler"),
    "kill-at-a-deletion": Fault(inject=kill_at_a_deletion, trials=10, needs="compiler"),
    "kill-at-a-run-file": Fault(inject=kill_at_a_run_file, trials=10, needs="compiler"),
    "kill-in-a-save": Fault(inject=kill_in_a_save, trials=20),
    "kill-at-any-time": Fault(inject=kill_at_any_time, trials=10),
    "kill-at-any-time-on-eight-devices": Fault(
        inject=kill_at_any_time, trials=10, shape=EIGHT, options=SPLIT
    ),
    "kill-at-a-call-on-eight-devices": Fault(
        inject=kill_at_a_call, trials=10, shape=EIGHT, options=SPLIT, needs="compiler"
    ),
    "kill-while-a-program-is-kept": Fault(
        inject=kill_while_a_program_is_kept, trials=10, needs="compiler"
    ),
}
