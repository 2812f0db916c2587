"""Signals that ask a training to stop, over the whole life of its process."""

import signal
import time

from trial import STATUS_STOPPED, TWO, Process, Trial, require

from faults.fault import Fault

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_LIFE = 9.0  # seconds; about as long as a training takes
# Before Python has imported the module that handles signals, no program in Python can do so.
_BEFORE_PYTHON = 0.15


def signal_at_any_time(trial: Trial) -> None:
    """A signal at a random time, from the start of Python to the end of the process."""
    process = trial.start_one()
    time.sleep(trial.chance.uniform(_BEFORE_PYTHON, _LIFE))
    process.send(trial.chance.choice(_SIGNALS))
    _stopped_well(process)
    _finish(trial)


def signal_while_it_trains(trial: Trial) -> None:
    """A signal after a random step, or in an evaluation or a save."""
    process = trial.start_one()
    process.wait_until(lambda: process.says("took the first step"))
    time.sleep(trial.chance.uniform(0, 1.5))
    process.send(trial.chance.choice(_SIGNALS))
    _stopped_well(process)
    _finish(trial)


def signal_while_it_compiles(trial: Trial) -> None:
    """A signal while the step is compiled, without a compile cache."""
    process = trial.command(*trial.arguments(), variables={"JAX_ENABLE_COMPILATION_CACHE": "false"})
    process.wait_until(lambda: process.says("training: "))
    time.sleep(trial.chance.uniform(0, 3))
    process.send(trial.chance.choice(_SIGNALS))
    _stopped_well(process)
    _finish(trial)


def second_signal(trial: Trial) -> None:
    """Two signals, shortly one after the other, as of an impatient user."""
    process = trial.start_one()
    if trial.chance.random() < 0.7:
        process.wait_until(lambda: process.says("took the first step"))
    time.sleep(trial.chance.uniform(_BEFORE_PYTHON, 2))
    for _ in range(2):
        process.send(trial.chance.choice(_SIGNALS))
        time.sleep(trial.chance.uniform(0, 0.5))
    _stopped_well(process)
    _finish(trial)


def signal_and_kill(trial: Trial) -> None:
    """A signal, and kill -9 while the process saves, as a scheduler with little patience does."""
    process = trial.start_one()
    process.wait_until(lambda: process.says("took the first step"))
    process.send(signal.SIGTERM)
    time.sleep(trial.chance.uniform(0, 0.3))
    process.kill()
    _finish(trial)


def signal_to_one_of_two(trial: Trial) -> None:
    """A signal to one process of a job of two; both stop after the same step."""
    processes = trial.start()
    if trial.chance.random() < 0.7:
        processes[0].wait_until(lambda: processes[0].says("took the first step"))
    time.sleep(trial.chance.uniform(0, 3))
    trial.chance.choice(processes).send(trial.chance.choice(_SIGNALS))
    for process in processes:
        _stopped_well(process)
    trial.finish()
    trial.require_twin(stopped=True)


def _stopped_well(process: Process) -> None:
    status = process.wait()
    require(status in (0, STATUS_STOPPED), f"{process.output}: status {status}")
    if status == STATUS_STOPPED:
        require(process.says("stopped by "), f"{process.output} does not say what stopped it")


def _finish(trial: Trial) -> None:
    trial.finish()
    trial.require_twin(stopped=True)


FAULTS = {
    "signal-at-any-time": Fault(inject=signal_at_any_time, trials=40),
    "signal-while-it-trains": Fault(inject=signal_while_it_trains, trials=30),
    "signal-while-it-compiles": Fault(inject=signal_while_it_compiles, trials=10),
    "second-signal": Fault(inject=second_signal, trials=20),
    "signal-and-kill": Fault(inject=signal_and_kill, trials=20),
    "signal-to-one-of-two": Fault(inject=signal_to_one_of_two, trials=20, shape=TWO),
}
