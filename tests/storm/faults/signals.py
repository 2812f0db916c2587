"""Signals that ask a training to stop, over the whole life of its process."""

import signal
import time

from expect import require
from process import STATUS_STOPPED, Process
from trial import FIRST_STEP, TWO, Trial

from faults.fault import Fault

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_LIFE = 9.0  # seconds; about as long as a training takes
_MOMENTS = 50  # parts of a life, which consecutive trials get one after another
# Before Python has imported the module that handles signals, no program in Python can do so.
_BEFORE_PYTHON = 0.15
_SHORT = ("--data.eval-split", "test[:50]")  # the second batch has 18 examples


def signal_at_any_time(trial: Trial) -> None:
    """A signal at a random time, from the start of Python to the end of the process."""
    process = trial.start_one()
    share = (trial.number % _MOMENTS + trial.rng.random()) / _MOMENTS
    time.sleep(_BEFORE_PYTHON + share * _LIFE)
    trial.hit = process.send(trial.rng.choice(_SIGNALS))
    _stopped_well(process)
    trial.finish_as_twin(stopped=True)


def signal_while_it_trains(trial: Trial) -> None:
    """A signal after a random step, or in an evaluation or a save."""
    process = trial.start_one()
    process.wait_for(FIRST_STEP)
    time.sleep(trial.rng.uniform(0, 1.5))
    trial.hit = process.send(trial.rng.choice(_SIGNALS))
    _stopped_well(process)
    trial.finish_as_twin(stopped=True)


def signal_while_it_compiles(trial: Trial) -> None:
    """A signal while the step is compiled, without a compile cache."""
    process = trial.command(*trial.arguments(), JAX_ENABLE_COMPILATION_CACHE="false")
    process.wait_for("training: ")
    time.sleep(trial.rng.uniform(0, 3))
    trial.hit = process.send(trial.rng.choice(_SIGNALS))
    _stopped_well(process)
    trial.finish_as_twin(stopped=True)


def second_signal(trial: Trial) -> None:
    """Two signals, shortly one after the other, as of an impatient user."""
    process = trial.start_one()
    if trial.rng.random() < 0.7:
        process.wait_for(FIRST_STEP)
    time.sleep(trial.rng.uniform(_BEFORE_PYTHON, 2))
    for _ in range(2):
        trial.hit = process.send(trial.rng.choice(_SIGNALS))
        time.sleep(trial.rng.uniform(0, 0.5))
    _stopped_well(process)
    trial.finish_as_twin(stopped=True)


def signal_and_kill(trial: Trial) -> None:
    """A signal, and kill -9 while the process saves, as a scheduler with little patience does."""
    process = trial.start_one()
    process.wait_for(FIRST_STEP)
    trial.hit = process.send(signal.SIGTERM)
    time.sleep(trial.rng.uniform(0, 0.3))
    process.kill()
    trial.finish_as_twin(stopped=True)


def interrupted_in_a_save(trial: Trial) -> None:
    """Ctrl-C while a checkpoint is written; one, or several of an impatient user."""
    process = trial.start_one()
    trial.wait_for_a_save(process)
    trial.hit = False
    for _ in range(trial.number % 3 + 1):
        trial.hit |= process.send(signal.SIGINT)
        time.sleep(trial.rng.uniform(0, 0.1))
    _stopped_well(process)
    trial.finish_as_twin(stopped=True)


def signal_in_an_evaluation_and_kill(trial: Trial) -> None:
    """A signal during an evaluation, and kill -9 before or while the process saves."""
    processes = trial.start()
    trial.wait_for_row(processes[0], trial.rng.choice((8, 16)))
    trial.hit = trial.rng.choice(processes).send(trial.rng.choice(_SIGNALS))
    time.sleep(trial.rng.uniform(0, 0.4))
    for process in processes:
        process.kill()
    trial.finish_as_twin(stopped=True)


def signal_to_one_of_two(trial: Trial) -> None:
    """A signal to one process of a job of two; both stop after the same step."""
    processes = trial.start()
    if trial.rng.random() < 0.7:
        processes[0].wait_for(FIRST_STEP)
    time.sleep(trial.rng.uniform(0, 3))
    trial.hit = trial.rng.choice(processes).send(trial.rng.choice(_SIGNALS))
    for process in processes:
        _stopped_well(process)
    trial.finish()
    trial.require_equal_to_twin(stopped=True)


def _stopped_well(process: Process) -> None:
    status = process.wait()
    require(status in (0, STATUS_STOPPED), f"{process.output}: status {status}")
    if status == STATUS_STOPPED:
        require(process.says("stopped by "), f"{process.output} does not say what stopped it")


FAULTS = {
    "signal-at-any-time": Fault(inject=signal_at_any_time, trials=_MOMENTS),
    "signal-while-it-trains": Fault(inject=signal_while_it_trains, trials=10),
    "signal-while-it-compiles": Fault(inject=signal_while_it_compiles, trials=5),
    "second-signal": Fault(inject=second_signal, trials=10),
    "signal-and-kill": Fault(inject=signal_and_kill, trials=5),
    "interrupted-in-a-save": Fault(inject=interrupted_in_a_save, trials=10),
    "signal-in-an-evaluation-and-kill": Fault(inject=signal_in_an_evaluation_and_kill, trials=5),
    "signal-in-a-short-evaluation-and-kill": Fault(
        inject=signal_in_an_evaluation_and_kill, trials=5, shape=TWO, options=_SHORT
    ),
    "signal-to-one-of-two": Fault(inject=signal_to_one_of_two, trials=20, shape=TWO),
}
