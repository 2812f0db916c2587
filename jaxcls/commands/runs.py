"""`jaxcls runs`: a table of runs with their progress, state and differences."""

import csv
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from etils import epath

from jaxcls.commands.options import parse
from jaxcls.config import Config
from jaxcls.config.diff import differences, short_names, value_text
from jaxcls.runs.claim import last_writer, writer_status
from jaxcls.runs.directory import RunError, recorded_config
from jaxcls.runs.reporter import metric_columns, read_metrics
from jaxcls.runs.run_state import RunState, recorded_state
from jaxcls.system.errors import UserError
from jaxcls.system.file_names import printable
from jaxcls.system.output import put, say, table
from jaxcls.system.paths import RunPath, is_url, run_path

SILENT_SECONDS = 600  # a run that has not ended is presumed dead after this time without a sign


@dataclasses.dataclass(frozen=True, kw_only=True)
class Runs:
    """Prints a table of runs: their differences, accuracy, progress, state and speed."""

    folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")] = "runs"
    """Folder that contains the runs, at any depth; or one run."""
    diff: Annotated[tuple[str, str] | None, tyro.conf.arg(metavar="RUN RUN")] = None
    """Print only the fields that differ between two runs, given by name as in the table or by
    path."""
    json: bool = False
    """Print one JSON object as the last line."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """The summary of a run, from its files.

    Attributes:
      name: the path of the run in the folder that the table is about.
      config: the config of the training.
      state: "finished", "stopped" (by a signal) or "failed"; "running" or "killed" if its process
        is or was on this machine; "running?" or "killed?" if only recent signs of life are known;
        or "?" for a run of an older version.
      why: the error that it failed with, or the signal that stopped it; else empty.
      step: the last training step that was reported.
      num_steps: the number of steps of the whole training; None if unknown.
      best_top1: the highest accuracy of an evaluation during training, in [0, 1].
      best_map: with several labels an image, the highest mAP of an evaluation, in [0, 1].
      images_per_second: the median speed of the training.
    """

    name: str
    config: Config
    state: str
    why: str
    step: int
    num_steps: int | None
    best_top1: float | None
    best_map: float | None
    images_per_second: float | None


def run(arguments: list[str]) -> int:
    """Runs `jaxcls runs …`; returns the exit status."""
    if "--diff" in arguments:
        after = arguments[arguments.index("--diff") + 1 :][:2]
        if len(after) < 2 or any(word.startswith("--") for word in after):
            raise UserError("--diff: give two runs, named as in the table or as paths")
    options = parse(Runs, "jaxcls runs", arguments)
    if options.diff is not None:
        return _print_differences(options.folder, options.diff, as_json=options.json)
    summaries = list(summarize_all(run_path(options.folder)))
    if not summaries:
        is_there = run_path(options.folder).exists()
        problem = "there is no run in it" if is_there else "there is no such folder"
        raise UserError(f"{options.folder!r}: {problem}; give a folder of runs")
    different = differences([summary.config for summary in summaries])
    say(_describe(summaries, different))
    for summary in summaries:
        if summary.state == "failed":
            say(f"{summary.name} failed: {summary.why}")
        elif summary.state == "stopped" and not summary.step:
            say(f"{summary.name} stopped before its first step; nothing is saved")
    if options.json:
        put(json.dumps({"runs": _as_json(summaries, different)}))
    return 0


def summarize_all(folder: RunPath) -> Iterator[Summary]:
    """Summarizes the runs in a folder, in the order of their names; warns of unreadable ones."""
    for run in find_runs(folder):
        name = str(run)[len(str(folder)) :].strip("/") or run.name
        try:
            yield summarize(run, name=printable(name))
        except (RunError, OSError, ValueError, csv.Error) as error:
            say(f"the table is without {printable(run)}: {error}", sys.stderr)


def find_runs(folder: RunPath) -> Iterator[RunPath]:
    """Yields the folder itself if it is a run, or all runs in it; warns of unreadable folders.

    Raises:
      OSError: the folder itself cannot be read.
    """
    if _is_run(folder):
        yield folder
        return
    for inner in sorted(folder.iterdir(), key=str) if folder.is_dir() else []:
        linked = isinstance(inner, Path) and inner.is_symlink()  # it may lead to a parent folder
        if inner.name.startswith(".") or linked:
            continue
        try:
            yield from find_runs(inner)
        except OSError as error:
            say(f"the table is without {printable(inner)}: {error.strerror}", sys.stderr)


def _is_run(folder: RunPath) -> bool:
    """Whether a folder is a run, and not an export, which also has a config.json."""
    marks = (folder / "state.json", folder / "checkpoints")
    return (folder / "config.json").is_file() and any(mark.exists() for mark in marks)


def summarize(run: RunPath, *, name: str) -> Summary:
    """Summarizes a run from its files.

    Raises:
      RunError: config.json is missing or damaged.
      OSError, ValueError, csv.Error: metrics.csv cannot be read or is damaged.
    """
    config, state, metrics = recorded_config(run), recorded_state(run), run / "metrics.csv"
    rows = read_metrics(metrics) if metrics.is_file() else []
    columns = metric_columns(rows)
    accuracies = _numbers(columns["eval_top1"])
    speeds = _numbers(columns["images_per_second"])
    speeds = speeds[1:] or speeds  # the first value is that of the first step only
    return Summary(
        name=name,
        config=config,
        state=_standing(run, state),
        why="" if state is None else state.why,
        step=int(max(columns["step"], default=0)),
        num_steps=state.num_steps if state is not None else config.num_steps,
        best_top1=max(accuracies, default=None),
        best_map=max(_numbers(columns["eval_map"]), default=None),
        images_per_second=statistics.median_high(speeds) if speeds else None,
    )


def _standing(run: RunPath, state: RunState | None) -> str:
    """The state of a run: what its process recorded last, and whether it still exists."""
    if state is not None and state.state != "running":
        return state.state
    writer = last_writer(run)
    if writer is not None and writer.ended is None:
        status = writer_status(writer, run)
        if status != "unknown":
            return "running" if status == "running" else "killed"
        return _guess(time.time() - writer.renewed)
    # A run of an older version, or one that could not record how it ended.
    if state is None:
        return "?"
    if is_url(run):  # metrics are sent there only after an evaluation
        return "running?"
    news = [path for path in (run / "state.json", run / "metrics.csv") if path.exists()]
    return _guess(time.time() - max(epath.Path(path).stat().mtime for path in news))


def _guess(silent: float) -> str:
    """The probable state of a training on another machine, by seconds since its last sign."""
    return "running?" if silent < SILENT_SECONDS else "killed?"


def _describe(summaries: Sequence[Summary], different: dict[str, tuple[Any, ...]]) -> str:
    short = short_names(different)
    several = any(summary.best_map is not None for summary in summaries)
    best = ["best mAP", "best top-1"] if several else ["best top-1"]
    rows = [["run", *short.values(), *best, "step", "state", "img/s"]]
    for number, summary in enumerate(summaries):
        speed = summary.images_per_second
        scores = [summary.best_map, summary.best_top1] if several else [summary.best_top1]
        rows.append(
            [
                summary.name,
                *(value_text(values[number]) for values in different.values()),
                *("-" if score is None else f"{score:.2%}" for score in scores),
                f"{summary.step}/{summary.num_steps or '?'}",
                summary.state,
                "-" if speed is None else f"{speed:.0f}",
            ]
        )
    return table(rows)


def _as_json(
    summaries: Sequence[Summary], different: dict[str, tuple[Any, ...]]
) -> list[dict[str, Any]]:
    return [
        {
            **{name: value for name, value in vars(summary).items() if name != "config"},
            "differs": {name: values[number] for name, values in different.items()},
        }
        for number, summary in enumerate(summaries)
    ]


def _print_differences(folder: str, names: tuple[str, str], *, as_json: bool) -> int:
    paths = [run_path(folder) / name for name in names]
    runs = [
        path if _is_run(path) else run_path(name) for path, name in zip(paths, names, strict=True)
    ]
    different = differences([recorded_config(run) for run in runs])
    if different:
        rows = [[field, *map(value_text, values)] for field, values in different.items()]
        say(table([["field", *names], *rows]))
    else:
        say("the two runs have the same config")
    if as_json:
        put(json.dumps({"diff": different}))
    return 0


def _numbers(column: Any) -> list[float]:
    """The values of a column without missing ones, which are NaN."""
    return [float(value) for value in column if value == value]
