import dataclasses
import itertools
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxcls.commands.common import validate_data
from jaxcls.config import Config, ScheduleConfig, encode
from jaxcls.data import device
from jaxcls.data.batches import train_batches
from jaxcls.distributed.mesh import make_mesh
from jaxcls.distributed.stop_signals import StopSignals
from jaxcls.inference.classifier import ImageClassifier
from jaxcls.inference.open_weights import data_of
from jaxcls.models import registry
from jaxcls.runs.checkpoint import CheckpointError, Checkpoints
from jaxcls.runs.directory import RunError, RunInfo, checkpoint_dir
from jaxcls.runs.reporter import Reporter, read_metrics
from jaxcls.runs.run_state import RunState, recorded_state
from jaxcls.system.errors import DataError, UserError
from jaxcls.training import evaluation
from jaxcls.training.build import Training, build_training
from jaxcls.training.loop import Outcome, train
from jaxcls.training.meter import DivergedError
from jaxcls.training.step_loop import StepLoop


def one_device() -> Any:
    return make_mesh(jax.devices()[:1])


def final_state(run: Path, config: Config, step: int) -> Any:
    training = build_training(config, num_classes=10, num_examples=1442, mesh=one_device())
    with Checkpoints(checkpoint_dir(run)) as checkpoints:
        return jax.device_get(checkpoints.restore(training.abstract_state(), step).state)


def changed(config: Config, section: str, **values: Any) -> Config:
    part = dataclasses.replace(getattr(config, section), **values)
    return dataclasses.replace(config, **{section: part})


def assert_same_bits(state: Any, other: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, state, other)


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int, number: signal.Signals) -> None:
    """Sends this process a signal when the run logs the step."""
    log = Reporter.log

    def log_and_signal(self: Reporter, at: int, metrics: Any) -> None:
        log(self, at, metrics)
        if at == step:
            signal.raise_signal(number)

    monkeypatch.setattr(Reporter, "log", log_and_signal)


def test_a_run_leaves_what_its_docstring_says(
    tiny_run: tuple[Path, Outcome], tiny_config: Config
) -> None:
    folder, outcome = tiny_run
    assert (outcome.step, outcome.num_steps, outcome.stopped_by) == (12, 12, None)
    assert outcome.metrics["num_examples"] == 355
    assert (folder / "config.json").is_file()
    assert list(folder.glob("events.*"))
    rows = read_metrics(folder / "metrics.csv")
    assert [row["step"] for row in rows] == [*("1", "2", "4", "4", "6", "8", "8", "10", "12", "12")]
    assert [row["step"] for row in rows if row["eval_top1"]] == ["4", "8", "12"]
    with Checkpoints(checkpoint_dir(folder)) as checkpoints:
        assert set(checkpoints.steps()) >= {8, 12}
        metadata = checkpoints.metadata()
    assert metadata["config"]["model"]["name"] == tiny_config.model.name
    assert metadata["class_names"] == [str(digit) for digit in range(10)]


def test_the_run_and_every_checkpoint_keep_the_whole_config(
    tiny_run: tuple[Path, Outcome], tiny_config: Config
) -> None:
    folder, _ = tiny_run
    record = json.loads((folder / "config.json").read_text())
    with Checkpoints(checkpoint_dir(folder)) as checkpoints:
        steps = checkpoints.steps()
        kept = [RunInfo.from_json(checkpoints.metadata(step)) for step in steps]
    assert len(kept) >= 2
    for info in [RunInfo.from_json(record), *kept]:
        assert info.config == tiny_config


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)]
)
def test_a_stopped_run_resumes_bit_for_bit(
    tiny_run: tuple[Path, Outcome],
    tiny_config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, 6, number)
        stopped = train(tiny_config, tmp_path, mesh=one_device())
    # The signal comes while step 6 is logged; step 7 is the one that sees it.
    assert (stopped.step, stopped.stopped_by) == (7, number.name)
    resumed = train(tiny_config, tmp_path, mesh=one_device())
    assert (resumed.step, resumed.stopped_by) == (12, None)
    assert resumed.metrics == tiny_run[1].metrics
    assert_same_bits(
        final_state(tmp_path, tiny_config, 12), final_state(tiny_run[0], tiny_config, 12)
    )
    rows = [row for row in read_metrics(tmp_path / "metrics.csv") if row["eval_top1"]]
    assert [row["step"] for row in rows] == ["4", "8", "12"]


