"""Runs one trial of a fault."""

import dataclasses
import hashlib
import importlib.util
import random
import shutil

from expect import TrialFailed
from faults import FAULTS, can_mount
from faults.fault import Fault
from process import ROOT
from trial import Storm, Trial


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """How a trial ended.

    Attributes:
      fault: the name of its fault.
      number: its number among the trials of that fault.
      seed: that of the storm.
      sources: those of jaxcls, see `digest_of_sources`.
      problem: which expectation did not hold; None if all held.
      hit: whether the fault has hit; see `Trial`.
    """

    fault: str
    number: int
    seed: int
    sources: str
    problem: str | None
    hit: bool


def run_trial(storm: Storm, name: str, number: int, *, seed: int) -> Result:
    """Runs a trial; the seed, the name and the number decide all that is random in it."""
    fault, rng = FAULTS[name], random.Random(f"{seed}/{name}/{number}")
    folder = storm.folder / f"{name}-{number}"
    sources, problem = digest_of_sources(), None
    trial = Trial(storm, folder, rng, number=number, shape=fault.shape, options=fault.options)
    try:
        with trial:
            fault.inject(trial)
    except TrialFailed as error:
        problem = str(error)
    except Exception as error:  # of the trial itself; the others go on
        problem = f"the trial failed: {error!r}"
    else:
        shutil.rmtree(folder)
    return Result(
        fault=name, number=number, seed=seed, sources=sources, problem=problem, hit=trial.hit
    )


def digest_of_sources() -> str:
    """The beginning of the SHA-256 of the .py files of jaxcls and their paths, in hexadecimal."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "jaxcls").rglob("*.py")):
        digest.update(f"{path.relative_to(ROOT)}\n".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]


def missing(fault: Fault, storm: Storm) -> str:
    """What this machine lacks for a fault; empty if it lacks nothing."""
    have = {
        "": lambda: True,
        "compiler": lambda: storm.library is not None,
        "root": can_mount,
        "gcsfs": lambda: importlib.util.find_spec("gcsfs") is not None,
    }
    return "" if have[fault.needs]() else f"needs {fault.needs}"
