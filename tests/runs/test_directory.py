import dataclasses
import json
import logging
import os
from pathlib import Path
from typing import Any

import jax
import pytest

import jaxcls
from jaxcls.config import Config, DataConfig, OptimizerConfig, encode
from jaxcls.runs.directory import (
    RunError,
    RunInfo,
    checkpoint_dir,
    prepare_run,
    record_run,
    recorded_info,
    require_run,
    save_evaluation,
    write_json,
)

INFO = RunInfo(config=Config(num_steps=10), class_names=("cat", "dog"))


def changed(**changes: Any) -> RunInfo:
    return dataclasses.replace(INFO, config=dataclasses.replace(INFO.config, **changes))


def error_of(run: Path, info: RunInfo = INFO) -> str:
    with pytest.raises(RunError) as caught:
        prepare_run(run, info, allow_changes=False)
    return str(caught.value)


def start_run(run: Path, info: RunInfo = INFO, *, allow_changes: bool = False) -> list[str]:
    """What a training does before its first step."""
    changes = prepare_run(run, info, allow_changes=allow_changes)
    record_run(run, info)
    return changes


def record(run: Path) -> dict[str, Any]:
    return json.loads((run / "config.json").read_text())


def test_the_info_survives_json_unchanged() -> None:
    assert RunInfo.from_json(json.loads(json.dumps(INFO.to_json()))) == INFO


def test_a_new_run_records_config_classes_and_versions(tmp_path: Path) -> None:
    run = tmp_path / "deep" / "run"
    assert start_run(run) == []
    assert checkpoint_dir(run).is_dir()
    values = record(run)
    assert values["config"] == encode(INFO.config)
    assert values["class_names"] == ["cat", "dog"]
    assert values["versions"]["jaxcls"] == jaxcls.__version__
    assert values["versions"]["jax"] == jax.__version__
    assert sorted(path.name for path in run.iterdir()) == ["checkpoints", "config.json"]


def test_nothing_is_recorded_before_it_is_sure_that_the_run_continues(tmp_path: Path) -> None:
    start_run(tmp_path)
    assert prepare_run(tmp_path, changed(seed=3), allow_changes=True) == ["seed: 0 -> 3"]
    assert RunInfo.from_json(record(tmp_path)) == INFO


