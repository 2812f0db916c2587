"""The content of a data set's files, as digests that tell whether it has changed."""

import dataclasses
import hashlib
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from etils import epath

from jaxcls.system.errors import DataError, one_line
from jaxcls.system.file_names import printable

_THREADS = 16  # more than cores, because disks and networks make a reader wait
_MOST_TOGETHER = 256  # files that a thread reads before the progress is noted
_PIECE_BYTES = 1 << 20

type StoredFile = Path | epath.Path  # an epath.Path in a bucket


@dataclasses.dataclass(frozen=True, kw_only=True)
class Content:
    """What was found in the files of a data set.

    Attributes:
      digests: the name of each file -> the SHA-256 of its content, in hexadecimal.
      num_bytes: the size of all files.
      seconds: the time that reading them took.
    """

    digests: Mapping[str, str]
    num_bytes: int
    seconds: float

    def __str__(self) -> str:
        size, speed = self.num_bytes / 1e6, self.num_bytes / 1e6 / max(self.seconds, 1e-3)
        return (
            f"{len(self.digests):,} files ({size:,.1f} MB in {self.seconds:,.1f} s, "
            f"{speed:,.0f} MB/s)"
        )


def read_content(
    files: Mapping[str, StoredFile], *, note_progress: Callable[[], None] = lambda: None
) -> Content:
    """Reads files in parallel. The digests depend on names and content, on nothing else.

    Args:
      files: the name of each file -> where it is.
      note_progress: is called from time to time, equally often for equally many files.

    Raises:
      DataError: a file cannot be read; the message names it.
    """
    begin = time.perf_counter()
    digests: dict[str, str] = {}
    num_bytes = 0
    together = min(max(len(files) // (8 * _THREADS), 1), _MOST_TOGETHER)
    with ThreadPoolExecutor(_THREADS) as pool:
        for read in pool.map(_read_some, itertools.batched(files.items(), together)):
            for name, digest, size in read:
                digests[name] = digest
                num_bytes += size
            note_progress()
    return Content(digests=digests, num_bytes=num_bytes, seconds=time.perf_counter() - begin)


def _read_some(files: Sequence[tuple[str, StoredFile]]) -> list[tuple[str, str, int]]:
    return [(name, *_read(path)) for name, path in files]


def _read(path: StoredFile) -> tuple[str, int]:
    """The digest and the size of a file."""
    digest, size = hashlib.sha256(), 0
    try:
        with path.open("rb") as file:
            while piece := file.read(_PIECE_BYTES):
                digest.update(piece)
                size += len(piece)
    except Exception as error:  # errors of a bucket have many types
        raise DataError(
            f"data.verify: '{printable(path)}' cannot be read ({one_line(error)}); "
            f"make it readable, restore it, or turn data.verify off"
        ) from error
    return digest.hexdigest(), size