@pytest.mark.parametrize("step", [pytest.param(8, marks=pytest.mark.long), 12])
def test_an_evaluation_that_a_signal_ends_is_made_up_for(
    tiny_run: tuple[Path, Outcome],
    tiny_config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, step, signal.SIGTERM)  # its evaluation follows
        stopped = train(tiny_config, tmp_path, mesh=one_device())
    assert (stopped.step, stopped.stopped_by) == (step, "SIGTERM")
    training = build_training(tiny_config, num_classes=10, num_examples=1442, mesh=one_device())
    template = training.abstract_state()
    with Checkpoints(checkpoint_dir(tmp_path)) as checkpoints:
        assert checkpoints.restore(template, step).metric is None
    resumed = train(tiny_config, tmp_path, mesh=one_device())
    assert resumed.stopped_by is None
    assert resumed.metrics == tiny_run[1].metrics
    assert _without_times(tmp_path) == _without_times(tiny_run[0])
    with Checkpoints(checkpoint_dir(tmp_path)) as checkpoints:
        assert checkpoints.restore(template, step).metric is not None


def _without_times(run: Path) -> list[dict[str, str]]:
    measured = ("seconds", "images_per_second", "data_wait_share")
    return [
        {name: value for name, value in row.items() if name not in measured}
        for row in read_metrics(run / "metrics.csv")
    ]


@pytest.mark.parametrize(
    ("where", "ends"),
    [
        ("training", "a signal"),
        pytest.param("training", "time", marks=pytest.mark.long),
        ("evaluation", "time"),
    ],
)
def test_a_wait_for_data_that_hang_ends(
    tiny_run: tuple[Path, Outcome],
    tiny_config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    ends: str,
) -> None:
    hangs, free = threading.Event(), threading.Event()
    owner, name, batches = {
        "training": (device, "train_batches", 5),
        "evaluation": (evaluation, "eval_batches", 2),
    }[where]
    make_batches, to_device = getattr(owner, name), owner.to_device

    def some_batches(*args: Any, **kwargs: Any) -> Iterator[Any]:
        yield from itertools.islice(make_batches(*args, **kwargs), batches)
        hangs.set()
        free.wait(60)

    def hurried(*args: Any, on_wait: Callable[[float], None], **kwargs: Any) -> Any:
        def ask(seconds: float) -> None:
            if hangs.is_set() and ends == "a signal":
                signal.raise_signal(signal.SIGTERM)
            on_wait(1000 + seconds if hangs.is_set() and ends == "time" else seconds)

        return to_device(*args, on_wait=ask, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, some_batches)
        patch.setattr(owner, "to_device", hurried)
        if ends == "time":
            with pytest.raises(DataError, match=r"no batch came for 100. s.*\nthe run is saved"):
                train(tiny_config, tmp_path, mesh=one_device())
        else:
            outcome = train(tiny_config, tmp_path, mesh=one_device())
            assert outcome.stopped_by == "SIGTERM"
        assert not free.is_set(), "it did not wait for the batch"
    free.set()
    state = recorded_state(tmp_path)
    assert state is not None
    assert state.state == ("failed" if ends == "time" else "stopped")
    with Checkpoints(checkpoint_dir(tmp_path)) as checkpoints:
        assert checkpoints.steps()[-1] == (5 if where == "training" else 4)
    # The last row covers all steps that are saved.
    last = [row for row in read_metrics(tmp_path / "metrics.csv") if row["loss"]][-1]
    assert last["step"] == ("5" if where == "training" else "4")
    if where == "evaluation":
        train(tiny_config, tmp_path, mesh=one_device())
        assert _without_times(tmp_path) == _without_times(tiny_run[0])


PROCESS = """
import json, signal, sys
from jaxcls.config import decode
from jaxcls.models import registry
from jaxcls.models.efficientnet import ModelSpec, BlockSpec
from jaxcls.runs.reporter import Reporter
from jaxcls.training.loop import train

spec, config, workdir, stop_at = sys.argv[1:]
registry.SPECS["tiny"] = eval(spec)
log = Reporter.log

def log_and_signal(self, step, metrics):
    log(self, step, metrics)
    if step == int(stop_at):
        signal.raise_signal(signal.SIGTERM)

Reporter.log = log_and_signal
print(train(decode(json.loads(config)), workdir).step)
"""


