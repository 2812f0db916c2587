import csv
import io
import logging
from pathlib import Path

import pytest
from reporting import EVAL, TRAIN, Terminal, open_reporter, scalars

from jaxcls.runs.directory import RunError
from jaxcls.runs.reporter import COLUMNS, Reporter, read_metrics


def test_metrics_are_written_as_rows_of_csv(tmp_path: Path) -> None:
    with open_reporter(tmp_path, io.StringIO()) as reporter:
        reporter.log(2, TRAIN)
        reporter.evaluated(4, EVAL)
        rows = read_metrics(tmp_path / "metrics.csv")  # while the run continues
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


def test_an_evaluation_prints_where_training_is(tmp_path: Path) -> None:
    stream = io.StringIO()
    with open_reporter(tmp_path, stream) as reporter:
        reporter.evaluated(2, EVAL)
        reporter.log(20, TRAIN)
        reporter.evaluated(20, EVAL)
    first, second = stream.getvalue().splitlines()
    assert first == "epoch    0.2  step 2/100    eval loss 0.5000 top1 87.50%  eta ?"
    assert second == (
        "epoch    2.5  step 20/100  loss 1.2500 top1 50.00%  1234 img/s  "
        "eval loss 0.5000 top1 87.50%  eta 0:40"
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


@pytest.mark.parametrize("evaluated", [True, False])
def test_a_resumed_run_drops_the_evaluation_that_it_repeats(
    tmp_path: Path, evaluated: bool
) -> None:
    with open_reporter(tmp_path, io.StringIO()) as reporter:
        for step in (2, 4):
            reporter.log(step, TRAIN)
            reporter.evaluated(step, EVAL)
    with open_reporter(tmp_path, io.StringIO(), start_step=4, start_evaluated=evaluated):
        rows = read_metrics(tmp_path / "metrics.csv")
    kept = [(row["step"], bool(row["eval_loss"])) for row in rows]
    assert kept == [("2", False), ("2", True), ("4", False), ("4", True)][: 4 if evaluated else 3]


def test_a_line_cut_short_anywhere_is_left_out_and_the_run_continues(tmp_path: Path) -> None:
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
    with pytest.raises(RunError, match=r"metrics\.csv cannot be used \(.*\); move it away and run"):
        open_reporter(tmp_path, io.StringIO())
    assert content is None or path.read_text() == content


def test_rows_that_cannot_be_written_are_reported_once_and_training_continues(
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


def test_a_log_that_cannot_be_written_is_reported_once(tmp_path: Path) -> None:
    (tmp_path / "log.txt").symlink_to("/dev/full")
    stream = io.StringIO()
    with open_reporter(tmp_path, stream) as reporter:
        reporter.say("first")
        reporter.say("second")
    first, problem, second = stream.getvalue().splitlines()
    assert (first, second) == ("first", "second")
    assert problem.endswith(
        "log.txt cannot be written (No space left on device); the training continues"
    )


def test_a_log_that_cannot_be_opened_is_reported_once(tmp_path: Path) -> None:
    (tmp_path / "log.txt").mkdir()
    stream = io.StringIO()
    with open_reporter(tmp_path, stream) as reporter:
        reporter.say("first")
        reporter.say("second")
    assert stream.getvalue().count("log.txt cannot be written (Is a directory)") == 1


def test_a_log_takes_a_name_that_is_no_text(tmp_path: Path) -> None:
    with open_reporter(tmp_path, io.StringIO()) as reporter:
        reporter.say("skipped \udcff.jpg")
    assert "skipped \\xff.jpg" in (tmp_path / "log.txt").read_text()


def test_messages_that_nobody_can_read_are_noted_in_the_log(tmp_path: Path) -> None:
    class Gone(Terminal):
        def write(self, _: str) -> int:
            raise BrokenPipeError(32, "Broken pipe")

    with open_reporter(tmp_path, Gone()) as reporter:
        reporter.log(2, TRAIN)
        reporter.say("first")
        reporter.evaluated(2, EVAL)
    log = (tmp_path / "log.txt").read_text()
    assert log.count("messages could not be printed (Broken pipe); the training continues") == 1
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
