"""The folders of the steps of a run: which are complete, what their records say, which to delete.

This knows names and records, but no arrays. Only the main process of a training calls the methods
that change files.
"""

import json
import logging
import os
import re
from collections.abc import Collection, Mapping
from typing import Any

from etils import epath

from jaxcls.runs.checkpoint_record import checksum, is_record, sealed
from jaxcls.runs.orbax_files import COMMIT_FILE, RECORD_FILE, TEMPORARY
from jaxcls.system.errors import UserError
from jaxcls.system.json_text import parse_json
from jaxcls.system.paths import is_url
from jaxcls.system.whole_files import try_writing, write_whole

logger = logging.getLogger("jaxcls")

_INDEX_FILE = "verified.json"
_ASIDE = re.compile(r"\d+\.(replaced|damaged|pruned)")


class CheckpointError(UserError):
    """A checkpoint that cannot be written or used; the message says which, why and what to do."""


class DamagedError(CheckpointError):
    """A step that is damaged, half-written or missing; another step may be good."""


class StepFolders:
    """The folders `directory/STEP/`, and beside them the list of those that were verified."""

    def __init__(self, directory: str | os.PathLike[str], *, keep_latest: int, keep_best: int):
        """Does not touch the disk; the arguments are those of `Checkpoints`."""
        self.directory = epath.Path(directory if is_url(directory) else os.path.abspath(directory))
        self._keep_latest = keep_latest
        self._keep_best = keep_best

    # What is there

    def path(self, step: int) -> epath.Path:
        """The folder of a step, which need not exist."""
        return self.directory / str(step)

    def _names(self) -> list[str]:
        if not self.directory.is_dir():
            return []
        return sorted(path.name for path in self.directory.iterdir())

    def all(self) -> list[int]:
        """The steps that have a folder, complete or not, ascending."""
        return sorted(int(name) for name in self._names() if re.fullmatch(r"0|[1-9]\d*", name))

    def complete(self) -> list[int]:
        """The steps with a commit marker, ascending; their arrays may still be damaged."""
        marker = COMMIT_FILE if is_url(self.directory) else RECORD_FILE
        return [step for step in self.all() if (self.path(step) / marker).is_file()]

    def warn_of_half_written(self) -> None:
        """Warns of each step that is not complete."""
        complete = {str(step) for step in self.complete()}
        for name in self._names():
            if (name.isdigit() and name not in complete) or TEMPORARY.fullmatch(name):
                logger.warning("checkpoint %s is half-written; ignored", self.directory / name)

    def metrics(self, steps: list[int]) -> dict[int, float | None]:
        """The metric of each step with a good record; warns of the other steps."""
        metrics = {}
        for step in steps:
            try:
                metrics[step] = self.read_record(step)["metric"]
            except DamagedError as error:
                logger.warning("%s; skipped", error)
        return metrics

    def read_index(self) -> list[int]:
        """The steps that were verified last; empty if the list is missing or damaged."""
        try:
            steps = parse_json((self.directory / _INDEX_FILE).read_bytes())["steps"]
            return [step for step in steps if type(step) is int and step >= 0]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except (OSError, ValueError, KeyError, TypeError) as error:  # the index is not essential
            logger.warning("cannot read %s: %r", self.directory / _INDEX_FILE, error)
            return []

    def damaged(self, step: int, problem: str) -> DamagedError:
        """The error of a step with a problem."""
        return DamagedError(f"checkpoint {self.path(step)} cannot be used: {problem}")

    def read_record(self, step: int) -> dict[str, Any]:
        """The record of a step (`checkpoint_record`).

        Raises:
          DamagedError: the step is missing or half-written, or its record is damaged.
        """
        folder = self.path(step)
        if not folder.is_dir():
            existing = ", ".join(map(str, self.complete())) or "none"
            raise self.damaged(step, f"it is missing (existing steps: {existing})")
        if is_url(folder) and not (folder / COMMIT_FILE).exists():
            raise self.damaged(step, f"it is half-written, without {COMMIT_FILE}")
        try:
            content = parse_json((folder / RECORD_FILE).read_bytes())["custom_metadata"]
            record, expected = content["record"], content["sha256"]
        except FileNotFoundError:
            raise self.damaged(step, f"it is half-written, without {RECORD_FILE}") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self.damaged(step, f"cannot read {RECORD_FILE}: {error!r}") from error
        if checksum(record) != expected:
            raise self.damaged(step, f"{RECORD_FILE} is damaged: its checksum is wrong")
        if not is_record(record):  # with a good checksum, somebody has made it
            raise self.damaged(step, f"{RECORD_FILE} is not one that a training writes")
        if record["step"] != step:
            raise self.damaged(step, f"it contains step {record['step']}")
        return record

    # What changes it

    def prepare(self) -> None:
        """Makes the directory, and checks that it can be written; raises what the disk raises."""
        if is_url(self.directory):
            return  # a bucket has no folders, and the write itself is the test
        # Not the run's own directory: if that is gone, it was moved, deleted or unmounted.
        self.directory.mkdir(exist_ok=True)
        try_writing(self.directory / "trial")

    def write_metric(self, step: int, metric: float) -> None:
        """Changes the score in the record of a step."""
        path = self.path(step) / RECORD_FILE
        record = {**self.read_record(step), "metric": metric}
        content = parse_json(path.read_bytes())
        content["custom_metadata"] = sealed(record)
        write_whole(path, json.dumps(content))

    def set_aside(self, step: int, why: str) -> None:
        """Renames the folder of a step, if there is one, to STEP.WHY."""
        if self.path(step).exists():
            aside = self.directory / f"{step}.{why}"
            if aside.exists():
                aside.rmtree()
            self.path(step).rename(aside)

    def _delete(self, step: int) -> None:
        """Deletes a step; if this is cut off, what remains is not taken for a step."""
        folder = self.path(step)
        if is_url(folder):
            (folder / COMMIT_FILE).unlink(missing_ok=True)
        else:
            self.set_aside(step, "pruned")
            folder = self.directory / f"{step}.pruned"
        folder.rmtree()

    def put_back_replaced(self) -> None:
        """Gives steps their names back whose replacement was cut off."""
        complete = self.complete()
        for name in self._names():
            step, _, why = name.partition(".")
            if why == "replaced" and step.isdigit() and int(step) not in complete:
                self.set_aside(int(step), "damaged")
                (self.directory / name).rename(self.path(int(step)))

    def delete_unfinished(self, restored: int) -> None:
        """Deletes what a killed training left of other steps, when step `restored` is good."""
        if is_url(self.directory):
            return
        self._sweep(TEMPORARY, re.compile(rf"\d+\.pruned|{restored}\.replaced"))

    def discard(self, failed: int) -> None:
        """Renames the folder of a failed save, and deletes temporary ones to free disk space."""
        self.set_aside(failed, "damaged")
        self.put_back_replaced()
        self._sweep(TEMPORARY)

    def prune(self, verified: int, suspects: Collection[int]) -> None:
        """Deletes old steps, now that `verified` is safe.

        Keeps those that cannot be read. They, and the `suspects`, which could not be restored, do
        not count among the steps to keep.
        """
        complete, known = self.complete(), self.read_index()
        metrics = self.metrics([step for step in complete if step not in suspects])
        latest = sorted(metrics, reverse=True)[: self._keep_latest]
        keep = {verified, *latest, *best_first(metrics)[: self._keep_best]}
        index = json.dumps({"steps": sorted(keep)})
        written = self._write_index(index)
        # What a killed process leaves of a step that it deletes or, in a bucket, writes.
        unfinished = set(self.all()) - {*complete, *known, verified}
        for step in sorted((set(metrics) - keep) | unfinished):
            self._delete(step)
        self._sweep(TEMPORARY, _ASIDE)
        if not written:  # the disk was full, and may have room now
            write_whole(self.directory / _INDEX_FILE, index)

    def _sweep(self, *patterns: re.Pattern[str]) -> None:
        """Deletes the folders whose names fit one of the patterns."""
        for name in self._names():
            if any(pattern.fullmatch(name) for pattern in patterns):
                (self.directory / name).rmtree()

    def _write_index(self, index: str) -> bool:
        try:
            write_whole(self.directory / _INDEX_FILE, index)
        except Exception:  # errors of a bucket have many types
            return False
        return True


def best_first(metrics: Mapping[int, float | None]) -> list[int]:
    """The steps with a score, highest first; of equal ones the newest first."""
    scored = [(metric, step) for step, metric in metrics.items() if metric is not None]
    return [step for _, step in sorted(scored, reverse=True)]
