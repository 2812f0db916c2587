import dataclasses
import json
import os
import shutil
import time
from pathlib import Path

import pytest

from jaxcls.commands.cli import main
from jaxcls.commands.runs import SILENT_SECONDS, find_runs, summarize
from jaxcls.config import Config, encode
from jaxcls.runs.run_state import RunState, record_state
from jaxcls.system.whole_files import write_whole
from jaxcls.training.loop import Outcome


@pytest.fixture
def folder(
    tiny_run: tuple[Path, Outcome], tiny_config: Config, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:  # fmt: skip
    """Two runs, one of them in a deeper folder and with another seed and learning rate."""
    monkeypatch.chdir(tmp_path)
    for name in ("runs/a", "runs/deep/b"):
        shutil.copytree(tiny_run[0], name)
    optimizer = dataclasses.replace(tiny_config.optimizer, learning_rate=0.5)
    change_config(
        Path("runs/deep/b"), dataclasses.replace(tiny_config, optimizer=optimizer, seed=7)
    )
    return Path("runs")


def change_config(run: Path, config: Config) -> None:
    record = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(record | {"config": encode(config)}))


def test_training_records_that_it_finished(tiny_run: tuple[Path, Outcome]) -> None:
    state = json.loads((tiny_run[0] / "state.json").read_text())
    assert state == {"state": "finished", "num_steps": 12, "why": ""}


def test_a_run_is_summarized(folder: Path, tiny_config: Config) -> None:
    (folder / "a/metrics.csv").write_text(
        "step,images_per_second,eval_top1\n1,5,\n2,100,\n4,,0.5\n4,300,\n8,,0.75\n8,200,\n12,,0.6\n"
    )
    summary = summarize(folder / "a", name="a")
    assert summary.best_top1 == 0.75
    assert (summary.step, summary.num_steps) == (12, 12)
    assert summary.images_per_second == 200, "without the first step's"
    assert (summary.state, summary.why, summary.config) == ("finished", "", tiny_config)


@pytest.mark.parametrize(
    ("recorded", "age", "shown"),
    [
        ("running", 0, "running?"),
        ("running", SILENT_SECONDS + 60, "killed?"),
        ("stopped", 0, "stopped"),
        ("failed", 0, "failed"),
        (None, 0, "?"),
    ],
)
def test_the_state_is_what_the_files_tell(
    folder: Path, recorded: str | None, age: float, shown: str
) -> None:
    run = folder / "a"
    if recorded is None:
        (run / "state.json").unlink()
    else:
        record_state(run, RunState(state=recorded, num_steps=99))  # type: ignore[arg-type]
    written = time.time() - age
    for name in ("metrics.csv", "state.json"):
        if (run / name).exists():
            os.utime(run / name, (written, written))
    summary = summarize(run, name="a")
    assert summary.state == shown
    assert summary.num_steps == (99 if recorded else 12)


def test_a_run_that_began_long_ago_and_took_no_step_is_not_running(folder: Path) -> None:
    run = folder / "a"
    (run / "metrics.csv").unlink()
    record_state(run, RunState(state="running", num_steps=99))
    assert summarize(run, name="a").state == "running?"
    os.utime(run / "state.json", (0, 0))
    assert summarize(run, name="a").state == "killed?"


def test_what_is_no_run_is_passed_over(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export = folder / "export"
    export.mkdir()
    shutil.copy(folder / "a/config.json", export / "config.json")
    (folder / "loop").symlink_to(folder.resolve())
    assert [str(run) for run in find_runs(folder)] == ["runs/a", "runs/deep/b"]


def test_two_runs_are_compared_by_the_names_of_the_table(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["runs", str(folder), "--diff", "a", "deep/b"]) == 0
    by_table = capsys.readouterr().out
    assert "optimizer.learning_rate" in by_table
    assert main(["runs", "--diff", "runs/a", "runs/deep/b"]) == 0
    assert capsys.readouterr().out.split()[3:] == by_table.split()[3:]


def test_a_run_without_metrics_has_no_figures(folder: Path) -> None:
    (folder / "a/metrics.csv").unlink()
    summary = summarize(folder / "a", name="a")
    assert (summary.step, summary.best_top1, summary.images_per_second) == (0, None, None)


def test_runs_are_found_at_any_depth(folder: Path) -> None:
    assert list(find_runs(folder)) == [folder / "a", folder / "deep/b"]
    assert list(find_runs(folder / "a")) == [folder / "a"]
    assert list(find_runs(folder / "gone")) == []


def test_the_table_shows_what_differs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record_state(folder / "a", RunState(state="failed", num_steps=12, why="loss is nan at step 9"))
    assert main(["runs", "runs", "--json"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert lines[0].split() == [
        *("run", "learning_rate", "seed", "best", "top-1", "step", "state", "img/s"),
    ]
    assert lines[1].split()[:3] == ["a", "0.05", "0"]
    assert lines[2].split()[:3] == ["deep/b", "0.5", "7"]
    assert lines[2].split()[4:6] == ["12/12", "finished"]
    assert lines[3:] == ["a failed: loss is nan at step 9"]
    first, second = json.loads(last)["runs"]
    assert first["differs"] == {"optimizer.learning_rate": 0.05, "seed": 0}
    assert (first["state"], first["why"]) == ("failed", "loss is nan at step 9")
    assert second["name"] == "deep/b"
    assert second["best_top1"] == pytest.approx(float(lines[2].split()[3][:-1]) / 100, abs=1e-4)


def test_a_damaged_run_is_named_and_left_out(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_whole(folder / "a/config.json", "{")
    assert main(["runs"]) == 0
    captured = capsys.readouterr()
    assert captured.err.startswith("the table is without runs/a: runs/a/config.json is damaged")
    assert len(captured.out.splitlines()) == 2


@pytest.mark.usefixtures("folder")
def test_the_difference_of_two_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "--diff", "runs/a", "runs/deep/b", "--json"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["field", "runs/a", "runs/deep/b"],
        ["optimizer.learning_rate", "0.05", "0.5"],
        ["seed", "0", "7"],
    ]
    assert json.loads(last)["diff"]["seed"] == [0, 7]
    assert main(["runs", "--diff", "runs/a", "runs/a"]) == 0
    assert capsys.readouterr().out == "the two runs have the same config\n"


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["gone"], "'gone': there is no such folder"),
        (["--diff", "runs/a", "runs/gone"], "run 'runs/gone' does not exist"),
        (["--diff", "runs/a"], "--diff: give two runs"),
        (["--diff", "runs/a", "--json"], "--diff: give two runs"),
    ],
)
def test_runs_that_are_not_there(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["runs", *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"jaxcls: {expected}")
