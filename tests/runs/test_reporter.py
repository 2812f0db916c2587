import csv
import dataclasses
import io
import logging
import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import wandb
from PIL import Image
from tensorboardX.proto import event_pb2, plugin_hparams_pb2
from tensorboardX.record_writer import RecordWriter
from wandb.proto import wandb_internal_pb2

from jaxcls.config import Config
from jaxcls.runs.directory import RunError
from jaxcls.runs.reporter import COLUMNS, Reporter, read_metrics
from jaxcls.system.errors import UserError

TRAIN = {
    "loss": 1.25,
    "top1": 0.5,
    "top5": 0.75,
    "grad_norm": 2.0,
    "learning_rate": 0.1,
    "images_per_second": 1234.4,
    "steps_per_second": 2.0,
    "data_wait_share": 0.01,
}
CONFIG = Config(num_steps=100)
EVAL = {"loss": 0.5, "top1": 0.875, "top5": 1.0, "num_examples": 360}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def open_reporter(run: Path, stream: io.StringIO, *, start_step: int = 0) -> Reporter:
    return Reporter(
        run, config=CONFIG, num_steps=100, steps_per_epoch=8.0, start_step=start_step, stream=stream
    )


def values(run: Path) -> Iterator[tuple[int, Any]]:
    """(step, value) of all TensorBoard events of a run, in the order of the files."""
    for path in sorted(run.glob("events.*")):
        content = path.read_bytes()
        while content:  # length, its checksum, an event, its checksum
            (length,) = struct.unpack("<Q", content[:8])
            event = cast(Any, event_pb2).Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            for value in event.summary.value:
                yield event.step, value


def scalars(run: Path) -> Iterator[tuple[str, int, float]]:
    """(tag, step, value) of what is no picture and no table of hyper-parameters."""
    for step, value in values(run):
        if not value.HasField("image") and not value.tag.startswith("_hparams_"):
            yield value.tag, step, value.simple_value


def test_metrics_are_written_as_rows_of_csv(tmp_path: Path) -> None:
    with open_reporter(tmp_path, io.StringIO()) as reporter:
        reporter.log(2, TRAIN)
        reporter.evaluated(4, EVAL)
        rows = read_metrics(tmp_path / "metrics.csv")  # while the run goes on
    assert [row["step"] for row in rows] == ["2", "4"]
    train, evaluation = rows
    assert tuple(train) == COLUMNS
    assert train["epoch"] == "0.2500"
    assert float(train["seconds"]) >= 0
    assert train["loss"] == "1.25"
    assert train["images_per_second"] == "1234.4"
    assert train["eval_top1"] == ""
    assert evaluation["eval_loss"] == "0.5"
    assert evaluation["eval_top1"] == "0.875"
    assert evaluation["eval_top5"] == "1"
    assert evaluation["loss"] == ""


def test_metrics_csv_ends_its_lines_as_unix_does(tmp_path: Path) -> None:
    with open_reporter(tmp_path, io.StringIO()) as reporter:
        reporter.log(2, TRAIN)
    content = (tmp_path / "metrics.csv").read_bytes()
    assert content.startswith(",".join(COLUMNS).encode() + b"\n2,")
    assert b"\r" not in content


def test_metrics_go_to_tensorboard_by_training_and_evaluation(tmp_path: Path) -> None:
    with open_reporter(tmp_path, io.StringIO()) as reporter:
        reporter.log(2, TRAIN)
        reporter.evaluated(4, EVAL)
    found = {(tag, step): value for tag, step, value in scalars(tmp_path)}
    assert found["train/loss", 2] == 1.25
    assert found["train/learning_rate", 2] == pytest.approx(0.1)
    assert found["eval/loss", 4] == 0.5
    assert found["eval/top1", 4] == 0.875
    assert found["eval/top5", 4] == 1.0
    assert {tag for tag, _ in found} == {
        "train/learning_rate",
        "train/loss",
        "train/top1",
        "train/top5",
        "train/grad_norm",
        "train/images_per_second",
        "train/data_wait_share",
        "eval/loss",
        "eval/top1",
        "eval/top5",
    }


def test_averages_and_raw_parameters_stand_side_by_side(tmp_path: Path) -> None:
    with open_reporter(tmp_path, io.StringIO()) as reporter:
        reporter.evaluated(4, EVAL | {"raw_loss": 0.75, "raw_top1": 0.5, "raw_top5": 0.9})
    found = {(tag, step): value for tag, step, value in scalars(tmp_path)}
    assert (found["eval/top1", 4], found["eval/raw_top1", 4]) == (0.875, 0.5)
    (row,) = read_metrics(tmp_path / "metrics.csv")
    assert (row["eval_loss"], row["eval_raw_loss"]) == ("0.5", "0.75")


