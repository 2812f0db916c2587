"""What a reader is, and what all good files need."""

import dataclasses
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mutations import Damage

from jaxcls.system.errors import UserError

type Files = Mapping[str, bytes]

MATRIX = np.random.default_rng(0).standard_normal((3, 2)).astype("f4")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reader:
    """A reader, and what it is given.

    Attributes:
      samples: good files, each with the other files that are read with it, by their paths.
      damage: the file of a sample that is damaged, and how (several: one of them is chosen).
      read: reads the files in a folder. What it raises beside `errors` is a failure, as is an
        AssertionError.
      errors: the errors that the reader documents.
      seconds: time of computing that it may take.
      gigabytes: memory that it may take (threads of C++ reserve much that they do not use).
      in_own_process: whether jaxcls uses it in a process of its own, whose death it reports as an
        error.
    """

    samples: Sequence[Files]
    damage: Mapping[str, Damage]
    read: Callable[[Path], object]
    errors: tuple[type[Exception], ...] = (UserError,)
    seconds: float = 20
    gigabytes: int = 1
    in_own_process: bool = False


class UnprintableError(AssertionError):
    """A text that would do something to a terminal."""


def assert_printable(*texts: str) -> None:
    """Checks that texts do nothing to a terminal."""
    for text in texts:
        if any(c not in "\n\t" and (ord(c) < 32 or 127 <= ord(c) < 160) for c in text):
            raise UnprintableError(repr(text))


def write_files(folder: Path, files: Files) -> None:
    """Writes files into a folder, by their paths there."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def written(write: Callable[..., object], *arguments: Any, **options: Any) -> bytes:
    """What a function writes to a path."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder, "w"), *arguments, **options)
        return Path(folder, "w").read_bytes()


def json_bytes(values: Any) -> bytes:
    """JSON as bytes."""
    return json.dumps(values, indent=2).encode()
