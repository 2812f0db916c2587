"""Reports a training: progress bar, printed lines, log.txt, metrics.csv and trackers."""

import contextlib
import csv
import functools
import logging
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TextIO

import numpy as np
import rich.progress
from rich.console import Console

from jaxcls.config import Config
from jaxcls.config.decoding import encode_fields, flatten
from jaxcls.runs.directory import RunError, RunLostError
from jaxcls.runs.trackers import TrackedRun, wanted_trackers
from jaxcls.runs.trackers.background import Background
from jaxcls.system.file_names import printable
from jaxcls.system.output import PublicFormatter, drop_reason, may_draw, safe_stream, say
from jaxcls.system.paths import RunPath
from jaxcls.system.terminal_text import public
from jaxcls.system.whole_files import replacing

logger = logging.getLogger("jaxcls")

COLUMNS: tuple[str, ...] = (
    "step",
    "epoch",
    "seconds",
    "learning_rate",
    "loss",
    "top1",
    "top5",
    "grad_norm",
    "images_per_second",
    "data_wait_share",
    "eval_loss",
    "eval_top1",
    "eval_top5",
    "eval_raw_loss",  # of the parameters; eval_loss is that of their moving averages, if any
    "eval_raw_top1",
    "eval_raw_top5",
    "eval_balanced_top1",
    "eval_map",  # with several labels an image
    "eval_micro_f1",
    "eval_macro_f1",
    "eval_raw_map",
)

READER_SECONDS = 30.0  # a training waits this long, once, for a reader that does not read


