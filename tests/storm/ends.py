"""How trainings end, and whether two of them end alike."""

import csv
import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from expect import require

STEPS = 24  # of the training, which saves after every fourth and keeps two
MEASURED = ("seconds", "images_per_second", "data_wait_share")  # columns that differ by nature
type Row = Mapping[str, str]

LEFTOVER = re.compile(r"^\..*|.*(tmp|\.damaged|\.replaced|\.pruned).*")


@dataclasses.dataclass(frozen=True, kw_only=True)
class End:
    """How a training has ended.

    Attributes:
      arrays: those of the last checkpoint, by name.
      rows: those of metrics.csv, without times.
    """

    arrays: Mapping[str, np.ndarray]
    rows: Sequence[Row]


def require_same_end(run: Path, twin: Path, *, stopped: bool = False) -> None:
    """Raises TrialFailed unless both end alike; see `Trial.require_equal_to_twin`."""
    its, mine = _ends(twin, run)
    for name, array in its.arrays.items():
        same = array.tobytes() == mine.arrays[name].tobytes()
        require(same, f"array {name} differs from the twin's")
    _require_rows(mine.rows, its.rows, stopped=stopped)
    require_tidy(run)


def require_close_end(run: Path, twin: Path) -> None:
    """Raises TrialFailed unless both end nearly alike; see `Trial.require_close_to_twin`."""
    its, mine = _ends(twin, run)
    for name, array in its.arrays.items():
        close = np.allclose(array, mine.arrays[name], rtol=1e-3, atol=1e-4)
        require(close, f"array {name} is far from the twin's")
    missing = set(map(_key, its.rows)) - set(map(_key, mine.rows))
    require(not missing, f"metrics.csv: rows are missing: {sorted(missing)}")
    require_tidy(run)


def require_tidy(run: Path) -> None:
    """Raises TrialFailed if temporary files are left in a run."""
    require_no_leftovers(run, run / "checkpoints")


def require_no_leftovers(*folders: Path) -> None:
    """Raises TrialFailed if temporary files are left in one of the folders."""
    left = [path for f in folders for path in f.iterdir() if LEFTOVER.fullmatch(path.name)]
    require(not left, f"left behind: {left}")


def _ends(twin: Path, run: Path) -> tuple[End, End]:
    """How a twin and a run have ended, with arrays of the same names."""
    its, mine = end_of(twin), end_of(run)
    other = its.arrays.keys() ^ mine.arrays.keys()
    require(not other, f"only one of the run and its twin has {sorted(other)}")
    return its, mine


def _require_rows(mine: Sequence[Row], twin: Sequence[Row], *, stopped: bool) -> None:
    theirs = {_key(row): row for row in twin}
    missing = theirs.keys() - map(_key, mine)
    require(not missing, f"metrics.csv: rows are missing: {sorted(missing)}")
    cut = False  # whether the means of the row begin at a stop
    for row in mine:
        its = theirs.get(_key(row))
        require(its or stopped, f"metrics.csv: a row too many: {row}")
        require(its is None or cut or row == its, f"metrics.csv: {row} differs from {its}")
        cut = its is None


def _key(row: Row) -> tuple[int, bool]:
    """The step of a row, and whether it is an evaluation."""
    return int(row["step"]), bool(row["eval_loss"])


def end_of(run: Path) -> End:
    """Reads how a training has ended.

    Raises:
      TrialFailed: it has no checkpoint after its last step.
    """
    from orbax.checkpoint import v1 as ocp

    folder = run / "checkpoints" / str(STEPS)
    require(folder.is_dir(), f"{folder} is missing")
    record = json.loads((folder / "_CHECKPOINT_METADATA").read_bytes())["custom_metadata"]["record"]
    names = [name for name, array in record["arrays"].items() if 0 not in array["shape"]]
    arrays = ocp.load(str(folder), dict.fromkeys(names, np.ndarray))
    with (run / "metrics.csv").open(newline="") as file:
        rows = [
            {name: value for name, value in row.items() if name not in MEASURED}
            for row in csv.DictReader(file)
        ]
    steps = [_key(row) for row in rows]
    require(steps == sorted(set(steps)), f"metrics.csv repeats steps: {steps}")
    return End(arrays=arrays, rows=rows)
