"""Faults of a job of two processes: one is killed, stopped, late, or gone at the start."""

import dataclasses
import errno
import signal
import time
from collections.abc import Sequence

from expect import require
from process import STATUS_MISTAKE, STATUS_STOPPED, Disturbance, Process, require_done
from trial import EIGHT, FIRST_STEP, ONE, TWO, WRITES, Shape, Trial

from faults.fault import Fault

# Seconds: a process that is silent for half of it is gone, while it starts or compiles for three
# times as long; one that has not said anything yet is stuck after six times as long
# (jaxcls/distributed/watchdog.py).
_STUCK = ("--stuck-after-seconds", "10", "--join-timeout", "60")
_WITHIN = 90.0  # seconds in which the others end
_NOT_JOINED = "wait longer with --join-timeout"  # the advice where a job does not come together
_JAX_ABORTS = -signal.SIGABRT  # what a process of JAX does that has lost the others


def peer_killed(trial: Trial) -> None:
    """One process is killed; the other ends soon, and names it."""
    _lose(trial, signal.SIGKILL)


def peer_stopped(trial: Trial) -> None:
    """One process is stopped as a whole; the other ends soon, and names it."""
    _lose(trial, signal.SIGSTOP)


def peer_stopped_by_default(trial: Trial) -> None:
    """As `peer_stopped`, with the default times: the watchdog speaks before JAX aborts."""
    _lose(trial, signal.SIGSTOP, options=(), early=0.0)


def peer_killed_in_a_save(trial: Trial) -> None:
    """One process is killed while both save."""
    processes = trial.start(*_STUCK)
    lost = trial.rng.randrange(2)
    trial.wait_for_a_save(processes[0])
    time.sleep(trial.rng.uniform(0, 0.2))
    trial.hit = processes[lost].kill()
    _require_named(processes, lost)
    trial.finish_as_twin()


def both_killed(trial: Trial) -> None:
    """Both processes are killed, one a little after the other."""
    processes = trial.start()
    if trial.rng.random() < 0.7:
        processes[0].wait_for(FIRST_STEP)
    time.sleep(trial.rng.uniform(0, 2))
    trial.hit = False
    for process in processes:
        trial.hit |= process.kill()
        time.sleep(trial.rng.uniform(0, 0.3))
    trial.finish_as_twin()


def brackets_in_the_name(trial: Trial) -> None:
    """The name of the run's directory is a pattern of file names; one process is killed."""
    trial.move_to(trial.folder / "run[1]")
    peer_killed_in_a_save(trial)


def late_at_restore(trial: Trial) -> None:
    """A process joins the job, and is then stopped for a while before both restore."""
    trial.begin_at(12)
    processes = trial.start()
    late = trial.rng.choice(processes)
    time.sleep(trial.rng.uniform(0, 4))
    trial.hit = late.send(signal.SIGSTOP)
    time.sleep(trial.rng.uniform(1, 8))
    late.send(signal.SIGCONT)
    require([process.wait() for process in processes] == [0, 0], "a late process")
    trial.require_equal_to_twin()


def one_is_missing(trial: Trial) -> None:
    """Only one of the two processes is started: one message, and the run is as it was."""
    trial.begin_at(12)
    processes = trial.start("--join-timeout", "5")
    missing = trial.rng.randrange(2)
    trial.hit = processes[missing].kill()
    status = processes[1 - missing].wait(within=60)
    require(status == STATUS_MISTAKE, f"status {status}")
    require(processes[1 - missing].says("jaxcls: "), "no message")
    trial.finish_as_twin()


def save_fails_for_a_while(trial: Trial) -> None:
    """Some writes of a save fail in one process: both go on and make up for it, or both end."""
    _fail_to_save(trial, times=trial.rng.randint(1, 3))


def save_fails_for_good(trial: Trial) -> None:
    """One process can save nothing more: both notice it, and end soon with the reason."""
    _fail_to_save(trial, times=0)


