"""Reads HDF5 files in a process of its own.

libhdf5 ends its process on some damaged files, and on others it computes without end: 1 and 55 of
60,000 (tests/fuzz). A file that was made to do harm may do worse. So it is read by
`jaxcls.pretrained.hdf5_process`, which is limited in time and memory and hands back plain numbers.
"""

import io
import math
import os
import signal
import subprocess
import sys
import tempfile
import typing
from pathlib import Path

import numpy as np

from jaxcls.models.weights_info import WeightsError
from jaxcls.pretrained.limits import RefusedError, check_total
from jaxcls.system.json_text import parse_json

PROCESS = "jaxcls.pretrained.hdf5_process"
MAX_TEXT = 64 * 2**20  # bytes; names and shapes of 100,000 arrays are fewer
_KINDS = frozenset(np.dtype(kind).str for kind in ("?", *np.typecodes["AllInteger"], "f4"))
_INCOMPLETE = "its reader ended early"


def read(path: Path, record: str | None = None) -> dict[str, np.ndarray]:
    """Reads all data sets of a file, which must be plain numbers.

    Args:
      path: an HDF5 file, or an archive that contains one.
      record: the name of the HDF5 file in the archive (None: the file itself).

    Returns:
      Arrays by full path without the leading slash, such as "block1a_expand_conv/kernel:0";
      floating-point ones as float32.

    Raises:
      WeightsError: the file is damaged.
      RefusedError: it has something that is not allowed (`hdf5_process.read`).
    """
    what = "HDF5 file" if record is None else "Keras archive"
    with tempfile.TemporaryFile() as complaints:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", PROCESS, path, *([record] if record else [])],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=complaints,
            # It finds the same modules as this process; -P adds no folder.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(e or os.getcwd() for e in sys.path)},
        )
        with process:
            tensors, why = _receive(path, typing.cast(io.BufferedReader, process.stdout))
        if process.returncode > 0:
            complaints.seek(0)
            said = complaints.read().decode(errors="replace").strip()
            raise RuntimeError(f"{PROCESS} ended with status {process.returncode}: {said}")
    if process.returncode == -signal.SIGXCPU:
        why = "libhdf5 computes on it without end"
    elif process.returncode:
        why = f"libhdf5 ended by {signal.Signals(-process.returncode).name}"
    if why is not None:
        raise WeightsError(f"{path}: the {what} is damaged or cut off ({why}); download it again")
    return tensors


def _receive(path: Path, stream: io.BufferedReader) -> tuple[dict[str, np.ndarray], str | None]:
    """Receives what the process writes, and believes nothing of it.

    Returns:
      The arrays, and what is wrong with the file; None if nothing is.

    Raises:
      RefusedError: the file has something that is not allowed.
    """
    length = int.from_bytes(stream.read(8), "little")
    if not 0 < length <= MAX_TEXT:
        return {}, _INCOMPLETE
    try:
        answer = parse_json(stream.read(length))
        if "refused" in answer:
            raise RefusedError(str(answer["refused"]))
        if "damaged" in answer:
            return {}, str(answer["damaged"])
        arrays = [(str(n), np.dtype(kind), tuple(shape)) for n, kind, shape in answer["arrays"]]
        if any(kind.str not in _KINDS for _, kind, _ in arrays):
            return {}, _INCOMPLETE
        check_total(path, sum(math.prod(shape) * kind.itemsize for _, kind, shape in arrays))
        tensors: dict[str, np.ndarray] = {}
        for name, kind, shape in arrays:
            tensors[name] = np.empty(shape, kind)
            if stream.readinto(tensors[name].reshape(-1).view(np.uint8)) < tensors[name].nbytes:
                return {}, _INCOMPLETE
    except (ValueError, KeyError, TypeError):  # it has written something else
        return {}, _INCOMPLETE
    return tensors, None