def test_tensorboard_has_the_config_as_hyper_parameters(tmp_path: Path) -> None:
    with open_reporter(tmp_path, io.StringIO()):
        pass
    (start,) = [v for _, v in values(tmp_path) if v.tag == "_hparams_/session_start_info"]
    content = cast(Any, plugin_hparams_pb2).HParamsPluginData.FromString(
        start.metadata.plugin_data.content
    )
    given = content.session_start_info.hparams
    assert given["optimizer.learning_rate"].number_value == CONFIG.optimizer.learning_rate
    assert given["model.name"].string_value == CONFIG.model.name
    assert given["model.remat"].bool_value is False


def test_tensorboard_shows_images(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), np.uint8)
    with open_reporter(tmp_path, io.StringIO()) as reporter:
        reporter.show(0, "first_batch", images)
    (image,) = [v.image for _, v in values(tmp_path) if v.tag == "first_batch"]
    pixels = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))
    assert (pixels[:5, :7] == images[0]).all()
    assert (pixels[-5:, -7:] == images[1]).all()


def test_metrics_go_to_weights_and_biases_under_one_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = dataclasses.replace(CONFIG, wandb_project="digits")

    def reporter(start_step: int) -> Reporter:
        return Reporter(
            tmp_path,
            config=config,
            num_steps=100,
            steps_per_epoch=8.0,
            start_step=start_step,
            stream=io.StringIO(),
        )

    with reporter(0) as first:
        first.log(2, TRAIN)
        first.evaluated(4, EVAL)
        first.show(0, "first_batch", np.zeros((1, 4, 4, 3), np.uint8))
    time.sleep(1)  # its library names folders by the second
    with reporter(4) as second:
        second.log(6, TRAIN | {"loss": 0.25})
    files = sorted((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    ids, history = set(), []
    for file in files:
        for record in wandb_records(file):
            if record.HasField("run"):
                ids.add(record.run.run_id)
            if record.HasField("history"):
                items = record.history.item
                history.append({i.key or i.nested_key[0]: i.value_json for i in items})
    assert ids == {(tmp_path / "wandb_id.txt").read_text()}
    rows = [{"step": row["step"], **row} for row in history]
    assert [(row["step"], row.get("train/loss")) for row in rows if "train/loss" in row] == [
        ("2", "1.25"),
        ("6", "0.25"),
    ]
    assert any(row.get("eval/top1") == "0.875" for row in rows)
    assert any("first_batch" in row for row in rows)


def wandb_records(file: Path) -> Iterator[Any]:
    """What its library would send, from its file: a log of LevelDB's format behind 7 bytes."""
    content = file.read_bytes()
    assert len(content) < 2**15, "more than one block"
    place = 7
    while place < len(content):  # checksum, length, kind, record
        _, length, kind = struct.unpack_from("<IHB", content, place)
        assert kind == 1, "whole records"
        place += 7
        yield cast(Any, wandb_internal_pb2).Record.FromString(content[place : place + length])
        place += length


def test_weights_and_biases_that_refuses_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise wandb.Error("api_key not configured (no-tty)")

    monkeypatch.setattr(wandb, "init", refuse)
    monkeypatch.setattr(wandb, "teardown", lambda **_: None)
    config = dataclasses.replace(CONFIG, wandb_project="digits")
    stream = io.StringIO()
    with Reporter(
        tmp_path, config=config, num_steps=9, steps_per_epoch=8.0, start_step=0, stream=stream
    ) as reporter:
        reporter.log(2, TRAIN)
        reporter.log(4, TRAIN)
    assert stream.getvalue().count("Weights & Biases has failed (api_key not configured") == 1
    assert len(read_metrics(tmp_path / "metrics.csv")) == 2


WANDB_DIES = """
import pathlib, sys, time
import psutil
from jaxcls.distributed.job import end_with
from jaxcls.config import Config
from jaxcls.runs.reporter import Reporter

metrics = {"loss": 1.0, "top1": 0.5, "images_per_second": 9.0}
config = Config(num_steps=9, wandb_project="digits")
with Reporter(
    pathlib.Path(sys.argv[1]), config=config, num_steps=9, steps_per_epoch=8.0, start_step=0
) as reporter:
    reporter.log(1, metrics)
    while reporter._trackers[1]._calls.qsize():
        time.sleep(0.05)
    (service,) = [one for one in psutil.Process().children() if "wandb" in one.name()]
    service.kill()
    for step in range(2, 10):
        reporter.log(step, metrics)
end_with(0)
"""


def test_weights_and_biases_whose_process_dies_is_said_once(tmp_path: Path) -> None:
    # In a process of its own: the library's state is the whole process'.
    done = subprocess.run(
        [sys.executable, "-c", WANDB_DIES, str(tmp_path)],
        env={k: v for k, v in os.environ.items() if k != "WANDB_SERVICE"}
        | {"WANDB_MODE": "offline"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0
    assert done.stderr.count("Weights & Biases has failed") == 1
    assert len(read_metrics(tmp_path / "metrics.csv")) == 9


def test_weights_and_biases_without_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = dataclasses.replace(CONFIG, wandb_project="digits")
    with pytest.raises(UserError, match=r"wandb_project.*jaxcls\[wandb\]"):
        Reporter(tmp_path, config=config, num_steps=9, steps_per_epoch=8.0, start_step=0)


def test_an_evaluation_prints_where_training_is(tmp_path: Path) -> None:
    stream = io.StringIO()
    with open_reporter(tmp_path, stream) as reporter:
        reporter.evaluated(2, EVAL)
        reporter.log(20, TRAIN)
        reporter.evaluated(20, EVAL)
    first, second = stream.getvalue().splitlines()
    assert first == "epoch    0.2  step 2/100    test loss 0.5000 top1 87.50%  eta ?"
    assert second == (
        "epoch    2.5  step 20/100  loss 1.2500 top1 50.00%  1234 img/s  "
        "test loss 0.5000 top1 87.50%  eta 0:40"
    )


def test_lines_are_printed_as_they_are(tmp_path: Path) -> None:
    stream = io.StringIO()
    text = "[bold]runs/x[/] " + "long " * 60 + "tfds:car:1.0.0"
    with open_reporter(tmp_path, stream) as reporter:
        reporter.say(text)
    assert stream.getvalue() == text + "\n"


def test_without_a_terminal_there_is_no_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as GitHub's machines have it
    stream = io.StringIO()
    with open_reporter(tmp_path, stream) as reporter:
        reporter.log(2, TRAIN)
    assert stream.getvalue() == ""


def test_a_terminal_shows_a_bar_with_loss_accuracy_speed_and_eta(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    for name in ("CI", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    stream = Terminal()
    with open_reporter(tmp_path, stream, start_step=10) as reporter:
        reporter.log(12, TRAIN)
    shown = stream.getvalue()
    assert "12/100" in shown
    assert "loss 1.2500 top1 50.00%  1234 img/s" in shown
    assert "eta" in shown


def test_a_resumed_run_drops_the_rows_that_it_takes_again(tmp_path: Path) -> None:
    with open_reporter(tmp_path, io.StringIO()) as reporter:
        for step in (2, 4, 6, 8):
            reporter.log(step, TRAIN)
    with open_reporter(tmp_path, io.StringIO(), start_step=4) as reporter:
        reporter.log(6, TRAIN | {"loss": 9.0})
    rows = read_metrics(tmp_path / "metrics.csv")
    assert [(row["step"], row["loss"]) for row in rows] == [
        ("2", "1.25"),
        ("4", "1.25"),
        ("6", "9"),
    ]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_line_cut_short_anywhere_is_left_out_and_the_run_goes_on(tmp_path: Path) -> None:
    with open_reporter(tmp_path, io.StringIO()) as reporter:
        reporter.log(2, TRAIN)
        reporter.evaluated(4, EVAL | {"top5": 0.98765})
    path = tmp_path / "metrics.csv"
    content = path.read_bytes()
    start_of_last = content[:-1].rindex(b"\n") + 1
    for end in range(start_of_last, len(content)):
        path.write_bytes(content[:end])
        assert [row["step"] for row in read_metrics(path)] == ["2"], content[start_of_last:end]
    with open_reporter(tmp_path, io.StringIO(), start_step=8) as reporter:
        reporter.log(10, TRAIN)
    assert [row["step"] for row in read_metrics(path)] == ["2", "10"]


@pytest.mark.parametrize("content", ["step,loss\nx,1.5\n", "loss\n1.5\n", "step\n\0\xff\n", None])
def test_a_metrics_file_that_cannot_be_used_is_named_and_left(
    tmp_path: Path, content: str | None
) -> None:
    path = tmp_path / "metrics.csv"
    path.mkdir() if content is None else path.write_text(content)
    with pytest.raises(
        RunError, match=r"metrics\.csv cannot be used \(.*\); move it away and give"
    ):
        open_reporter(tmp_path, io.StringIO())
    assert content is None or path.read_text() == content


def test_rows_that_cannot_be_written_are_said_once_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    stream = io.StringIO()
    with open_reporter(tmp_path, stream) as reporter:
        with monkeypatch.context() as patch:
            patch.setattr(reporter._rows, "writerow", full)
            reporter.log(2, TRAIN)
            reporter.log(4, TRAIN)
        reporter.log(6, TRAIN)
    assert stream.getvalue().count("metrics.csv cannot be written") == 1
    assert "(No space left on device)" in stream.getvalue()
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.csv")] == ["6"]
    assert ("train/loss", 4, 1.25) in set(scalars(tmp_path))


def test_files_on_a_full_disk_do_not_fail_the_end(tmp_path: Path) -> None:
    def leave_lines_and_fail(reporter: Reporter) -> None:
        reporter._csv.close()
        reporter._csv = rows
        rows.write("a row")
        reporter._log.setStream(log)
        reporter.say("still shown")
        raise RuntimeError("the first error")

    stream = io.StringIO()
    with Path("/dev/full").open("w") as log, Path("/dev/full").open("w") as rows:
        reporter = open_reporter(tmp_path, stream)
        with pytest.raises(RuntimeError, match="the first error"), reporter:
            leave_lines_and_fail(reporter)
    assert "still shown" in stream.getvalue()


def test_a_log_that_cannot_be_written_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "log.txt").symlink_to("/dev/full")
    stream = io.StringIO()
    with open_reporter(tmp_path, stream) as reporter:
        reporter.say("first")
        reporter.say("second")
    first, problem, second = stream.getvalue().splitlines()
    assert (first, second) == ("first", "second")
    assert problem.endswith(
        "log.txt cannot be written (No space left on device); the training goes on without it"
    )


def test_a_log_that_cannot_be_opened_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "log.txt").mkdir()
    stream = io.StringIO()
    with open_reporter(tmp_path, stream) as reporter:
        reporter.say("first")
        reporter.say("second")
    assert stream.getvalue().count("log.txt cannot be written (Is a directory)") == 1


def test_a_log_takes_a_name_that_is_no_text(tmp_path: Path) -> None:
    with open_reporter(tmp_path, io.StringIO()) as reporter:
        reporter.say("skipped \udcff.jpg")
    assert "skipped \\udcff.jpg" in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize("act", ["flush", "write", "close"])
def test_tensorboard_that_cannot_write_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    close = RecordWriter.close
    monkeypatch.setattr(RecordWriter, act, lambda self, *_: [close(self), full()])
    stream = io.StringIO()
    with open_reporter(tmp_path, stream) as reporter:
        for step in range(2, 40):
            reporter.log(step, TRAIN)
    assert stream.getvalue().count("TensorBoard's file has failed") == 1
    assert len(read_metrics(tmp_path / "metrics.csv")) == 38


def test_messages_that_nobody_can_read_are_noted_in_the_log(tmp_path: Path) -> None:
    class Gone(Terminal):
        def write(self, _: str) -> int:
            raise BrokenPipeError(32, "Broken pipe")

    with open_reporter(tmp_path, Gone()) as reporter:
        reporter.log(2, TRAIN)
        reporter.say("first")
        reporter.evaluated(2, EVAL)
    log = (tmp_path / "log.txt").read_text()
    assert log.count("messages could not be printed (Broken pipe); the training goes on") == 1
    assert "first" in log


def test_columns_of_another_version_are_carried_over_by_name(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,gone,loss\n2,7,1.5\n")
    with open_reporter(tmp_path, io.StringIO(), start_step=4):
        pass
    with path.open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row == dict.fromkeys(COLUMNS, "") | {"step": "2", "loss": "1.5"}


def test_lines_and_warnings_are_kept_in_the_log(tmp_path: Path) -> None:
    logger = logging.getLogger("jaxcls")
    before = list(logger.handlers)
    for text in ("first", "again"):
        with open_reporter(tmp_path, io.StringIO()) as reporter:
            reporter.say(text)
            logger.warning("skipped %s", "cat.jpg")
    logger.warning("too late")
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == [
        *("first", "skipped cat.jpg", "again", "skipped cat.jpg")
    ]
    assert logger.handlers == before
