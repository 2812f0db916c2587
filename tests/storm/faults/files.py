"""Files of a run that are damaged: bits flipped, cut, emptied, missing, replaced."""

import itertools
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from damage import DAMAGES, Damage
from ends import require_tidy
from expect import require
from process import STATUS_MISTAKE
from trial import EIGHT, SPLIT, Trial

from faults.fault import Fault

_NEWEST = 12  # the step of the newest checkpoint when the file is damaged
_RUN_FILES = ("config.json", "metrics.csv", "log.txt", "state.json", "checkpoints/verified.json")


def bit_flip(trial: Trial) -> None:
    """One bit of any file of the newest checkpoint."""
    DAMAGES["flipped"](_a_file_of_the_newest(trial), trial.rng)
    trial.finish_as_twin()


def file_cut(trial: Trial) -> None:
    """Any file of the newest checkpoint is cut somewhere."""
    DAMAGES["cut"](_a_file_of_the_newest(trial), trial.rng)
    trial.finish_as_twin()


def file_emptied(trial: Trial) -> None:
    """Any file of the newest checkpoint is empty."""
    DAMAGES["emptied"](_a_file_of_the_newest(trial), trial.rng)
    trial.finish_as_twin()


def file_missing(trial: Trial) -> None:
    """Any file of the newest checkpoint is missing."""
    DAMAGES["missing"](_a_file_of_the_newest(trial), trial.rng)
    trial.finish_as_twin()


def file_replaced(trial: Trial) -> None:
    """Any file of the newest checkpoint is the one of the step before, or zeros, or a folder."""
    path = _a_file_of_the_newest(trial)
    before = trial.run_dir / "checkpoints" / str(_NEWEST - 4)
    others = [other for other in before.rglob("*") if other.is_file()]
    kind = trial.rng.choice(("other", "zeros", "a folder"))
    if kind == "other":
        shutil.copyfile(trial.rng.choice(others), path)
    elif kind == "zeros":
        path.write_bytes(bytes(path.stat().st_size))
    else:
        DAMAGES[kind](path, trial.rng)
    trial.finish_as_twin()


def commit_marker_missing(trial: Trial) -> None:
    """The newest checkpoint, and sometimes the one before, lacks the file that is written last."""
    trial.begin_at(_NEWEST)
    for step in trial.rng.choice(((12,), (12, 8))):
        (trial.run_dir / "checkpoints" / str(step) / "_CHECKPOINT_METADATA").unlink()
    trial.finish_as_twin()


def all_checkpoints_damaged(trial: Trial) -> None:
    """No checkpoint is good: the training does not silently begin anew."""
    trial.begin_at(_NEWEST)
    for path in (trial.run_dir / "checkpoints").rglob("*"):
        if path.is_file() and path.name != "verified.json":
            path.write_bytes(path.read_bytes()[:-1])
    process = trial.start_one()
    status = process.wait()
    require(status == STATUS_MISTAKE, f"status {status}")
    require(process.says("no good checkpoint"), "it does not say that no checkpoint is good")
    require(trial.saved_steps() == [4, 8, 12], "checkpoints were deleted")


def run_file_damaged(trial: Trial) -> None:
    """A file of the run beside its checkpoints is damaged: one message, or it does not matter."""
    trial.begin_at(_NEWEST)
    every = list(itertools.product(_RUN_FILES, _DAMAGES))
    name, kind = every[trial.number % len(every)]
    path = trial.run_dir / name
    if not path.exists():
        path.write_text('{"state": "running"}')
    _DAMAGES[kind](path, trial.rng)
    process = trial.start_one()
    status = process.wait()
    detail = f"{path.name} {kind}: status {status}"
    require(status in (0, STATUS_MISTAKE), detail)
    if status:
        message = process.message()
        require(path.name in message and str(trial.run_dir) in message, f"{detail}: {message!r}")
    elif path.name == "metrics.csv":  # its rows are lost with it
        require_tidy(trial.run_dir)
    else:
        trial.require_equal_to_twin()


_DAMAGES: Mapping[str, Damage] = {
    **DAMAGES,
    "deep": lambda path, rng: path.write_text("[" * 100_000),
    "another type": lambda path, rng: path.write_text(
        json.dumps(rng.choice(([], 1, None, {"steps": "a"}, {"config": 3})))
    ),
}


def _a_file_of_the_newest(trial: Trial) -> Path:
    """A file of the newest checkpoint of a run; consecutive trials of a fault get all files."""
    trial.begin_at(_NEWEST)
    newest = trial.run_dir / "checkpoints" / str(_NEWEST)
    files = sorted(path for path in newest.rglob("*") if path.is_file() and path.stat().st_size)
    return files[trial.number % len(files)]


FAULTS = {
    "bit-flip": Fault(inject=bit_flip, trials=60),
    "bit-flip-on-eight-devices": Fault(inject=bit_flip, trials=10, shape=EIGHT, options=SPLIT),
    "file-cut": Fault(inject=file_cut, trials=20),
    "file-emptied": Fault(inject=file_emptied, trials=20),
    "file-missing": Fault(inject=file_missing, trials=10),
    "file-replaced": Fault(inject=file_replaced, trials=10),
    "commit-marker-missing": Fault(inject=commit_marker_missing, trials=3),
    "all-checkpoints-damaged": Fault(inject=all_checkpoints_damaged, trials=3),
    "run-file-damaged": Fault(inject=run_file_damaged, trials=40),
}