def test_a_record_that_cannot_be_written_names_the_directory(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    with pytest.raises(RunError, match=r"cannot be written \(Is a directory\); use another"):
        record_run(tmp_path, INFO)


def test_a_folder_in_place_of_the_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    with pytest.raises(RunError, match=r"config\.json is a folder; move it away, or use another"):
        recorded_info(tmp_path)


def test_the_same_config_resumes(tmp_path: Path) -> None:
    start_run(tmp_path)
    assert start_run(tmp_path) == []


def test_operational_fields_change_freely_and_are_recorded(tmp_path: Path) -> None:
    start_run(tmp_path)
    info = changed(log_every_steps=5, data=DataConfig(num_workers=2, data_dir="elsewhere"))
    assert start_run(tmp_path, info) == []
    assert RunInfo.from_json(record(tmp_path)) == info


def test_a_changed_config_is_refused_naming_every_change_and_nothing_is_written(
    tmp_path: Path,
) -> None:
    start_run(tmp_path)
    info = changed(seed=3, optimizer=OptimizerConfig(learning_rate=0.5, options={"momentum": 0.9}))
    message = error_of(tmp_path, dataclasses.replace(info, class_names=("cat", "cow")))
    assert message == (
        f"run {str(tmp_path)!r} was started with another config; changed:\n"
        "  optimizer.learning_rate: 0.1 -> 0.5\n"
        "  optimizer.options.momentum: None -> 0.9\n"
        "  seed: 0 -> 3\n"
        "  class names of the data\n"
        "use another --workdir, or --allow-changes to resume with the new values (the network "
        "and the optimizer's state must keep their shapes)"
    )
    assert RunInfo.from_json(record(tmp_path)) == INFO


def test_allowed_changes_are_returned_and_recorded(tmp_path: Path) -> None:
    start_run(tmp_path)
    info = changed(seed=3)
    assert start_run(tmp_path, info, allow_changes=True) == ["seed: 0 -> 3"]
    assert RunInfo.from_json(record(tmp_path)) == info
    assert start_run(tmp_path, info) == []


@pytest.mark.parametrize("below", [".", "run", "deep/run"])
def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path, below: str) -> None:
    file = tmp_path / "file"
    file.write_text("kept")
    message = error_of(file / below)
    assert message.startswith(f"run directory {str(file / below)!r} cannot be written (")
    assert message.endswith("use another --workdir")
    assert file.read_text() == "kept"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is damaged (Expecting value"),
        (b'{"config": {"num_st', "is damaged (Unterminated string"),
        (b"\xff\xfe\x00", "is damaged ('utf-8' codec"),
        (b"[]", "is damaged ("),
        (b"{}", "is damaged ('config')"),
        (b'{"config": {"num_steps": 3}, "class_names": 3}', "is damaged ("),
        (b'{"config": {"num_steps": 3}, "class_names": [3]}', "is damaged ("),
        (b'{"config": {"num_steps": 3}, "class_names": ["a"], "code": 3}', "must be texts"),
        (b'{"config": {"num_steps": 3}, "class_names": ["a"], "weights": {"x": 1}}', "weights.x"),
        (b'{"config": {"num_steps": 3}, "class_names": ["a"], "weights": {"model": "x"}}', "damag"),
        (b'{"config": {"num_step": 3}, "class_names": []}', ": unknown field num_step; did you"),
        (b'{"config": null, "class_names": []}', ": config: expected a group of fields"),
        (b'{"config": {"schema_version": 99}, "class_names": []}', "use a newer jaxcls"),
    ],
)
def test_a_damaged_record_is_named_and_left_as_it_is(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    (tmp_path / "config.json").write_bytes(content)
    message = error_of(tmp_path)
    assert message.startswith(str(tmp_path / "config.json"))
    assert reason in message
    assert "use another --workdir" in message
    assert (tmp_path / "config.json").read_bytes() == content


def test_a_run_to_be_read_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"run '.*/gone' does not exist; train it with: jaxcls tr"):
        require_run(tmp_path / "gone")
    with pytest.raises(
        RunError,
        match="is not a run, so it has no checkpoint; train one there with: jaxcls train CONFIG",
    ):
        require_run(tmp_path)
    (tmp_path / "weights.safetensors").touch()
    with pytest.raises(RunError, match=r"is an export, not a run; give its file weights\.safeten"):
        require_run(tmp_path)
    start_run(tmp_path)
    assert require_run(tmp_path) == tmp_path


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "values.json"
    write_json(path, {"a": 1})
    assert json.loads(path.read_text()) == {"a": 1}
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["values.json"]


def test_an_evaluation_is_saved_beside_the_run(tmp_path: Path) -> None:
    save_evaluation(tmp_path, {"top1": 0.5, "step": 3})
    assert json.loads((tmp_path / "eval.json").read_text()) == {"top1": 0.5, "step": 3}


def test_an_evaluation_that_cannot_be_saved_is_only_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with caplog.at_level(logging.WARNING, logger="jaxcls"):
        save_evaluation(file, {"top1": 0.5})
    assert caplog.messages == [f"cannot write eval.json in {file}: Not a directory"]


def test_other_training_data_is_a_change(tmp_path: Path) -> None:
    """A newer version of the set, or another number of images, would change the order."""
    start_run(tmp_path, dataclasses.replace(INFO, data="version 1.0.0, 10 examples"))
    newer = dataclasses.replace(INFO, data="version 1.1.0, 12 examples")
    assert (
        "training data: 'version 1.0.0, 10 examples' -> 'version 1.1.0, 12 examples'"
        in error_of(tmp_path, newer)
    )


def test_a_run_that_did_not_record_its_data_resumes(tmp_path: Path) -> None:
    start_run(tmp_path)
    assert start_run(tmp_path, dataclasses.replace(INFO, data="10 examples")) == []