class Reporter:
    """Shows and records the progress of a training. Only process 0 of a job has one.

    If something cannot be shown or written later, it says so once, and the training continues.
    """

    def __init__(
        self,
        run: RunPath,
        *,
        config: Config,
        num_steps: int,
        steps_per_epoch: float,
        start_step: int,
        start_evaluated: bool = True,
        stream: TextIO | None = None,
    ):
        """Opens the files and trackers.

        Args:
          run: the directory of the run.
          config: its config.
          num_steps: the length of the whole training.
          steps_per_epoch: the length of an epoch.
          start_step: the step that the training begins after.
          start_evaluated: whether the evaluation after that step is saved; if not, its rows
            are removed, because it is repeated.
          stream: where to print (None: stderr).

        Raises:
          RunError: metrics.csv cannot be read or written.
        """
        self._num_steps = num_steps
        self._steps_per_epoch = steps_per_epoch
        self._stream = safe_stream(stream or sys.stderr, patience=READER_SECONDS)
        self._console = Console(file=self._stream, highlight=False, emoji=False, soft_wrap=True)
        self._reported: set[str] = set()
        trackers = wanted_trackers(config)
        self._run = run
        self._folder = run if isinstance(run, Path) else _local_copy(run)
        self._csv = _open_csv(
            self._folder / "metrics.csv", start_step, start_evaluated=start_evaluated
        )
        self._rows = _rows(self._csv)
        self._log = _LogFile(self._folder / "log.txt", self._console_line)
        self._started = time.perf_counter()
        self._last: Mapping[str, float] = {}
        self._progress = rich.progress.Progress(
            rich.progress.BarColumn(bar_width=24),
            rich.progress.TextColumn("{task.completed}/{task.total}"),
            rich.progress.TextColumn("{task.description}"),
            rich.progress.TextColumn("eta"),
            rich.progress.TimeRemainingColumn(compact=True),
            console=self._console,
            disable=not may_draw(self._stream),
        )
        self._task = self._progress.add_task("", total=num_steps, completed=start_step)
        self._progress.start()
        tracked = TrackedRun(
            run=run,
            folder=self._folder,
            start_step=start_step,
            hyperparameters=_hyperparameters(config),
            say=self.say,
        )
        self._trackers = [
            Background(name, functools.partial(begin, tracked), say=self.say)
            for name, begin in trackers.items()
        ]

    def say(self, text: str) -> None:
        """Prints a line above the progress bar, and writes it to log.txt."""
        self._console_line(text)
        self._log.handle(_record(text))
        self._report_dropped_text()

    def _report_dropped_text(self) -> None:
        if problem := drop_reason(self._stream):
            self._say_once(
                "messages",
                f"messages could not be printed ({problem}); the training continues, and log.txt "
                f"has them",
            )

    def _say_once(self, about: str, text: str) -> None:
        if about not in self._reported:
            self._reported.add(about)
            self.say(text)

    def _console_line(self, text: str) -> None:
        self._console.print(public(text), markup=False)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records the training metrics of the steps up to and including `step`."""
        self._last = metrics
        self._report_dropped_text()
        self._write(step, metrics, prefix="train/")
        self._progress.update(self._task, completed=step, description=_describe(metrics))

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records an evaluation after training step `step`, and prints a line of progress."""
        named = {f"eval_{name}": value for name, value in metrics.items()}
        self._write(step, named, prefix="eval/")
        where = f"epoch {step / self._steps_per_epoch:6.1f}  step {step}/{self._num_steps}"
        self.say(
            f"{where}  {_describe(self._last)}  eval {_describe_scores(metrics)}  "
            f"eta {self._eta(step)}"
        )
        self.publish()

    def show(self, step: int, name: str, images: np.ndarray) -> None:
        """Sends images, uint8 [count, height, width, 3], after `step` to the trackers."""
        for tracker in self._trackers:
            tracker.show(step, name, images)

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._progress.stop()
        for tracker in self._trackers:
            tracker.close(failed=kind is not None)
        logger.removeHandler(self._log)
        self._log.close()
        with contextlib.suppress(OSError):  # already reported when a row could not be written
            self._csv.close()
        if kind is not RunLostError:
            self.publish()
        if self._folder != self._run:
            shutil.rmtree(self._folder, ignore_errors=True)

    def publish(self) -> None:
        """Sends log and metrics to the bucket, if the run is in one; a failure is only logged.

        The next call sends the whole files again.
        """
        if self._folder == self._run:
            return
        try:
            for file in filter(Path.is_file, self._folder.iterdir()):
                (self._run / file.name).write_bytes(file.read_bytes())
        except Exception as error:  # the network's, the credentials' and the server's errors
            logger.warning("log and metrics were not sent to %s: %s", self._run, error)

    def _eta(self, step: int) -> str:
        rate = self._last.get("steps_per_second", 0)
        if not rate:
            return "?"
        minutes, seconds = divmod(round((self._num_steps - step) / rate), 60)
        return f"{minutes}:{seconds:02d}"

    def _write(self, step: int, metrics: Mapping[str, float], *, prefix: str) -> None:
        kept = {name: value for name, value in metrics.items() if name in COLUMNS}
        try:
            self._rows.writerow(
                {
                    "step": step,
                    "epoch": f"{step / self._steps_per_epoch:.4f}",
                    "seconds": f"{time.perf_counter() - self._started:.3f}",
                    **{name: f"{value:.6g}" for name, value in kept.items()},
                }
            )
            self._csv.flush()
        except OSError as error:
            self._say_once(
                "metrics.csv",
                f"metrics.csv cannot be written in run {str(self._run)!r} ({error.strerror}); the "
                f"training continues, but rows may be missing there",
            )
        tagged = {prefix + name.removeprefix("eval_"): value for name, value in kept.items()}
        for tracker in self._trackers:
            tracker.log(step, tagged)


class QuietReporter:
    """Takes the place of a `Reporter` in the other processes of a job: shows nothing.

    It may write a log of its own, log.N.txt in process N.
    """

    def __init__(self, log: Path | None):
        self._log = None if log is None else _LogFile(log, _to_stderr)

    def say(self, text: str) -> None:
        """Writes a line to the log."""
        if self._log is not None:
            self._log.handle(_record(text))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes training metrics to the log."""
        self.say(f"step {step}  {_describe(metrics)}")

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes an evaluation to the log."""
        self.say(f"step {step}  eval {_describe_scores(metrics)}")

    def show(self, step: int, name: str, images: np.ndarray) -> None:
        """Does nothing, because process 0 shows the images."""

    def publish(self) -> None:
        """Does nothing, because process 0 sends its files."""

    def __enter__(self) -> "QuietReporter":
        return self

    def __exit__(self, *_: object) -> None:
        if self._log is not None:
            logger.removeHandler(self._log)
            self._log.close()