@pytest.mark.long
def test_a_run_resumed_in_another_process_is_the_same_bit_for_bit(
    tiny_config: Config, tmp_path: Path
) -> None:
    """With the compiler's own settings, as a user has them."""
    environment = {name: text for name, text in os.environ.items() if name != "XLA_FLAGS"}
    arguments = [repr(registry.model_spec("tiny")), json.dumps(encode(tiny_config))]

    def run(name: str, *, stop_at: int = 0) -> int:
        command = [sys.executable, "-c", PROCESS, *arguments, str(tmp_path / name), str(stop_at)]
        return int(subprocess.check_output(command, env=environment, text=True, timeout=300))

    assert run("whole") == 12
    assert run("stopped", stop_at=6) == 7
    assert run("stopped") == 12
    assert_same_bits(
        final_state(tmp_path / "stopped", tiny_config, 12),
        final_state(tmp_path / "whole", tiny_config, 12),
    )


@pytest.mark.long
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    tiny_run: tuple[Path, Outcome],
    tiny_config: Config,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    shutil.copytree(tiny_run[0], tmp_path / "run")
    (tmp_path / "run/checkpoints/12/_CHECKPOINT_METADATA").write_bytes(b"{}")
    with caplog.at_level(logging.WARNING, "jaxcls"):
        outcome = train(tiny_config, tmp_path / "run", mesh=one_device())
    assert "checkpoints/12" in caplog.text
    assert outcome.step == 12
    assert_same_bits(
        final_state(tmp_path / "run", tiny_config, 12), final_state(tiny_run[0], tiny_config, 12)
    )


@pytest.mark.long
def test_a_run_goes_on_with_other_devices(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, 4, signal.SIGTERM)
        stopped = train(tiny_config, tmp_path, mesh=make_mesh(jax.devices()[:8]))
    saved = final_state(tmp_path, tiny_config, stopped.step)
    eight = build_training(
        tiny_config, num_classes=10, num_examples=1442, mesh=make_mesh(jax.devices()[:8])
    )
    with Checkpoints(checkpoint_dir(tmp_path)) as checkpoints:
        again = checkpoints.restore(eight.abstract_state()).state
    assert len(jax.tree.leaves(again.params)[0].sharding.device_set) == 8
    assert_same_bits(jax.device_get(again), saved)
    assert train(tiny_config, tmp_path, mesh=one_device()).step == 12


def test_a_finished_run_is_left_alone(tiny_run: tuple[Path, Outcome], tiny_config: Config) -> None:
    before = sorted((tiny_run[0] / "checkpoints").iterdir())
    outcome = train(tiny_config, tiny_run[0], mesh=one_device())
    assert (outcome.step, outcome.stopped_by) == (12, None)
    assert sorted((tiny_run[0] / "checkpoints").iterdir()) == before


def test_a_run_whose_checkpoints_are_gone_does_not_silently_start_again(
    tiny_run: tuple[Path, Outcome], tiny_config: Config, tmp_path: Path
) -> None:
    shutil.copytree(tiny_run[0], tmp_path / "run")
    for folder in (tmp_path / "run/checkpoints").glob("[0-9]*"):
        shutil.rmtree(folder)
    with pytest.raises(CheckpointError, match="no good checkpoint"):
        train(tiny_config, tmp_path / "run", mesh=one_device())


def test_a_changed_config_is_refused_unless_told(
    tiny_run: tuple[Path, Outcome], tiny_config: Config, tmp_path: Path
) -> None:
    shutil.copytree(tiny_run[0], tmp_path / "run")
    changed = dataclasses.replace(
        tiny_config,
        num_steps=14,
        data=dataclasses.replace(tiny_config.data, num_threads=2),
    )
    with pytest.raises(RunError, match=r"num_steps: 12 -> 14") as error:
        train(changed, tmp_path / "run", mesh=one_device())
    assert "num_threads" not in str(error.value)  # operational
    assert train(changed, tmp_path / "run", mesh=one_device(), allow_changes=True).step == 14


def test_changes_that_the_checkpoint_does_not_fit_leave_the_run_as_it_was(
    tiny_run: tuple[Path, Outcome], tiny_config: Config, tmp_path: Path
) -> None:
    shutil.copytree(tiny_run[0], tmp_path / "run")
    before = (tmp_path / "run/config.json").read_text()
    without = changed(tiny_config, "optimizer", ema_decay=0.0)
    with pytest.raises(CheckpointError, match=r"does not fit .*; use the config"):
        train(without, tmp_path / "run", mesh=one_device(), allow_changes=True)
    assert (tmp_path / "run/config.json").read_text() == before
    assert train(tiny_config, tmp_path / "run", mesh=one_device()).step == 12


