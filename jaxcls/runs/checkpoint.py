"""Verified checkpoints: save, read back, fall back, restore. Only this module imports Orbax.

The files, in one directory of a run:

    20/              one step, which Orbax writes under a temporary name and renames when complete;
                     in a bucket it has its final name, and commit_success.txt when complete
    verified.json    the steps that were read back without damage, so that a missing one is noticed

The arrays of a state are saved flat, under readable names (`params/stem/conv/kernel`), so that a
checkpoint can be read without the classes that made it. Each step has a *record*: the caller's
metadata and metric, and the shape, dtype and digest of each array, all under one checksum.
"""

import concurrent.futures
import contextlib
import dataclasses
import glob
import hashlib
import itertools
import json
import logging
import os
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from orbax.checkpoint import v1 as ocp

from jaxcls.distributed.agree import announce, announced, client, first_problem, is_main_process
from jaxcls.runs.directory import RunLostError
from jaxcls.runs.fingerprint import (
    fingerprint,
    fingerprint_numpy,
    flatten,
    name_damaged,
    name_mismatches,
)
from jaxcls.system.errors import UserError
from jaxcls.system.json_text import parse_json
from jaxcls.system.paths import is_url
from jaxcls.system.whole_files import try_writing, write_whole

logger = logging.getLogger("jaxcls")

_RECORD_FILE = "_CHECKPOINT_METADATA"  # Orbax's; the last file it writes before the rename
_COMMIT_FILE = "commit_success.txt"  # Orbax's; the last file in a bucket, which has no rename
_INDEX_FILE = "verified.json"
_TEMPORARY = re.compile(r"\d+\.orbax-checkpoint-tmp.*")
_ASIDE = re.compile(r"\d+\.(replaced|damaged|pruned)")
_POLL_SECONDS = 0.5
_LAST_WRITE_SECONDS = 30.0  # Orbax may wait much longer for a directory that is gone
_saves = itertools.count()  # the same in all processes


class CheckpointError(UserError):
    """A checkpoint that cannot be written or used; the message says which, why and what to do."""


class _DamagedError(CheckpointError):
    """A step that is damaged, half-written or missing; another step may be good."""


@dataclasses.dataclass(frozen=True)
class _Save:
    """A save in the background.

    Attributes:
      step: the step.
      problem: what went wrong in this process, or None.
      failure: the event that a process announces if the save fails there.
    """

    step: int
    problem: concurrent.futures.Future[str | None]
    failure: str

    def await_problem(self) -> str | None:
        """Waits for the save, unless another process fails: Orbax would then wait for minutes."""
        while not announced(self.failure):
            with contextlib.suppress(TimeoutError):
                return self.problem.result(timeout=_POLL_SECONDS)
        return self.problem.result() if self.problem.done() else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Restored:
    """What `Checkpoints.restore` found.

    Attributes:
      step: the training step that was restored; after a fallback, not the newest or the best.
      state: a tree like the template, of arrays with the template's shardings.
      metadata: the metadata that was saved with the step.
      metric: its score, or None.
    """

    step: int
    state: Any
    metadata: dict[str, Any]
    metric: float | None