class _LogFile(logging.FileHandler):
    """A log file, which also receives jaxcls' warnings until it is closed.

    It never raises. If it cannot be written, it reports that once, and still tries each line.
    """

    def __init__(self, path: Path, report: Callable[[str], None]):
        super().__init__(path, encoding="utf-8", errors="backslashreplace", delay=True)
        self.setFormatter(PublicFormatter("%(asctime)s %(message)s"))
        self._path, self._report, self._reported = path, report, False
        logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:  # it cannot be opened
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        if not self._reported:
            self._reported = True
            why = getattr(sys.exception(), "strerror", None) or sys.exception()
            self._report(f"{self._path} cannot be written ({why}); the training continues")

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


def _to_stderr(text: str) -> None:
    say(text, safe_stream(sys.stderr))


def _record(text: str) -> logging.LogRecord:
    return logger.makeRecord(logger.name, logging.INFO, "", 0, text, (), None)


def read_metrics(path: RunPath) -> list[dict[str, str]]:
    """The rows of a run's metrics.csv; a last line cut short by a crash is left out."""
    lines = path.read_text().splitlines(keepends=True)
    whole = (line for line in lines if line.endswith("\n"))
    return [row for row in csv.DictReader(whole) if None not in row.values()]


def metric_columns(rows: Sequence[Mapping[str, str]]) -> dict[str, np.ndarray]:
    """The columns of metrics.csv as float64 [rows], with NaN for values that are missing.

    Raises:
      ValueError: a value is not a number, or a row has no step.
    """
    columns = {name: np.array([float(row.get(name) or "nan") for row in rows]) for name in COLUMNS}
    if not np.isfinite(columns["step"]).all():
        raise ValueError("a row has no step")
    return columns


def _local_copy(run: RunPath) -> Path:
    """Copies the files of a run in a bucket to which lines are appended to a temporary folder.

    Raises:
      RunError: the bucket cannot be read.
    """
    folder = Path(tempfile.mkdtemp(prefix="jaxcls-"))
    try:
        for name in ("metrics.csv", "log.txt"):
            if (run / name).exists():
                (folder / name).write_bytes((run / name).read_bytes())
    except Exception as error:  # the network's, the credentials' and the server's errors
        shutil.rmtree(folder)
        raise RunError(f"run {str(run)!r} cannot be read: {error}") from error
    return folder


def _open_csv(path: Path, start_step: int, *, start_evaluated: bool) -> TextIO:
    """Opens metrics.csv to append, and removes the rows that a resumed run writes again.

    Raises:
      RunError: the file cannot be read or written.
    """
    try:
        rows = read_metrics(path) if path.exists() else []
        rows = [_known(row) for row in rows if int(row["step"]) <= start_step]
        if not start_evaluated:
            rows = [row for row in rows if int(row["step"]) < start_step or not row["eval_loss"]]
        with replacing(path) as temporary, temporary.open("w", newline="") as file:
            writer = _rows(file)
            writer.writeheader()
            writer.writerows(rows)
        return path.open("a", newline="")
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise RunError(
            f"{path} cannot be used ({error}); move it away and run the same command again"
        ) from error


def _rows(file: TextIO) -> "csv.DictWriter[str]":
    return csv.DictWriter(file, COLUMNS, lineterminator="\n")


def _known(row: Mapping[str, str]) -> dict[str, str]:
    return {name: row.get(name, "") for name in COLUMNS}


def _hyperparameters(config: Config) -> dict[str, bool | int | float | str]:
    return {
        name: value if isinstance(value, bool | int | float) else printable(str(value))
        for name, value in flatten(encode_fields(config)).items()
    }


def _describe(metrics: Mapping[str, float]) -> str:
    if "loss" not in metrics:  # nothing was logged yet, or all steps were skipped
        return ""
    return (
        f"loss {metrics['loss']:.4f} top1 {metrics['top1']:.2%}  "
        f"{metrics['images_per_second']:.0f} img/s"
    )


def _describe_scores(metrics: Mapping[str, float]) -> str:
    name = "map" if "map" in metrics else "top1"
    return f"loss {metrics['loss']:.4f} {name} {metrics[name]:.2%}"
