"""Runs one trial of a fault."""

import dataclasses
import importlib.util
import random
import shutil

from expect import TrialFailed
from faults import FAULTS, can_mount
from faults.fault import Fault
from trial import Storm, Trial


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """How a trial ended.

    Attributes:
      fault: the name of its fault.
      number: its number among the trials of that fault.
      problem: what did not survive; None if all did.
    """

    fault: str
    number: int
    problem: str | None


def run_trial(storm: Storm, name: str, number: int, *, seed: int) -> Result:
    """Runs a trial; the seed, the name and the number decide all that is random in it."""
    fault, rng = FAULTS[name], random.Random(f"{seed}/{name}/{number}")
    folder = storm.folder / f"{name}-{number}"
    problem = None
    try:
        with Trial(
            storm, folder, rng, number=number, shape=fault.shape, options=fault.options
        ) as trial:
            fault.inject(trial)
    except TrialFailed as error:
        problem = str(error)
    except Exception as error:  # of the trial itself; the others go on
        problem = f"the trial failed: {error!r}"
    else:
        shutil.rmtree(folder)
    return Result(fault=name, number=number, problem=problem)


def missing(fault: Fault, storm: Storm) -> str:
    """What this machine lacks for a fault; empty if it lacks nothing."""
    have = {
        "": lambda: True,
        "compiler": lambda: storm.library is not None,
        "root": can_mount,
        "gcsfs": lambda: importlib.util.find_spec("gcsfs") is not None,
    }
    return "" if have[fault.needs]() else f"needs {fault.needs}"
