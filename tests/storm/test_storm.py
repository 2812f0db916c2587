"""A few trials of the storm, and that a trial fails when something is lost."""

import dataclasses
import json
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from attempt import Result, missing, run_trial
from ends import STEPS, End, end_of, require_close_end, require_same_end
from expect import TrialFailed
from faults import FAULTS
from trial import ONE, Storm, Trial

# A few quick kinds; `python tests/storm/run.py` tries all.
FEW = (
    "kill-at-a-call",
    "bit-flip",
    "run-file-damaged",
    "disk-full-in-a-save",
    "signal-while-it-trains",
)


@pytest.fixture(scope="module")
def storm(tmp_path_factory: pytest.TempPathFactory) -> Storm:
    return Storm(tmp_path_factory.mktemp("storm"))


@pytest.mark.slow
@pytest.mark.parametrize("name", FEW)
def test_a_trial_passes(storm: Storm, name: str) -> None:
    if lacks := missing(FAULTS[name], storm):
        pytest.skip(lacks)
    result = run_trial(storm, name, 0, seed=0)
    assert result.problem is None
    assert result.hit


def _replace_the_last_checkpoint(run: Path) -> None:
    """The checkpoint of another step takes its place."""
    shutil.rmtree(run / "checkpoints" / str(STEPS))
    shutil.copytree(run / "checkpoints" / str(STEPS - 4), run / "checkpoints" / str(STEPS))


def _drop_a_row(run: Path) -> None:
    lines = (run / "metrics.csv").read_text().splitlines(keepends=True)
    (run / "metrics.csv").write_text("".join(lines[:5] + lines[6:]))


def _repeat_a_row(run: Path) -> None:
    lines = (run / "metrics.csv").read_text().splitlines(keepends=True)
    (run / "metrics.csv").write_text("".join(lines[:5] + lines[4:]))


def _leave_a_file(run: Path) -> None:
    (run / "checkpoints" / "12.orbax-checkpoint-tmp").mkdir()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (_replace_the_last_checkpoint, "differs from the twin's"),
        (_drop_a_row, "rows are missing"),
        (_repeat_a_row, "repeats steps"),
        (_leave_a_file, "left behind"),
    ],
)
def test_a_trial_fails_if_something_is_lost(
    storm: Storm, tmp_path: Path, spoil: Callable[[Path], None], problem: str
) -> None:
    with Trial(storm, tmp_path / "trial", random.Random(0)) as trial:
        shutil.copytree(storm.twin(ONE), trial.run_dir)
        trial.require_equal_to_twin()
        spoil(trial.run_dir)
        with pytest.raises(TrialFailed, match=problem):
            trial.require_equal_to_twin()


@pytest.mark.parametrize("compare", [require_same_end, require_close_end])
def test_a_comparison_sees_a_missing_array(
    monkeypatch: pytest.MonkeyPatch, compare: Callable[[Path, Path], None]
) -> None:
    run, twin = Path("run"), Path("twin")
    found = {run: End(arrays={}, rows=[]), twin: End(arrays={"step": np.array(24)}, rows=[])}
    monkeypatch.setattr("ends.end_of", found.__getitem__)
    with pytest.raises(TrialFailed, match="only one of"):
        compare(run, twin)


def test_what_comes_after_the_end_does_not_hit(storm: Storm, tmp_path: Path) -> None:
    with Trial(storm, tmp_path / "trial", random.Random(0)) as trial:
        process = trial.command("--version")
        assert process.wait() == 0
        assert not process.send(signal.SIGTERM)
        assert not process.send_to_child(signal.SIGTERM, trial.rng)
        assert not process.kill()


def test_the_storm_says_what_was_tried(tmp_path: Path) -> None:
    missed = Result(fault="bit-flip", number=0, seed=0, sources="old", problem=None, hit=False)
    others = [
        dataclasses.replace(missed, seed=1),
        dataclasses.replace(missed, number=2),
        dataclasses.replace(missed, number=1, problem="it failed"),
    ]
    results = tmp_path / "results"
    lines = [json.dumps(dataclasses.asdict(result)) for result in (missed, *others)]
    results.write_text("\n".join(lines) + "\n")
    options = ["--fault", "bit-flip", "--trials", "2", "--minutes", "0", "--results", results]
    command = [sys.executable, Path(__file__).with_name("run.py"), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "| bit-flip | 1 | 0 | 1 | 0 |" in done.stdout
    assert "1 of 2 trials tried, 0 failed" in done.stdout
    assert "of sources old, which have changed since: 1" in done.stdout


@pytest.mark.slow
def test_a_run_begins_where_it_is_told(storm: Storm, tmp_path: Path) -> None:
    with Trial(storm, tmp_path / "trial", random.Random(0)) as trial:
        trial.begin_at(12)
    assert trial.saved_steps() == [4, 8, 12]
    index = json.loads((trial.run_dir / "checkpoints" / "verified.json").read_text())
    assert index == {"steps": [4, 8, 12]}
    arrays = end_of(storm.twin(ONE)).arrays
    assert {"step", "params/conv/kernel", "ema/params/conv/kernel"} <= arrays.keys()
    assert all(isinstance(array, np.ndarray) for array in arrays.values())
