"""Verified checkpoints: save, read back, fall back, restore. The only importer of Orbax.

On disk, in one directory of a run:

    20/              one step, as Orbax writes it: under a temporary name, renamed when whole;
                     in a bucket under its own name, with commit_success.txt when whole
    verified.json    the steps that were read back and found good, so that a missing one is noticed

The arrays of a state are saved flat, under readable names (`params/stem/conv/kernel`), so that a
checkpoint can be read without the classes that made it. Each step carries a *record*: the caller's
metadata and metric, and for each array its shape, dtype and digest, under one checksum.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from orbax.checkpoint import v1 as ocp

from jaxcls.distributed.agree import client, first_problem, is_main_process
from jaxcls.runs.fingerprint import (
    fingerprint,
    fingerprint_numpy,
    flatten,
    name_damaged,
    name_mismatches,
)
from jaxcls.system.errors import UserError
from jaxcls.system.paths import is_url
from jaxcls.system.whole_files import try_writing, write_whole

logger = logging.getLogger("jaxcls")

_RECORD_FILE = "_CHECKPOINT_METADATA"  # Orbax's; the last file it writes before the rename
_COMMIT_FILE = "commit_success.txt"  # Orbax's; the last one in a bucket, which has no rename
_INDEX_FILE = "verified.json"
_TEMPORARY = re.compile(r"\d+\.orbax-checkpoint-tmp.*")
_ASIDE = re.compile(r"\d+\.(replaced|damaged)")


class CheckpointError(UserError):
    """A checkpoint cannot be written or used; the message says which, why and what to do."""


class _DamagedError(CheckpointError):
    """This step is damaged, half-written or missing; another one may be good."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Restored:
    """What `Checkpoints.restore` found.

    Attributes:
      step: the step that was restored (after a fallback, not the newest or the best).
      state: a tree like the template, of arrays with the template's shardings.
      metadata: what the caller stored with the step.
    """

    step: int
    state: Any
    metadata: dict[str, Any]


