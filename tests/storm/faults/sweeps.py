"""Sweeps that are interrupted and started again."""

import signal
import time
from pathlib import Path

from ends import require_same_end
from expect import require
from process import STATUS_STOPPED, Process
from trial import CONFIG, ONE, Trial

from faults.fault import Fault

_CONFIG = CONFIG.with_name("storm_sweep.py")
_SEEDS = (0, 1)  # of its variations


def sweep_stopped(trial: Trial) -> None:
    """A signal to the sweep while it checks or trains a variation."""
    process = _start(trial)
    _wait_for_a_variation(trial, process)
    trial.hit = process.send(trial.rng.choice((signal.SIGTERM, signal.SIGINT, signal.SIGHUP)))
    status = process.wait()
    require(status in (0, STATUS_STOPPED), f"{process.output}: status {status}")
    _finish(trial)


def sweep_killed(trial: Trial) -> None:
    """kill -9 to the sweep and its training."""
    process = _start(trial)
    _wait_for_a_variation(trial, process)
    trial.hit = process.kill()
    _finish(trial)


def variation_killed(trial: Trial) -> None:
    """kill -9 to the training of one variation: the sweep names it, and trains the others."""
    process = _start(trial)
    _wait_for_a_variation(trial, process)
    process.wait_until(lambda: bool(process.children()))
    trial.hit = process.send_to_child(signal.SIGKILL, trial.rng)
    status = process.wait()
    require(status in (0, 1), f"{process.output}: status {status}")
    require(status == 0 or process.says("killed by SIGKILL"), "it does not say what was killed")
    _finish(trial)


def _start(trial: Trial) -> Process:
    return trial.command("sweep", str(_CONFIG), "--workdir", str(_folder(trial)))


def _folder(trial: Trial) -> Path:
    return trial.folder / "sweep"


def _wait_for_a_variation(trial: Trial, process: Process) -> None:
    number = trial.number % (len(_SEEDS) + 1)  # 0: none has begun
    if number:
        process.wait_for(f"[{number}/{len(_SEEDS)}]")
    time.sleep(trial.rng.uniform(0.15, 6))


def _finish(trial: Trial) -> None:
    """The same command trains what is left, and every variation ends as if nothing had been."""
    require(_start(trial).wait() == 0, "the sweep did not finish")
    for seed in _SEEDS:
        twin = trial.storm.twin(ONE, () if seed == 0 else ("--seed", str(seed)))
        require_same_end(_folder(trial) / f"seed={seed}", twin, stopped=True)


FAULTS = {
    "sweep-stopped": Fault(inject=sweep_stopped, trials=5),
    "sweep-killed": Fault(inject=sweep_killed, trials=5),
    "variation-killed": Fault(inject=variation_killed, trials=5),
}