class Checkpoints:
    """The verified checkpoints of one run: `directory/STEP/`.

    All processes of a run must call the same methods in the same order, on a shared directory.
    """

    def __init__(
        self, directory: str | os.PathLike[str], *, keep_latest: int = 2, keep_best: int = 1
    ):
        """Does not touch the disk: the first save creates the directory.

        Args:
          directory: the directory that contains the folders of the steps.
          keep_latest: how many of the newest steps to keep, at least 1.
          keep_best: how many of the steps with the highest metric to keep in addition.
        """
        if keep_latest < 1 or keep_best < 0:
            raise CheckpointError(
                "keep_latest must be at least 1 and keep_best at least 0, "
                f"not {keep_latest} and {keep_best}"
            )
        self.directory = epath.Path(directory if is_url(directory) else os.path.abspath(directory))
        self._keep_latest = keep_latest
        self._keep_best = keep_best
        self._executor = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._pending: _Save | None = None
        self._link: epath.Path | None = None  # to the directory

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        lost = exc_type is not None and issubclass(exc_type, RunLostError)
        if lost and self._pending is not None:
            # A write that is in progress is completed, but a run of others is not tidied up.
            concurrent.futures.wait([self._pending.problem], _LAST_WRITE_SECONDS)
        if lost or (exc_type is not None and client() is not None):
            # The other processes may not take part in checking the last save; the next start does.
            self._pending = None
            self._executor.shutdown(wait=False)
            return
        try:
            self.close()
        except CheckpointError as error:
            if exc_type is None:
                raise
            logger.error("%s", error)  # the error that is being raised matters more

    def save(
        self, step: int, state: Any, *, metadata: Mapping[str, Any], metric: float | None = None
    ) -> None:
        """Starts saving `state`; returns as soon as its arrays may be donated.

        The step is written and read back in the background. The next `save`, `wait` or `close`
        checks the result, and only then deletes older steps. If the step exists already, it is kept
        if it is good and the same, and replaced otherwise.

        Args:
          step: the training step, which names the folder; the highest is the "latest".
          state: a tree of `jax.Array`.
          metadata: JSON to save with the step.
          metric: the score of the step, higher is better; a step without one is never "best".

        Raises:
          CheckpointError: the directory cannot be written, the metadata is not JSON, or the
            *previous* save failed. Then nothing older is deleted, and this step is not saved.
        """
        self.wait()
        failure = f"save {next(_saves)} failed"
        arrays = flatten(state)
        record = _make_record(step, arrays, metadata=metadata, metric=metric)
        _raise_together(self._by_main_process(self._prepare_directory))
        if first_problem("it exists" if self._folder(step).exists() else None):
            problem = first_problem(self._read_back(step, record))
            if problem is None:
                logger.info("checkpoint %s exists already", self._folder(step))
                return
            logger.warning("replacing checkpoint %s: %s", self._folder(step), problem)
            _raise_together(self._by_main_process(lambda: self._set_aside(step, "replaced")))
        try:
            response = ocp.save_async(
                str(self._directory_for_orbax() / str(step)),
                {path: array for path, array in arrays.items() if array.size},
                custom_metadata={"record": record, "sha256": _checksum(record)},
            )
        except Exception as error:  # Orbax and TensorStore raise many types
            # Told by `wait`, as other failures are: the other processes may not have this one.
            announce(failure)
            problem = concurrent.futures.Future[str | None]()
            problem.set_result(self._not_written(step, error))
            self._pending = _Save(step, problem, failure)
            return

        def finish() -> str | None:
            problem = self._finish(step, record, response)
            if problem is not None:
                announce(failure)
            return problem

        self._pending = _Save(step, self._executor.submit(finish), failure)

    def set_metric(self, step: int, metric: float) -> None:
        """Gives a step that was saved without a metric its score; its arrays are not written again.

        Raises:
          CheckpointError: the step is damaged, or cannot be written.
        """

        def write() -> None:
            path = self._folder(step) / _RECORD_FILE
            record = {**self._read_record(step), "metric": metric}
            content = parse_json(path.read_bytes())
            content["custom_metadata"] = {"record": record, "sha256": _checksum(record)}
            write_whole(path, json.dumps(content))

        _raise_together(self._by_main_process(write))

    def put_back_replaced(self) -> None:
        """Gives a step its name back if its replacement was cut off; only a training calls it."""
        problem = self._by_main_process(self._put_back_replaced)
        if first_problem(problem):  # all processes wait here for the main process
            logger.warning("%s", problem)

    def delete_leftovers(self, restored: int) -> None:
        """Deletes what a killed training left of other steps; only a training calls it.

        Args:
          restored: the step that was restored, so it is good.
        """
        if is_url(self.directory):
            return

        def act() -> None:
            for name in self._names():
                pruned = name.endswith(".pruned") and _ASIDE.fullmatch(name)
                if pruned or _TEMPORARY.fullmatch(name) or name == f"{restored}.replaced":
                    (self.directory / name).rmtree()

        if problem := self._by_main_process(act):
            logger.warning("%s", problem)

    def failed(self) -> bool:
        """Whether the last save is known to have failed, in any process; does not wait for it."""
        if self._pending is None:
            return False
        problem = self._pending.problem
        return first_problem(problem.result() if problem.done() else None) is not None

    def wait(self) -> int | None:
        """Waits until the last save is on disk and verified, and old steps are deleted.

        Returns:
          Its step, or None if no save was waited for.

        Raises:
          CheckpointError: the last save failed, or was damaged when it was read back. Nothing older
            was deleted. The error is raised only once.
        """
        if self._pending is None:
            return None
        save, self._pending = self._pending, None
        problem, step = first_problem(save.await_problem()), save.step
        if not save.problem.done():  # another process has failed, and Orbax still waits for it
            self._executor.shutdown(wait=False)
            self._executor = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        tidy_up = self._discard if problem else self._prune
        untidy = self._by_main_process(lambda: tidy_up(step))
        if first_problem(untidy):  # all processes wait here for the main process
            logger.warning("%s", untidy)
        _raise_together(problem)
        return step

    def close(self) -> None:
        """Waits for the last save and ends the background thread; raises as `wait`."""
        try:
            self.wait()
        finally:
            self._executor.shutdown()
            if self._link:
                shutil.rmtree(self._link.parent)

    def steps(self) -> list[int]:
        """The steps that are complete, ascending. If there is none, warns of half-written ones."""
        complete = self._complete()
        if not complete:
            self._warn_of_half_written()
        return complete

    def any_saved(self) -> bool:
        """Whether a step was ever saved here, even if it can no longer be read."""
        return bool(self.steps() or self._read_index())

    def metadata(self, step: int | Literal["latest", "best"] = "latest") -> dict[str, Any]:
        """Reads the metadata of a step, but no arrays. Falls back and raises as `restore`."""
        return self._first_good(step, lambda number: self._read_record(number)["metadata"])

    def restore(
        self,
        template: Any,
        step: int | Literal["latest", "best"] = "latest",
        *,
        subset: bool = False,
        optional: Collection[str] = (),
    ) -> Restored:
        """Reads a step and checks every digest; falls back to another step if it is damaged.

        Args:
          template: a tree of `jax.ShapeDtypeStruct` or arrays, whose shardings the restored arrays
            get; an array without a sharding is placed on the first device.
          step: the training step to restore: "latest", the newest good one; "best", the good one
            with the highest metric; or a number, exactly that one, without a fallback. A warning
            names each step that is skipped.
          subset: whether the template names only some of the saved arrays; the others are not read.
          optional: names of arrays that the template or the step may lack; zeros if the step does.

        Raises:
          CheckpointError: there is no such step, no step is good, or its arrays differ from the
            template; the message names these arrays.
        """
        self.wait()
        targets = flatten(template)

        def read(number: int) -> Restored:
            record = self._read_together(number)
            arrays = record["arrays"]
            wanted = {
                name: x for name, x in targets.items() if name in arrays or name not in optional
            }
            saved = {
                name: arrays[name]
                for name in arrays
                if name in targets or not (subset or name in optional)
            }
            mismatches = name_mismatches(saved, wanted)
            if mismatches:  # another model, not damage
                raise CheckpointError(
                    f"checkpoint {self._folder(number)} does not fit the network and optimizer of "
                    f"the config ({mismatches}); resume with the config that it was saved with, or "
                    f"start a new run in another directory"
                )
            arrays = self._load(number, wanted)
            damaged = name_damaged(saved, fingerprint(arrays))
            if damaged:  # the same digests, hence the same answer, in every process
                raise self._damaged(number, f"damaged arrays: {damaged}")
            arrays |= {name: _zeros(x) for name, x in targets.items() if name not in wanted}
            leaves = [arrays[name] for name in targets]
            state = jax.tree.unflatten(jax.tree.structure(template), leaves)
            return Restored(
                step=number, state=state, metadata=record["metadata"], metric=record["metric"]
            )

        return self._first_good(step, read)

    # Finding a good step.

    def _folder(self, step: int) -> epath.Path:
        return self.directory / str(step)

    def _directory_for_orbax(self) -> epath.Path:
        """The directory by a name without wildcards.

        Orbax lists the files of a save by a pattern that begins with the directory's name, and
        would find none under a name such as run[1].
        """
        name = str(self.directory)
        if is_url(name) or glob.escape(name) == name:
            return self.directory
        if self._link is None:
            self._link = epath.Path(tempfile.mkdtemp(prefix="jaxcls-")) / "checkpoints"
            os.symlink(self.directory, self._link)
        return self._link

    def _names(self) -> list[str]:
        if not self.directory.is_dir():
            return []
        return sorted(path.name for path in self.directory.iterdir())

    def _folders(self) -> list[int]:
        return sorted(int(name) for name in self._names() if re.fullmatch(r"0|[1-9]\d*", name))

    def _complete(self) -> list[int]:
        marker = _COMMIT_FILE if is_url(self.directory) else _RECORD_FILE
        return [step for step in self._folders() if (self._folder(step) / marker).is_file()]

    def _warn_of_half_written(self) -> None:
        complete = {str(step) for step in self._complete()}
        for name in self._names():
            if (name.isdigit() and name not in complete) or _TEMPORARY.fullmatch(name):
                logger.warning("checkpoint %s is half-written; ignored", self.directory / name)

    def _first_good[T](self, which: int | str, read: Callable[[int], T]) -> T:
        if isinstance(which, int):
            return read(which)
        assert which in ("latest", "best"), which
        self._warn_of_half_written()
        # Missing steps that are in the index are tried too, so that a warning names them.
        steps = sorted({*self._folders(), *self._read_index()}, reverse=True)
        candidates = steps if which == "latest" else _best_first(self._metrics(steps))
        problems = []
        for step in candidates:
            try:
                return read(step)
            except _DamagedError as error:
                logger.warning("%s; trying the next %s one", error, which)
                problems.append(str(error))
        if problems:
            raise CheckpointError(
                f"no good checkpoint in {self.directory}: {'; '.join(problems)}; "
                f"restore a copy of one, or start a new run in another directory"
            )
        scored = " with a metric" if steps and which == "best" else ""
        raise CheckpointError(
            f"there is no checkpoint{scored} in {self.directory}; train until one is saved"
        )

    def _metrics(self, steps: list[int]) -> dict[int, float | None]:
        """The metric of each step with a good record; warns of the other steps."""
        metrics = {}
        for step in steps:
            try:
                metrics[step] = self._read_record(step)["metric"]
            except _DamagedError as error:
                logger.warning("%s; skipped", error)
        return metrics

    def _read_index(self) -> list[int]:
        try:
            steps = parse_json((self.directory / _INDEX_FILE).read_bytes())["steps"]
            return [step for step in steps if type(step) is int and step >= 0]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except (OSError, ValueError, KeyError, TypeError) as error:  # the index is not essential
            logger.warning("cannot read %s: %r", self.directory / _INDEX_FILE, error)
            return []

    # Reading one step.

    def _damaged(self, step: int, problem: str) -> _DamagedError:
        return _DamagedError(f"checkpoint {self._folder(step)} cannot be used: {problem}")

    def _read_record(self, step: int) -> dict[str, Any]:
        folder = self._folder(step)
        if not folder.is_dir():
            existing = ", ".join(map(str, self._complete())) or "none"
            raise self._damaged(step, f"it is missing (existing steps: {existing})")
        if is_url(folder) and not (folder / _COMMIT_FILE).exists():
            raise self._damaged(step, f"it is half-written, without {_COMMIT_FILE}")
        try:
            content = parse_json((folder / _RECORD_FILE).read_bytes())["custom_metadata"]
            record, checksum = content["record"], content["sha256"]
        except FileNotFoundError:
            raise self._damaged(step, f"it is half-written, without {_RECORD_FILE}") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._damaged(step, f"cannot read {_RECORD_FILE}: {error!r}") from error
        if _checksum(record) != checksum:
            raise self._damaged(step, f"{_RECORD_FILE} is damaged: its checksum is wrong")
        if not _is_record(record):  # with a good checksum, somebody has made it
            raise self._damaged(step, f"{_RECORD_FILE} is not one that a training writes")
        if record["step"] != step:
            raise self._damaged(step, f"it contains step {record['step']}")
        return record

    def _read_together(self, step: int) -> dict[str, Any]:
        """Reads the record; raises in all processes if any of them cannot read it."""
        record, problem = {}, None
        try:
            record = self._read_record(step)
        except _DamagedError as error:
            problem = error
        _raise_together(problem, _DamagedError)
        return record

    def _load(self, step: int, targets: Mapping[str, Any]) -> dict[str, jax.Array]:
        folder, default = self._folder(step), jax.local_devices()[0]
        # Orbax saves no empty arrays, and gives arrays without a sharding to one process only.
        split = {path: x for path, x in targets.items() if x.size and x.sharding}
        local = [path for path, x in targets.items() if x.size and not x.sharding]
        loaded, problem = {}, None
        try:
            loaded = _load_arrays(folder, split, jax.Array)
            arrays = _load_arrays(folder, dict.fromkeys(local, np.ndarray), np.ndarray)
            loaded |= jax.device_put(arrays, default)
        except Exception as error:  # for damaged files Orbax raises many types
            problem = self._damaged(step, f"cannot read its arrays: {_one_line(error)}")
        _raise_together(problem, _DamagedError)
        return loaded | {path: _zeros(x) for path, x in targets.items() if not x.size}

    def _read_back(self, step: int, record: dict[str, Any]) -> str | None:
        """Says what is wrong with a step on disk, if anything. Each process reads some arrays."""
        try:
            if self._read_record(step) != record:
                return "it contains other values or metadata"
            paths = [path for path, saved in record["arrays"].items() if 0 not in saved["shape"]]
            # Orbax reads in all processes together, so none may be without an array.
            mine = paths[jax.process_index() :: jax.process_count()] or paths[:1]
            template = dict.fromkeys(mine, np.ndarray)
            loaded = _load_arrays(self._folder(step), template, np.ndarray)
        except Exception as error:  # for damaged files Orbax raises many types
            return _one_line(error)
        damaged = name_damaged(record["arrays"], fingerprint_numpy(loaded))
        return damaged and f"damaged arrays: {damaged}"

    # Writing one step.

    def _prepare_directory(self) -> None:
        if is_url(self.directory):
            return  # a bucket has no folders, and the write itself is the test
        # Not the run's own directory: if that is gone, it was moved, deleted or unmounted.
        self.directory.mkdir(exist_ok=True)
        try_writing(self.directory / "trial")

    def _not_written(self, step: int, error: Exception) -> str:
        return (
            f"checkpoint {self._folder(step)} could not be written ({_one_line(error)}); "
            f"older ones are kept; check the disk's space and permissions"
        )

    def _finish(self, step: int, record: dict[str, Any], response: Any) -> str | None:
        """In the background, waits for the write and reads it back; returns the problem, if any."""
        try:
            response.result()
        except Exception as error:  # Orbax and TensorStore raise many types
            return self._not_written(step, error)
        problem = self._read_back(step, record)
        if problem and not self._folder(step).exists():
            return (
                f"checkpoint {self._folder(step)} is gone: it was moved, deleted or unmounted; "
                f"bring the run's directory back to this path"
            )
        return problem and (
            f"checkpoint {self._folder(step)} is damaged: {problem}; it was renamed to "
            f"{step}.damaged; older ones are kept; check the disk"
        )

    # Tidying up, by the main process only.

    def _by_main_process(self, act: Callable[[], None]) -> str | None:
        if is_main_process():
            try:
                act()
            except Exception as error:  # errors of a bucket have many types
                return (
                    f"cannot write checkpoints to {self.directory}: {error}; check the disk's "
                    f"space and permissions"
                )
        return None

    def _set_aside(self, step: int, why: str) -> None:
        if self._folder(step).exists():
            aside = self.directory / f"{step}.{why}"
            if aside.exists():
                aside.rmtree()
            self._folder(step).rename(aside)

    def _delete(self, step: int) -> None:
        """Deletes a step; if this is cut off, what remains is not taken for a step."""
        folder = self._folder(step)
        if is_url(folder):
            (folder / _COMMIT_FILE).unlink(missing_ok=True)
        else:
            self._set_aside(step, "pruned")
            folder = self.directory / f"{step}.pruned"
        folder.rmtree()

    def _put_back_replaced(self) -> None:
        complete = self._complete()
        for name in self._names():
            step, _, why = name.partition(".")
            if why == "replaced" and step.isdigit() and int(step) not in complete:
                self._set_aside(int(step), "damaged")
                (self.directory / name).rename(self._folder(int(step)))

    def _discard(self, failed: int) -> None:
        """Renames the folder of a failed save, and deletes temporary ones to free disk space."""
        self._set_aside(failed, "damaged")
        self._put_back_replaced()
        for name in filter(_TEMPORARY.fullmatch, self._names()):
            (self.directory / name).rmtree()

    def _prune(self, verified: int) -> None:
        """Deletes old steps, now that `verified` is safe; keeps those that cannot be read."""
        complete, known = self._complete(), self._read_index()
        metrics = self._metrics(complete)
        latest = sorted(metrics, reverse=True)[: self._keep_latest]
        keep = {verified, *latest, *_best_first(metrics)[: self._keep_best]}
        index = json.dumps({"steps": sorted(keep)})
        written = self._write_index(index)
        # What a killed process leaves of a step that it deletes or, in a bucket, writes.
        rests = set(self._folders()) - {*complete, *known, verified}
        for step in sorted((set(metrics) - keep) | rests):
            self._delete(step)
        for name in self._names():
            if _TEMPORARY.fullmatch(name) or _ASIDE.fullmatch(name):
                (self.directory / name).rmtree()
        if not written:  # the disk was full, and may have room now
            write_whole(self.directory / _INDEX_FILE, index)

    def _write_index(self, index: str) -> bool:
        try:
            write_whole(self.directory / _INDEX_FILE, index)
        except Exception:  # errors of a bucket have many types
            return False
        return True


