"""Verified checkpoints: save, read back, fall back, restore.

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
import itertools
import logging
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from jaxcls.distributed.agree import (
    announce,
    announced,
    any_process,
    client,
    first_problem,
    is_main_process,
)
from jaxcls.runs.checkpoint_record import make_record, sealed
from jaxcls.runs.directory import RunLostError
from jaxcls.runs.fingerprint import (
    fingerprint,
    fingerprint_numpy,
    flatten,
    name_damaged,
    name_mismatches,
)
from jaxcls.runs.orbax_files import describe, load_arrays, load_whole, start_saving
from jaxcls.runs.step_folders import CheckpointError, DamagedError, StepFolders, best_first
from jaxcls.system.links import has_wildcards, link_without_wildcards
from jaxcls.system.paths import is_url

logger = logging.getLogger("jaxcls")

_POLL_SECONDS = 0.5
_LAST_WRITE_SECONDS = 30.0  # Orbax may wait much longer for a directory that is gone
_saves = itertools.count()  # the same in all processes


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
        while not self.problem.done() and not announced(self.failure):
            concurrent.futures.wait([self.problem], _POLL_SECONDS)
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
        self._folders = StepFolders(directory, keep_latest=keep_latest, keep_best=keep_best)
        self.directory = self._folders.directory
        self._executor = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._pending: _Save | None = None
        self._suspects: set[int] = set()  # steps that could not be restored
        self._link: Path | None = None  # to the directory

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        lost = exc_type is not None and issubclass(exc_type, RunLostError)
        if lost and self._pending is not None:
            # A write that is in progress is completed, but nothing is deleted: the directory may
            # belong to another training by now.
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
        try:
            record = make_record(step, arrays, metadata=metadata, metric=metric)
        except (TypeError, ValueError) as error:
            problem = f"step {step}: metadata and metric must be JSON: {error}"
            raise CheckpointError(problem) from error
        _raise_together(self._by_main_process(self._folders.prepare))
        exists: list[bool] = []
        _raise_together(self._try(lambda: exists.append(self._folders.path(step).exists())))
        if any_process(exists[0]):
            problem = first_problem(self._read_back(step, record))
            if problem is None:
                logger.info("checkpoint %s exists already", self._folders.path(step))
                return
            logger.warning("replacing checkpoint %s: %s", self._folders.path(step), problem)
            _raise_together(
                self._by_main_process(lambda: self._folders.set_aside(step, "replaced"))
            )
        try:
            response = start_saving(
                str(self._directory_for_orbax() / str(step)),
                {path: array for path, array in arrays.items() if array.size},
                sealed(record),
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

        _raise_together(self._by_main_process(lambda: self._folders.write_metric(step, metric)))

    def put_back_replaced(self) -> None:
        """Gives a step its name back if its replacement was cut off; only a training calls it."""
        problem = self._by_main_process(self._folders.put_back_replaced)
        if first_problem(problem):  # all processes wait here for the main process
            logger.warning("%s", problem)

    def delete_unfinished(self, restored: int) -> None:
        """Deletes what a killed training left of other steps; only a training calls it.

        Args:
          restored: the step that was restored, so it is good.
        """
        if problem := self._by_main_process(lambda: self._folders.delete_unfinished(restored)):
            logger.warning("%s", problem)

    def failed(self) -> bool:
        """Whether the last save is known to have failed, in any process; does not wait for it."""
        if self._pending is None:
            return False
        problem = self._pending.problem
        return any_process(problem.done() and problem.result() is not None)

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
        self._suspects.discard(step)
        if problem:
            untidy = self._by_main_process(lambda: self._folders.discard(step))
        else:
            untidy = self._by_main_process(lambda: self._folders.prune(step, self._suspects))
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
            if self._link is not None:
                self._link.unlink(missing_ok=True)  # another process may have the same one

    def steps(self) -> list[int]:
        """The steps that are complete, ascending. If there is none, warns of half-written ones."""
        complete = self._folders.complete()
        if not complete:
            self._folders.warn_of_half_written()
        return complete

    def any_saved(self) -> bool:
        """Whether a step was ever saved here, even if it can no longer be read."""
        return bool(self.steps() or self._folders.read_index())

    def metadata(self, step: int | Literal["latest", "best"] = "latest") -> dict[str, Any]:
        """Reads the metadata of a step, but no arrays. Falls back and raises as `restore`."""
        return self._first_good(step, lambda number: self._folders.read_record(number)["metadata"])

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
            get; an array without a sharding is placed on the first device. Or a function that
            makes the tree from the metadata of the step.
          step: the training step to restore: "latest", the newest good one; "best", the good one
            with the highest metric; or a number, exactly that one, without a fallback. A warning
            names each step that is skipped.
          subset: whether the template may lack whole parts of the saved tree, such as "opt_state";
            they are not read.
          optional: names of arrays that the template or the step may lack; zeros if the step does.

        Raises:
          CheckpointError: there is no such step, no step is good, or its arrays differ from the
            template; the message names these arrays.
        """
        self.wait()

        def read(number: int) -> Restored:
            record = self._read_together(number)
            tree = template(record["metadata"]) if callable(template) else template
            targets, arrays = flatten(tree), record["arrays"]
            parts = {_part(name) for name in (targets if subset else arrays)}
            wanted = {
                name: x for name, x in targets.items() if name in arrays or name not in optional
            }
            saved = {
                name: arrays[name]
                for name in arrays
                if name in targets or (_part(name) in parts and name not in optional)
            }
            mismatches = name_mismatches(saved, wanted)
            if mismatches:  # another model, not damage
                raise CheckpointError(
                    f"checkpoint {self._folders.path(number)} does not fit the network and "
                    f"optimizer of the config ({mismatches}); use the config and the network's "
                    f"code that it was saved with, or start a new run in another directory"
                )
            arrays = self._load(number, wanted)
            damaged = name_damaged(saved, fingerprint(arrays))
            if damaged:  # the same digests, hence the same answer, in every process
                raise self._folders.damaged(number, f"damaged arrays: {damaged}")
            arrays |= {name: _zeros(x) for name, x in targets.items() if name not in wanted}
            leaves = [arrays[name] for name in targets]
            state = jax.tree.unflatten(jax.tree.structure(tree), leaves)
            return Restored(
                step=number, state=state, metadata=record["metadata"], metric=record["metric"]
            )

        return self._first_good(step, read)

    def _directory_for_orbax(self) -> epath.Path:
        """The directory by a name without wildcards.

        Orbax lists the files of a save by a pattern that begins with the directory's name, and
        would find none under a name such as run[1].
        """
        name = str(self.directory)
        if is_url(name) or not has_wildcards(name):
            return self.directory
        self._link = link_without_wildcards(name)
        return epath.Path(self._link)

    def _first_good[T](self, which: int | str, read: Callable[[int], T]) -> T:
        if isinstance(which, int):
            return read(which)
        assert which in ("latest", "best"), which
        self._folders.warn_of_half_written()
        # Missing steps that are in the index are tried too, so that a warning names them.
        steps = sorted({*self._folders.all(), *self._folders.read_index()}, reverse=True)
        candidates = steps if which == "latest" else best_first(self._folders.metrics(steps))
        problems = []
        for step in candidates:
            try:
                return read(step)
            except DamagedError as error:
                logger.warning("%s; trying the next %s one", error, which)
                self._suspects.add(step)
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

    # Reading one step.

    def _read_together(self, step: int) -> dict[str, Any]:
        """Reads the record; raises in all processes if any of them cannot read it."""
        record, problem = {}, None
        try:
            record = self._folders.read_record(step)
        except DamagedError as error:
            problem = error
        _raise_together(problem, DamagedError)
        return record

    def _load(self, step: int, targets: Mapping[str, Any]) -> dict[str, jax.Array]:
        folder, default = self._folders.path(step), jax.local_devices()[0]
        # Orbax saves no empty arrays, and gives arrays without a sharding to one process only.
        split = {path: x for path, x in targets.items() if x.size and x.sharding}
        local = [path for path, x in targets.items() if x.size and not x.sharding]
        loaded, problem = {}, None
        try:
            loaded = load_arrays(folder, split, jax.Array)
            arrays = load_whole(folder, {path: targets[path].shape for path in local})
            loaded |= jax.device_put(arrays, default)
        except Exception as error:  # for damaged files Orbax raises many types
            problem = self._folders.damaged(step, f"cannot read its arrays: {describe(error)}")
        _raise_together(problem, DamagedError)
        return loaded | {path: _zeros(x) for path, x in targets.items() if not x.size}

    def _read_back(self, step: int, record: dict[str, Any]) -> str | None:
        """Says what is wrong with a step on disk, if anything. Each process reads some arrays."""
        try:
            if self._folders.read_record(step) != record:
                return "it contains other values or metadata"
            paths = [path for path, saved in record["arrays"].items() if 0 not in saved["shape"]]
            # Orbax reads in all processes together, so none may be without an array.
            mine = paths[jax.process_index() :: jax.process_count()] or paths[:1]
            template = dict.fromkeys(mine, np.ndarray)
            loaded = load_arrays(self._folders.path(step), template, np.ndarray)
        except Exception as error:  # for damaged files Orbax raises many types
            return describe(error)
        damaged = name_damaged(record["arrays"], fingerprint_numpy(loaded))
        return damaged and f"damaged arrays: {damaged}"

    # Writing one step.

    def _not_written(self, step: int, error: Exception) -> str:
        return (
            f"checkpoint {self._folders.path(step)} could not be written ({describe(error)}); "
            f"older ones are kept; check the disk's space and permissions"
        )

    def _finish(self, step: int, record: dict[str, Any], response: Any) -> str | None:
        """In the background, waits for the write and reads it back; returns the problem, if any."""
        try:
            response.result()
        except Exception as error:  # Orbax and TensorStore raise many types
            return self._not_written(step, error)
        problem = self._read_back(step, record)
        if problem is None:
            return None
        with contextlib.suppress(Exception):  # errors of a bucket have many types
            if not self._folders.path(step).exists():
                return (
                    f"checkpoint {self._folders.path(step)} is gone: it was moved, deleted or "
                    f"unmounted; bring the run's directory back to this path"
                )
        return (
            f"checkpoint {self._folders.path(step)} is damaged: {problem}; it is set aside as "
            f"{step}.damaged; older ones are kept; check the disk"
        )

    def _by_main_process(self, act: Callable[[], None]) -> str | None:
        return self._try(act) if is_main_process() else None

    def _try(self, act: Callable[[], None]) -> str | None:
        """Does something with the files; returns what went wrong, if anything."""
        try:
            act()
        except CheckpointError as error:
            return str(error)
        except Exception as error:  # errors of a bucket have many types
            return (
                f"cannot write checkpoints to {self.directory}: {error}; check the disk's "
                f"space and permissions"
            )
        return None


def _part(name: str) -> str:
    """The part of a state that an array belongs to: "params", "ema" and so on."""
    return name.split("/", 1)[0]


def _zeros(template: Any) -> jax.Array:
    device = template.sharding or jax.local_devices()[0]
    return jnp.zeros(template.shape, template.dtype, device=device)


def _raise_together(
    problem: str | CheckpointError | None, kind: type[CheckpointError] = CheckpointError
) -> None:
    """Raises in all processes if any of them has a problem."""
    text = first_problem(None if problem is None else str(problem))
    if text is not None:
        raise kind(text)