def on_other_processes(trial: Trial) -> None:
    """A run of one shape is resumed with others: on CPU, at the same steps, without repeats."""
    trial.begin_at(8)
    for shape in trial.rng.sample((TWO, Shape(devices=2), Shape(devices=4), EIGHT, ONE), 2):
        processes = trial.start(shape=shape)
        processes[0].wait_for(FIRST_STEP)
        processes[0].send(signal.SIGTERM)
        for process in processes:
            status = process.wait()
            require(status in (0, STATUS_STOPPED), f"{process.output}: status {status}")
    trial.finish()
    trial.require_close_to_twin()


def _fail_to_save(trial: Trial, *, times: int) -> None:
    """Lets writes to checkpoints fail in one process, the first or the second in turn.

    Args:
      trial: of two processes.
      times: how many writes fail; 0 for all that follow.
    """
    victim = trial.number % 2
    where = Disturbance(path="/run/checkpoints", calls=WRITES, first=1, errno=errno.ENOSPC)
    count = trial.count(where, victim=victim)
    first = trial.rng.randint(1, count * 2 // 3)
    disturbance = dataclasses.replace(where, first=first, times=times)
    processes = trial.start(disturbance=disturbance, victim=victim)
    statuses = [process.wait(within=60) for process in processes]
    trial.hit = processes[victim].was_disturbed()
    detail = f"process {victim}, call {first} of {count}: statuses {statuses}"
    require(statuses in ([0, 0], [STATUS_MISTAKE, STATUS_MISTAKE]), detail)
    told = any(str(trial.run_dir) in process.message() for process in processes)
    require(told or not any(statuses), f"{detail}, and no message names the run")
    trial.finish_as_twin()


def _lose(
    trial: Trial,
    number: signal.Signals,
    *,
    options: Sequence[str] = _STUCK,
    early: float = 0.3,  # the share of the trials in which it is lost before the first step
) -> None:
    processes = trial.start(*options)
    lost = trial.rng.randrange(2)
    if trial.rng.random() >= early:
        processes[0].wait_for(FIRST_STEP)
        time.sleep(trial.rng.uniform(0, 1))
    else:
        time.sleep(trial.rng.uniform(3, 6))
    trial.hit = not any(process.ended() for process in processes)
    if trial.hit:
        processes[lost].send(number)
        _require_named(processes, lost)
    else:
        require_done(processes)
    trial.finish_as_twin()


def _require_named(processes: list[Process], lost: int) -> None:
    """The other process ends soon with a status other than 0, and names the one that is lost."""
    other = processes[1 - lost]
    try:
        status = other.wait(within=_WITHIN)
    finally:
        processes[lost].kill()
    if status == 0:  # it had nothing left to do with the other
        return
    if lost == 0 and status == _JAX_ABORTS and other.says("leader task"):
        return  # JAX ends a process at once whose coordinator is killed, and says so
    if status == STATUS_MISTAKE and other.says(_NOT_JOINED):
        return  # it was lost before the two knew of each other
    require(status in (1, STATUS_STOPPED), f"{other.output}: status {status}")
    require(other.says(f"process {lost}"), f"{other.output} does not name process {lost}")


FAULTS = {
    "peer-killed": Fault(inject=peer_killed, trials=20, shape=TWO),
    "peer-stopped": Fault(inject=peer_stopped, trials=20, shape=TWO),
    "peer-stopped-by-default": Fault(inject=peer_stopped_by_default, trials=5, shape=TWO),
    "peer-killed-in-a-save": Fault(inject=peer_killed_in_a_save, trials=20, shape=TWO),
    "brackets-in-the-name": Fault(inject=brackets_in_the_name, trials=5, shape=TWO),
    "both-killed": Fault(inject=both_killed, trials=10, shape=TWO),
    "late-at-restore": Fault(inject=late_at_restore, trials=10, shape=TWO),
    "one-is-missing": Fault(inject=one_is_missing, trials=10, shape=TWO),
    "save-fails-for-a-while": Fault(
        inject=save_fails_for_a_while, trials=20, shape=TWO, needs="compiler"
    ),
    "save-fails-for-good": Fault(
        inject=save_fails_for_good, trials=20, shape=TWO, needs="compiler"
    ),
    "on-other-processes": Fault(inject=on_other_processes, trials=10),
}