class Checkpoints:
    """The verified checkpoints of one run: `directory/STEP/`.

    All processes of a run call the same methods in the same order, on a shared directory.
    """

    def __init__(
        self, directory: str | os.PathLike[str], *, keep_latest: int = 2, keep_best: int = 1
    ):
        """Touches nothing on disk: the first save makes the directory.

        Args:
          directory: where the step folders lie.
          keep_latest: how many of the newest steps to keep, at least 1.
          keep_best: how many of the steps with the highest metric to keep besides.
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
        self._pending: tuple[int, concurrent.futures.Future[str | None]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        if exc_type is not None and client() is not None:
            # The others may never come to agree on the last save; the next start looks at it.
            self._pending = None
            self._executor.shutdown(wait=False)
            return
        try:
            self.close()
        except CheckpointError as error:
            if exc_type is None:
                raise
            logger.error("%s", error)  # the error already on its way matters more

    def save(
        self, step: int, state: Any, *, metadata: Mapping[str, Any], metric: float | None = None
    ) -> None:
        """Starts saving `state`; returns once its arrays may be donated.

        Writing and reading back go on in the background; the next `save`, `wait` or `close` learns
        the outcome and only then deletes older steps. A step that is there already is left alone
        if it is good and the same, and replaced otherwise.

        Args:
          step: names the folder; the highest is the "latest".
          state: a tree of `jax.Array`.
          metadata: JSON to store with the step.
          metric: the step's score, higher is better; a step without one is never "best".

        Raises:
          CheckpointError: the directory cannot be written, the metadata is not JSON, or the save
            *before* this one failed (nothing older was deleted, and this step is not saved).
        """
        self.wait()
        arrays = flatten(state)
        record = _make_record(step, arrays, metadata=metadata, metric=metric)
        _raise_together(self._by_main_process(self._prepare_directory))
        if first_problem("it exists" if self._folder(step).exists() else None):
            problem = first_problem(self._read_back(step, record))
            if problem is None:
                logger.info("checkpoint %s is there already", self._folder(step))
                return
            logger.warning("replacing checkpoint %s: %s", self._folder(step), problem)
            _raise_together(self._by_main_process(lambda: self._set_aside(step, "replaced")))
        try:
            response = ocp.save_async(
                str(self._folder(step)),
                {path: array for path, array in arrays.items() if array.size},
                custom_metadata={"record": record, "sha256": _checksum(record)},
            )
        except Exception as error:  # Orbax and TensorStore raise many types
            raise CheckpointError(self._not_written(step, error)) from error
        self._pending = step, self._executor.submit(self._finish, step, record, response)

    def wait(self) -> None:
        """Returns when all that was saved is on disk, read back and verified, and old steps gone.

        Raises:
          CheckpointError: the last save failed or was read back damaged. Nothing older was deleted.
            It is reported once.
        """
        if self._pending is None:
            return
        step, future = self._pending
        problem = first_problem(future.result())
        self._pending = None
        tidy_up = self._discard if problem else self._prune
        untidy = self._by_main_process(lambda: tidy_up(step))
        if first_problem(untidy):  # nobody goes on before the first process is done
            logger.warning("%s", untidy)
        _raise_together(problem)

    def close(self) -> None:
        """Waits for what was saved, raising as `wait`, and ends the background thread."""
        try:
            self.wait()
        finally:
            self._executor.shutdown()

    def steps(self) -> list[int]:
        """The steps that were written whole, ascending; half-written ones are never listed.

        If there is none, warns of what is there instead.
        """
        whole = self._whole()
        if not whole:
            self._name_half_written()
        return whole

    def any_saved(self) -> bool:
        """Whether a step was ever saved here, be it readable or not."""
        return bool(self.steps() or self._read_index())

    def metadata(self, step: int | Literal["latest", "best"] = "latest") -> dict[str, Any]:
        """The metadata stored with a step; reads no arrays. Falls back and raises as `restore`."""
        return self._first_good(step, lambda number: self._read_record(number)["metadata"])

    def restore(
        self,
        template: Any,
        step: int | Literal["latest", "best"] = "latest",
        *,
        subset: bool = False,
    ) -> Restored:
        """Reads a step, checks every digest, and falls back to another step where it may.

        Args:
          template: a tree of `jax.ShapeDtypeStruct` or arrays. Their shardings say where the
            arrays go; without one, to the first device.
          step: "latest": the newest good one; "best": the good one with the highest metric; a
            number: exactly that one. What is passed over is named in a warning.
          subset: the template names only some of the saved arrays; the others are not read.

        Raises:
          CheckpointError: there is no such step, none is good, or it holds other arrays than the
            template (the message names them).
        """
        self.wait()
        targets = flatten(template)

        def read(number: int) -> Restored:
            record = self._read_together(number)
            saved = record["arrays"]
            if subset:
                saved = {name: saved[name] for name in saved if name in targets}
            mismatches = name_mismatches(saved, targets)
            if mismatches:  # another model, not damage
                raise CheckpointError(
                    f"checkpoint {self._folder(number)} holds other arrays than are wanted "
                    f"({mismatches}); go on with the config that it was saved with, or "
                    "start again in another directory"
                )
            arrays = self._load(number, targets)
            damaged = name_damaged(saved, fingerprint(arrays))
            if damaged:  # the same digests, hence the same answer, in every process
                raise self._damaged(number, f"damaged arrays: {damaged}")
            state = jax.tree.unflatten(jax.tree.structure(template), list(arrays.values()))
            return Restored(step=number, state=state, metadata=record["metadata"])

        return self._first_good(step, read)

    # Finding a good step.

    def _folder(self, step: int) -> epath.Path:
        return self.directory / str(step)

    def _names(self) -> list[str]:
        if not self.directory.is_dir():
            return []
        return sorted(path.name for path in self.directory.iterdir())

    def _folders(self) -> list[int]:
        return sorted(int(name) for name in self._names() if re.fullmatch(r"0|[1-9]\d*", name))

    def _whole(self) -> list[int]:
        marker = _COMMIT_FILE if is_url(self.directory) else _RECORD_FILE
        return [step for step in self._folders() if (self._folder(step) / marker).is_file()]

    def _name_half_written(self) -> None:
        whole = {str(step) for step in self._whole()}
        for name in self._names():
            if (name.isdigit() and name not in whole) or _TEMPORARY.fullmatch(name):
                logger.warning("checkpoint %s is half-written; ignored", self.directory / name)

    def _first_good[T](self, which: int | str, read: Callable[[int], T]) -> T:
        if isinstance(which, int):
            return read(which)
        assert which in ("latest", "best"), which
        self._name_half_written()
        # Those that ought to be there are tried too, so that they are named.
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
                "put back a copy of one, or start again in another directory"
            )
        scored = " with a metric" if steps and which == "best" else ""
        raise CheckpointError(
            f"there is no checkpoint{scored} in {self.directory}; go on with the training until it "
            f"has saved one"
        )

    def _metrics(self, steps: list[int]) -> dict[int, float | None]:
        """The metric of each step whose record is good; warns of the others."""
        metrics = {}
        for step in steps:
            try:
                metrics[step] = self._read_record(step)["metric"]
            except _DamagedError as error:
                logger.warning("%s; passed over", error)
        return metrics

    def _read_index(self) -> list[int]:
        try:
            steps = json.loads((self.directory / _INDEX_FILE).read_bytes())["steps"]
            return [step for step in steps if type(step) is int and step >= 0]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except (OSError, ValueError, KeyError, TypeError) as error:  # an aid, so never fatal
            logger.warning("cannot read %s: %r", self.directory / _INDEX_FILE, error)
            return []

    # Reading one step.

    def _damaged(self, step: int, problem: str) -> _DamagedError:
        return _DamagedError(f"checkpoint {self._folder(step)} cannot be used: {problem}")

    def _read_record(self, step: int) -> dict[str, Any]:
        folder = self._folder(step)
        if not folder.is_dir():
            there = ", ".join(map(str, self._whole())) or "none"
            raise self._damaged(step, f"it is missing (steps there: {there})")
        if is_url(folder) and not (folder / _COMMIT_FILE).exists():
            raise self._damaged(step, f"it is half-written, without {_COMMIT_FILE}")
        try:
            content = json.loads((folder / _RECORD_FILE).read_bytes())["custom_metadata"]
            record, checksum = content["record"], content["sha256"]
        except FileNotFoundError:
            raise self._damaged(step, f"it is half-written, without {_RECORD_FILE}") from None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise self._damaged(step, f"cannot read {_RECORD_FILE}: {error!r}") from error
        if _checksum(record) != checksum:
            raise self._damaged(step, f"{_RECORD_FILE} is damaged: its checksum is wrong")
        if record["step"] != step:
            raise self._damaged(step, f"it holds step {record['step']}")
        return record

    def _read_together(self, step: int) -> dict[str, Any]:
        """The record, in every process or in none."""
        record, problem = {}, None
        try:
            record = self._read_record(step)
        except _DamagedError as error:
            problem = error
        _raise_together(problem, _DamagedError)
        return record

    def _load(self, step: int, targets: Mapping[str, Any]) -> dict[str, jax.Array]:
        folder, default = self._folder(step), jax.local_devices()[0]
        # Orbax stores no empty ones, and gives those without a sharding to one process alone.
        split = {path: x for path, x in targets.items() if x.size and x.sharding}
        local = [path for path, x in targets.items() if x.size and not x.sharding]
        loaded, problem = {}, None
        try:
            loaded = _load_arrays(folder, split, jax.Array)
            arrays = _load_arrays(folder, dict.fromkeys(local, np.ndarray), np.ndarray)
            loaded |= jax.device_put(arrays, default)
        except Exception as error:  # damaged files make Orbax raise nearly anything
            problem = self._damaged(step, f"cannot read its arrays: {_one_line(error)}")
        _raise_together(problem, _DamagedError)
        empty = {
            path: jnp.zeros(x.shape, x.dtype, device=x.sharding or default)
            for path, x in targets.items()
            if not x.size
        }
        return {path: (loaded | empty)[path] for path in targets}

    def _read_back(self, step: int, record: dict[str, Any]) -> str | None:
        """What is wrong with a step on disk, if anything. Processes share the arrays out."""
        try:
            if self._read_record(step) != record:
                return "it holds other values or metadata"
            paths = [path for path, saved in record["arrays"].items() if 0 not in saved["shape"]]
            mine = paths[jax.process_index() :: jax.process_count()]
            template = dict.fromkeys(mine, np.ndarray)
            loaded = _load_arrays(self._folder(step), template, np.ndarray)
        except Exception as error:  # damaged files make Orbax raise nearly anything
            return _one_line(error)
        damaged = name_damaged(record["arrays"], fingerprint_numpy(loaded))
        return damaged and f"damaged arrays: {damaged}"

    # Writing one step.

    def _prepare_directory(self) -> None:
        if is_url(self.directory):
            return  # there are no folders, and the write itself is the test
        self.directory.mkdir(parents=True, exist_ok=True)
        try_writing(self.directory / "trial")

    def _not_written(self, step: int, error: Exception) -> str:
        return (
            f"checkpoint {self._folder(step)} could not be written ({_one_line(error)}); "
            "older ones are kept; check the disk's space and permissions"
        )

    def _finish(self, step: int, record: dict[str, Any], response: Any) -> str | None:
        """In the background: the end of the write, then reading it back. The problem, if any."""
        try:
            response.result()
        except Exception as error:  # Orbax and TensorStore raise many types
            return self._not_written(step, error)
        problem = self._read_back(step, record)
        return problem and (
            f"checkpoint {self._folder(step)} was read back damaged: {problem}; it is set aside "
            f"as {step}.damaged; older ones are kept; check the disk"
        )

    # Tidying up, by the first process alone.

    def _by_main_process(self, act: Callable[[], None]) -> str | None:
        if is_main_process():
            try:
                act()
            except Exception as error:  # a bucket's come in many types
                return f"cannot write checkpoints to {self.directory}: {error}"
        return None

    def _set_aside(self, step: int, why: str) -> None:
        if self._folder(step).exists():
            aside = self.directory / f"{step}.{why}"
            if aside.exists():
                aside.rmtree()
            self._folder(step).rename(aside)

    def _discard(self, failed: int) -> None:
        """Takes a failed save off the list, and frees the disk of what was not finished."""
        self._set_aside(failed, "damaged")
        for name in filter(_TEMPORARY.fullmatch, self._names()):
            (self.directory / name).rmtree()

    def _prune(self, verified: int) -> None:
        """Deletes old steps, now that `verified` was read back; none that cannot be read itself."""
        metrics = self._metrics(self._whole())
        latest = sorted(metrics, reverse=True)[: self._keep_latest]
        keep = {verified, *latest, *_best_first(metrics)[: self._keep_best]}
        write_whole(self.directory / _INDEX_FILE, json.dumps({"steps": sorted(keep)}))
        old = {str(step) for step in metrics if step not in keep}
        for name in self._names():
            if name in old or _TEMPORARY.fullmatch(name) or _ASIDE.fullmatch(name):
                (self.directory / name).rmtree()


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
    """Keeps what is reported here in one line from being buried under hundreds.

    When a read or write fails, Orbax logs tracebacks, and the reads still in flight complain, one
    by one, that its event loop is closed. All of it is still there at level DEBUG.
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
    warnings.filterwarnings("ignore", "coroutine '_read_array_index", RuntimeWarning)
    previous, sys.unraisablehook = sys.unraisablehook, report


_hush_orbax()


def _load_arrays[T](folder: epath.Path, template: Mapping[str, Any], kind: type[T]) -> dict[str, T]:
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context:
        loaded = ocp.load(str(folder), template) if template else {}
    for path in template:  # of an array that it cannot find, Orbax gives back the template
        if not isinstance(loaded.get(path), kind):
            raise ValueError(f"array {path} is not there")
    return loaded


def _raise_together(
    problem: str | CheckpointError | None, kind: type[CheckpointError] = CheckpointError
) -> None:
    """Raises in every process if any has a problem."""
    text = first_problem(None if problem is None else str(problem))
    if text is not None:
        raise kind(text)
