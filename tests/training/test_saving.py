"""What a training does when its checkpoints cannot be saved."""

import dataclasses
import json
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxcls.config import CheckpointConfig, Config
from jaxcls.distributed.mesh import make_mesh
from jaxcls.distributed.watchdog import Watchdog
from jaxcls.runs.checkpoint import CheckpointError, Checkpoints
from jaxcls.runs.claim import Claim
from jaxcls.runs.directory import RunInfo, RunLostError, checkpoint_dir
from jaxcls.runs.reporter import read_metrics
from jaxcls.runs.step_folders import StepFolders
from jaxcls.training.loop import Outcome, train
from jaxcls.training.meter import Meter
from jaxcls.training.saving import Saver

Train = Callable[[Config], None]


class Failures:
    """Makes saves fail, and notes the steps that are tried."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.of: Container[int] = ()
        self.tried: list[int] = []
        finish = Checkpoints._finish

        def fail(checkpoints: Checkpoints, step: int, record: Any, response: Any) -> str | None:
            problem = finish(checkpoints, step, record, response)
            self.tried.append(step)
            return "it failed" if step in self.of else problem

        monkeypatch.setattr(Checkpoints, "_finish", fail)
        # Whether a save has failed before the next step depends on time, so wait for it.
        monkeypatch.setattr(Checkpoints, "failed", self._failed)

    @staticmethod
    def _failed(checkpoints: Checkpoints) -> bool:
        pending = checkpoints._pending
        return pending is not None and pending.problem.result() is not None


@pytest.fixture
def failures(monkeypatch: pytest.MonkeyPatch) -> Failures:
    return Failures(monkeypatch)


@pytest.fixture
def saved_often(tiny_config: Config) -> Config:
    """Saves after steps 3, 6, 9 and 12."""
    return dataclasses.replace(tiny_config, checkpoint=CheckpointConfig(every_steps=3))


def run(config: Config, folder: Path) -> None:
    train(config, folder, mesh=make_mesh(jax.devices()[:1]))


def test_a_failed_save_is_made_up_for_after_the_next_step(
    saved_often: Config, tmp_path: Path, failures: Failures, caplog: pytest.LogCaptureFixture
) -> None:
    failures.of = {3}
    run(saved_often, tmp_path)
    assert failures.tried == [3, 4, 6, 9, 12]
    assert "it failed; the training continues, and the current state is saved" in caplog.text
    assert Checkpoints(checkpoint_dir(tmp_path)).steps() == [9, 12]
    assert "it failed" in (tmp_path / "log.txt").read_text()


def test_a_training_goes_on_until_two_intervals_have_failed(
    saved_often: Config, tmp_path: Path, failures: Failures, caplog: pytest.LogCaptureFixture
) -> None:
    failures.of = {3, 4}
    run(saved_often, tmp_path / "goes_on")
    assert failures.tried == [3, 4, 6, 9, 12]
    assert "it failed; the training continues, and the next save tries again" in caplog.text
    failures.of, failures.tried = range(3, 13), []
    with pytest.raises(CheckpointError, match=r"^it failed; the training ends"):
        run(saved_often, tmp_path / "ends")
    assert failures.tried == [3, 4, 6, 7]
    assert max(int(row["step"]) for row in read_metrics(tmp_path / "ends" / "metrics.csv")) < 9


@pytest.mark.long
def test_failures_count_only_in_a_row(
    saved_often: Config, tmp_path: Path, failures: Failures
) -> None:
    failures.of = {3, 4, 9, 10}
    run(saved_often, tmp_path)
    assert failures.tried == [3, 4, 6, 9, 10, 12]


def test_the_last_save_is_tried_twice(
    saved_often: Config, tmp_path: Path, failures: Failures, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures.of = {12}
    with pytest.raises(CheckpointError, match=r"^it failed; the training ends"):
        run(saved_often, tmp_path)
    assert failures.tried == [3, 6, 9, 12, 12]
    # The same command takes the steps that are not saved again.
    failures.of, failures.tried = (), []
    run(saved_often, tmp_path)
    assert failures.tried == [12]


@pytest.mark.long
def test_the_message_at_the_last_step_does_not_promise_more_steps(
    saved_often: Config, tmp_path: Path, failures: Failures, caplog: pytest.LogCaptureFixture
) -> None:
    failures.of = {6}
    # Nobody looks between the save of step 6 and the last one.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "failed", lambda checkpoints: False)
        run(dataclasses.replace(saved_often, num_steps=9), tmp_path)
    assert "it failed; trying once more" in caplog.text
    assert "the training continues" not in caplog.text


def test_a_training_that_lost_its_run_tidies_nothing_up(
    tiny_run: tuple[Path, Outcome], failures: Failures, tmp_path: Path
) -> None:
    failures.of = {3}
    state: Any = {"x": jnp.ones(3)}
    info = RunInfo.from_json(json.loads((tiny_run[0] / "config.json").read_text()))
    meter = Meter(32, max_skipped=1, say=print)
    with Claim(tmp_path, on_lost=lambda: None) as claim, Watchdog(stuck_after=0) as watchdog:
        checkpoints = Checkpoints(checkpoint_dir(tmp_path))
        saver = Saver(
            checkpoints, claim, info, watchdog=watchdog, publish_metrics=lambda: None, start=0
        )
        saver.save(3, state)
        theirs = dataclasses.replace(claim._writer, token="theirs", process=99)
        (tmp_path / "writer.2.json").write_text(json.dumps(dataclasses.asdict(theirs)))
        with pytest.raises(RunLostError):
            saver.replace_failed(4, state, meter, score=None, logged=True)
    # A failed save is renamed, if the run is still this training's.
    assert (checkpoint_dir(tmp_path) / "3").is_dir()


def test_a_directory_that_cannot_be_written_counts_too(
    saved_often: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: Failures
) -> None:
    prepare, tries = StepFolders.prepare, []

    def fail_first(folders: StepFolders) -> None:
        tries.append(None)
        if len(tries) == 1:
            raise OSError("no space")
        prepare(folders)

    monkeypatch.setattr(StepFolders, "prepare", fail_first)
    run(saved_often, tmp_path)
    assert failures.tried == [4, 6, 9, 12]