def _make_record(
    step: int, arrays: Mapping[str, Any], *, metadata: Mapping[str, Any], metric: float | None
) -> dict[str, Any]:
    record = {
        "step": step,
        "metric": None if metric is None else float(metric),
        "metadata": dict(metadata),
        "arrays": fingerprint(arrays),
    }
    try:
        return json.loads(json.dumps(record, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"step {step}: metadata and metric must be JSON: {error}") from error


def _is_record(record: Any) -> bool:
    """Whether JSON has the form that `_make_record` returns."""
    match record:
        case {
            "step": int(),
            "metric": None | int() | float(),
            "metadata": dict(),
            "arrays": dict(),
        }:
            return all(_is_fingerprint(array) for array in record["arrays"].values())
    return False


def _is_fingerprint(array: Any) -> bool:
    match array:
        case {"shape": [*sizes], "dtype": str(), "digest": str()}:
            return all(type(size) is int and size >= 0 for size in sizes)
    return False


def _checksum(record: Any) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _best_first(metrics: Mapping[int, float | None]) -> list[int]:
    scored = [(metric, step) for step, metric in metrics.items() if metric is not None]
    return [step for _, step in sorted(scored, reverse=True)]


def _one_line(error: BaseException) -> str:
    while error.__cause__:  # TensorStore's own error names the array and the file
        error = error.__cause__
    text = " ".join(str(error).split("[tensorstore_spec")[0].split()) or repr(error)
    return text if len(text) <= 400 else text[:400] + "…"


def _hush_orbax() -> None:
    """Hides hundreds of lines of Orbax around an error that this module reports in one line.

    When a read or write fails, Orbax logs tracebacks, and each read that is still running complains
    that the event loop is closed. At level DEBUG all of them are shown.
    """

    def passes(record: logging.LogRecord) -> bool:
        orbax = "orbax" in record.pathname or "/orbax/checkpoint/" in record.getMessage()
        return not orbax or logger.isEnabledFor(logging.DEBUG)

    def report(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed" or logger.isEnabledFor(
            logging.DEBUG
        ):
            previous(unraisable)

    logging.getLogger("absl").addFilter(passes)
    logging.getLogger("asyncio").addFilter(passes)
    # It drops coroutines of many names.
    warnings.filterwarnings("ignore", "coroutine '.*' was never awaited", RuntimeWarning)
    previous, sys.unraisablehook = sys.unraisablehook, report


_hush_orbax()


def _zeros(template: Any) -> jax.Array:
    device = template.sharding or jax.local_devices()[0]
    return jnp.zeros(template.shape, template.dtype, device=device)


def _load_arrays[T](folder: epath.Path, template: Mapping[str, Any], kind: type[T]) -> dict[str, T]:
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context:
        loaded = ocp.load(str(folder), template) if template else {}
    for path in template:  # for an array that it cannot find, Orbax returns the template
        if not isinstance(loaded.get(path), kind):
            raise ValueError(f"array {path} is missing")
    return loaded


def _raise_together(
    problem: str | CheckpointError | None, kind: type[CheckpointError] = CheckpointError
) -> None:
    """Raises in all processes if any of them has a problem."""
    text = first_problem(None if problem is None else str(problem))
    if text is not None:
        raise kind(text)