@pytest.mark.parametrize("bad_batch", [0, 6])
def test_data_that_cannot_be_used_loses_no_step(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad_batch: int
) -> None:
    def batches(*_: Any, start: int, **__: Any) -> Iterator[Any]:
        real = train_batches(*_, start=start, **__)
        for step, batch in zip(range(start, 100), real, strict=False):
            if step == bad_batch:
                real.close()
                raise DataError("record 3 cannot be decoded")
            yield batch

    monkeypatch.setattr(device, "train_batches", batches)
    with pytest.raises(UserError, match=r"^record 3 cannot be decoded\n.*; fix it") as error:
        train(tiny_config, tmp_path, mesh=one_device())
    with Checkpoints(checkpoint_dir(tmp_path)) as checkpoints:
        assert checkpoints.steps() == ([4, bad_batch] if bad_batch else [])
    expected = f"the run is saved up to step {bad_batch};" if bad_batch else "no step was taken;"
    assert expected in str(error.value)


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings that end where their steps begin, so that nothing is compiled for them."""
    monkeypatch.setattr(StepLoop, "run", lambda _: Outcome(1, 1, {}, None))
    monkeypatch.setattr(Training, "compile_step", lambda *_: None)


@pytest.mark.usefixtures("untrained")
def test_what_fails_waits_for_a_process_that_leaves_before_it_is_recorded(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("connection closed by peer")

    states: list[RunState | None] = []
    monkeypatch.setattr(StepLoop, "run", fail)
    monkeypatch.setattr(
        StopSignals, "finish_leaving", lambda *_: states.append(recorded_state(tmp_path))
    )
    with pytest.raises(RuntimeError, match="closed by peer"):
        train(tiny_config, tmp_path, mesh=one_device())
    states.append(recorded_state(tmp_path))
    assert [state and state.state for state in states] == ["running", "failed"]


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize(
    ("every_steps", "num_steps", "warned"),
    [(2, 8, False), (3, 8, True), (3, 1, False)],  # of a single step the save is due anyway
)
def test_evaluations_that_are_not_saved_give_a_warning(
    tiny_config: Config,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    every_steps: int,
    num_steps: int,
    warned: bool,
) -> None:
    config = changed(tiny_config, "checkpoint", every_steps=every_steps)
    train(dataclasses.replace(config, num_steps=num_steps), tmp_path, mesh=one_device())
    assert ("so the best step may not be saved" in capsys.readouterr().err) == warned


def diverging(config: Config, **changes: Any) -> Config:
    return dataclasses.replace(
        config,
        optimizer=dataclasses.replace(config.optimizer, learning_rate=1e30),
        schedule=ScheduleConfig(name="constant", warmup=0.0),
        checkpoint=dataclasses.replace(config.checkpoint, every_steps=1),
        **changes,
    )


@pytest.mark.parametrize(
    ("num_steps", "ema_decay"), [pytest.param(1, 0.0, marks=pytest.mark.long), (12, 0.9)]
)
def test_a_state_that_is_not_finite_stops_the_run_and_is_not_saved(
    tiny_config: Config, tmp_path: Path, num_steps: int, ema_decay: float
) -> None:
    """The first step's loss is fine, and its new parameters are of no use."""
    config = diverging(changed(tiny_config, "optimizer", ema_decay=ema_decay), num_steps=num_steps)
    with pytest.raises(DivergedError, match=r"^params_norm is (nan|inf) at step 1; nothing was"):
        train(config, tmp_path, mesh=one_device())
    with Checkpoints(checkpoint_dir(tmp_path)) as checkpoints:
        assert checkpoints.steps() == []


