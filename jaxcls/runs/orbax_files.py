"""The files of Orbax: arrays and metadata of one step. Only this module imports Orbax."""

import logging
import re
import sys
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from orbax.checkpoint import v1 as ocp

logger = logging.getLogger("jaxcls")

RECORD_FILE = "_CHECKPOINT_METADATA"  # the last file that Orbax writes before the rename
COMMIT_FILE = "commit_success.txt"  # the last one in a bucket, which has no rename
_SIGNS = ("/orbax/checkpoint/", "tensorstore", "OCDBT")  # of errors that asyncio logs
TEMPORARY = re.compile(r"\d+\.orbax-checkpoint-tmp.*")  # the folder of a step before the rename


def start_saving(folder: str, arrays: Mapping[str, jax.Array], metadata: Mapping[str, Any]) -> Any:
    """Starts to write arrays that are not empty, by name, and JSON to a new folder.

    All processes call it together. Returns as soon as the arrays may be donated.

    Returns:
      An object whose method `result` waits for the end. Orbax and TensorStore raise many types of
      errors, here and there.
    """
    context = ocp.Context()
    # Otherwise Orbax cuts each array into a slice for each device that has a copy of it, and every
    # slice of every shape is a program to compile while the training waits for its first save.
    context.array.saving.use_replica_parallel = False
    with context:
        return ocp.save_async(folder, dict(arrays), custom_metadata=dict(metadata))


def load_arrays[T](folder: epath.Path, template: Mapping[str, Any], kind: type[T]) -> dict[str, T]:
    """Reads arrays by name; all processes call it together, and none with an empty template.

    Args:
      folder: the folder of a step.
      template: for each name `np.ndarray`, or a `jax.ShapeDtypeStruct` with a sharding.
      kind: the type of the arrays, `np.ndarray` or `jax.Array`.

    Raises:
      ValueError: an array is missing. For damaged files Orbax raises many other types.
    """
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context:
        loaded = ocp.load(str(folder), template) if template else {}
    for path in template:  # for an array that it cannot find, Orbax returns the template
        if not isinstance(loaded.get(path), kind):
            raise ValueError(f"array {path} is missing")
    return loaded


def load_whole(folder: epath.Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Reads arrays by name into this process, after a look at their shapes.

    Without a sharding Orbax would read an array of any shape that its file claims, and TensorStore
    would end the process if that does not fit into memory.

    Raises:
      ValueError: an array is missing or has another shape; otherwise as `load_arrays`.
    """
    stored = (ocp.metadata(str(folder)).metadata if shapes else None) or {}
    for path, shape in shapes.items():
        claimed = getattr(stored.get(path), "shape", None)
        if claimed != shape:
            raise ValueError(f"array {path} has the shape {claimed}, not {shape}")
    return load_arrays(folder, dict.fromkeys(shapes, np.ndarray), np.ndarray)


def describe(error: BaseException) -> str:
    """The text of an error of Orbax in one line."""
    while error.__cause__:  # TensorStore's own error names the array and the file
        error = error.__cause__
    text = " ".join(str(error).split("[tensorstore_spec")[0].split()) or repr(error)
    return text if len(text) <= 400 else text[:400] + "…"


def _hush() -> None:
    """Hides hundreds of lines of Orbax around an error that this module reports in one line.

    When a read or write fails, Orbax logs tracebacks, and each read that is still running complains
    that the event loop is closed. At level DEBUG all of them are shown.
    """

    def passes(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        orbax = "orbax" in record.pathname or any(sign in text for sign in _SIGNS)
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


_hush()
