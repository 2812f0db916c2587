"""Files of a run that are damaged: bits flipped, cut, emptied, missing, replaced."""

import itertools
import json
import shutil
from pathlib import Path

from damage import flipped, make_folder
from ends import require_tidy
from expect import require
from process import STATUS_MISTAKE
from trial import EIGHT, SPLIT, Trial

from faults.fault import Fault

_NEWEST = 12  # the step of the newest checkpoint when the file is damaged
_RUN_FILES = ("config.json", "metrics.csv", "log.txt", "state.json", "checkpoints/verified.json")


def bit_flip(trial: Trial) -> None:
    """One bit of any file of the newest checkpoint."""
    path = _a_file_of_the_newest(trial)
    data = bytearray(path.read_bytes())
    where = trial.rng.randrange(8 * len(data))
    data[where // 8] ^= 1 << where % 8
    path.write_bytes(data)
    trial.finish_as_twin()


def file_cut(trial: Trial) -> None:
    """Any file of the newest checkpoint is cut somewhere."""
    path = _a_file_of_the_newest(trial)
    data = path.read_bytes()
    path.write_bytes(data[: trial.rng.randrange(len(data))])
    trial.finish_as_twin()


def file_emptied(trial: Trial) -> None:
    """Any file of the newest checkpoint is empty."""
    _a_file_of_the_newest(trial).write_bytes(b"")
    trial.finish_as_twin()


def file_missing(trial: Trial) -> None:
    """Any file of the newest checkpoint is missing."""
    _a_file_of_the_newest(trial).unlink()
    trial.finish_as_twin()


def file_replaced(trial: Trial) -> None:
    """Any file of the newest checkpoint is the one of the step before, or zeros, or a folder."""
    path = _a_file_of_the_newest(trial)
    before = trial.run_dir / "checkpoints" / str(_NEWEST - 4)
    others = [other for other in before.rglob("*") if other.is_file()]
    kind = trial.rng.choice(("other", "zeros", "folder"))
    if kind == "other":
        shutil.copyfile(trial.rng.choice(others), path)
    elif kind == "zeros":
        path.write_bytes(bytes(path.stat().st_size))
    else:
        path.unlink()
        path.mkdir()
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
    _DAMAGES[kind](path, trial)
    process = trial.start_one()
    status = process.wait()
    detail = f"{path.name} {kind}: status {status}"
    require(status in (0, STATUS_MISTAKE), detail)
    if status:
        last = process.text().strip().splitlines()[-1]
        require(path.name in last and str(trial.run_dir) in last, f"{detail}: {last!r}")
    elif path.name == "metrics.csv":  # its rows are lost with it
        require_tidy(trial.run_dir)
    else:
        trial.require_equal_to_twin()


def _cut(path: Path, trial: Trial) -> None:
    data = path.read_bytes() if path.exists() else b'{"state": "running"}'
    path.write_bytes(data[: trial.rng.randrange(len(data))])


def _flip(path: Path, trial: Trial) -> None:
    data = path.read_bytes() if path.exists() else b'{"state": "running"}'
    path.write_bytes(flipped(data, trial.rng))


_DAMAGES = {
    "cut": _cut,
    "flipped": _flip,
    "a folder": lambda path, trial: make_folder(path),
    "emptied": lambda path, trial: path.write_bytes(b""),
    "noise": lambda path, trial: path.write_bytes(trial.rng.randbytes(500)),
    "deep": lambda path, trial: path.write_text("[" * 100_000),
    "another type": lambda path, trial: path.write_text(
        json.dumps(trial.rng.choice(([], 1, None, {"steps": "a"}, {"config": 3})))
    ),
}


def _a_file_of_the_newest(trial: Trial) -> Path:
    """A file of the newest checkpoint of a run; consecutive trials of a fault get all files."""
    trial.begin_at(_NEWEST)
    newest = trial.run_dir / "checkpoints" / str(_NEWEST)
    files = sorted(path for path in newest.rglob("*") if path.is_file() and path.stat().st_size)
    return files[trial.number % len(files)]


FAULTS = {
    "bit-flip": Fault(inject=bit_flip, trials=90),
    "bit-flip-on-eight-devices": Fault(inject=bit_flip, trials=10, shape=EIGHT, options=SPLIT),
    "file-cut": Fault(inject=file_cut, trials=20),
    "file-emptied": Fault(inject=file_emptied, trials=20),
    "file-missing": Fault(inject=file_missing, trials=10),
    "file-replaced": Fault(inject=file_replaced, trials=10),
    "commit-marker-missing": Fault(inject=commit_marker_missing, trials=3),
    "all-checkpoints-damaged": Fault(inject=all_checkpoints_damaged, trials=3),
    "run-file-damaged": Fault(inject=run_file_damaged, trials=40),
}