def test_an_evaluation_that_is_not_finite_stops_the_run_before_the_save(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = {"loss": float("nan"), "top1": 0.0, "top5": 0.0, "num_examples": 355}
    monkeypatch.setattr(evaluation, "evaluate_split", lambda *_, **__: broken)
    with pytest.raises(DivergedError, match=r"^evaluation loss is nan at step 4; nothing was"):
        train(tiny_config, tmp_path, mesh=one_device())
    with Checkpoints(checkpoint_dir(tmp_path)) as checkpoints:
        assert checkpoints.steps() == []


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize(("batch_norm", "warned"), [("global", True), (4, False)])
def test_micro_batches_with_global_batch_norm_give_a_warning(
    tiny_config: Config,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    batch_norm: Any,
    warned: bool,
) -> None:
    config = changed(tiny_config, "model", batch_norm=batch_norm)
    config = dataclasses.replace(changed(config, "optimizer", micro_batches=2), num_steps=1)
    train(config, tmp_path, mesh=one_device())
    assert ("each micro-batch is normalised by itself" in capsys.readouterr().err) == warned


# --- Progressive learning ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def staged_config(tiny_config: Config) -> Config:
    """Three stages, of the steps 1 to 4, 5 to 8 and 9 to 12."""
    config = changed(tiny_config, "data", stage_image_sizes=(8, 8, 16))
    config = changed(config, "model", dropout=(0.1, 0.2, 0.3), drop_path=(0.0, 0.1, 0.2))
    return dataclasses.replace(config, log_every_steps=1)


@pytest.fixture(scope="module")
def staged_run(staged_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run, in which a size is compiled once, and the next one in the background.

    The compile of the last stage ends only once the stage before it has taken its third step.
    """
    folder, sizes = tmp_path_factory.mktemp("runs") / "staged", []
    reached = threading.Event()
    compile_step, log = Training.compile_step, Reporter.log

    def compile_late(self: Training, image_size: int | None = None) -> Any:
        sizes.append(image_size)
        if image_size == 16:
            assert reached.wait(60), "training waits for the next stage's compile"
        return compile_step(self, image_size)

    def note(self: Reporter, at: int, metrics: Any) -> None:
        log(self, at, metrics)
        if at == 7:
            reached.set()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "compile_step", compile_late)
        patch.setattr(Reporter, "log", note)
        outcome = train(staged_config, folder, mesh=one_device())
    assert (outcome.step, outcome.metrics["num_examples"]) == (12, 355)
    assert sizes == [8, 16]
    return folder


def test_the_log_names_the_stages(staged_run: Path) -> None:
    text = (staged_run / "log.txt").read_text()
    assert "12 steps of 32 at 8, 16 px" in text
    for line in ("1 of 3: 8 px from step 1", "2 of 3: 8 px from step 5", "3 of 3: 16 px from "):
        assert f"stage {line}" in text
    assert text.count("compiled the training step") == 2


def test_a_run_of_stages_is_evaluated_at_any_size(staged_run: Path) -> None:
    data = data_of(str(staged_run))
    classifier = ImageClassifier.from_run(staged_run)
    same = classifier.evaluate(data)
    larger = classifier.evaluate(dataclasses.replace(validate_data(data), image_size=24))
    last = read_metrics(staged_run / "metrics.csv")[-1]
    assert same["top1"] == pytest.approx(float(last["eval_top1"]), rel=1e-4)
    assert larger["loss"] != same["loss"]


# Where the size changes, and in a stage.
@pytest.mark.parametrize("step", [8, pytest.param(6, marks=pytest.mark.long)])
def test_a_run_resumes_bit_for_bit_in_a_stage_and_between_two(
    staged_run: Path,
    staged_config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, step - 1, signal.SIGTERM)
        assert train(staged_config, tmp_path, mesh=one_device()).step == step
    assert train(staged_config, tmp_path, mesh=one_device()).step == 12
    assert_same_bits(
        final_state(tmp_path, staged_config, 12), final_state(staged_run, staged_config, 12)
    )


def test_a_run_shows_its_first_batch_and_both_evaluations(
    tiny_config: Config, tmp_path: Path
) -> None:
    config = dataclasses.replace(tiny_config, num_steps=2, log_images=3)
    outcome = train(config, tmp_path, mesh=one_device())
    assert outcome.metrics["raw_loss"] != outcome.metrics["loss"]
    row = read_metrics(tmp_path / "metrics.csv")[-1]
    assert float(row["eval_raw_loss"]) == pytest.approx(outcome.metrics["raw_loss"], rel=1e-4)
    (events,) = tmp_path.glob("events.*")
    assert b"first_batch" in events.read_bytes()
    assert read_metrics(tmp_path / "metrics.csv")[0]["eval_raw_loss"] == ""


def test_without_averages_there_is_one_evaluation(tiny_config: Config, tmp_path: Path) -> None:
    config = changed(dataclasses.replace(tiny_config, num_steps=2), "optimizer", ema_decay=0.0)
    outcome = train(config, tmp_path, mesh=one_device())
    assert "raw_loss" not in outcome.metrics
    (events,) = tmp_path.glob("events.*")
    assert b"first_batch" not in events.read_bytes(), "log_images is 0"
