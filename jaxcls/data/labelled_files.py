"""Image files with labels, and how they are split."""

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from jaxcls.data.source import Label, Record, Source
from jaxcls.system.errors import DataError


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileSource(Source):
    """One split whose images are files.

    Attributes:
      root: the folder that paths are relative to.
      files: paths of the images under root, or absolute.
      labels: the label of each file.
    """

    root: str
    files: tuple[str, ...]
    labels: tuple[Label, ...]

    @property
    def identity(self) -> str:
        return f"{super().identity}, files {_hash(chr(10).join(self.files), 0).hex()}"

    def all_labels(self) -> Sequence[Label]:
        return self.labels

    def describe(self, index: int) -> str:
        return f"image {self.example_name(index)!r}"

    def example_name(self, index: int) -> str:
        return os.path.join(self.root, self.files[index])

    def stored_files(self) -> dict[str, Path]:
        return {file: Path(self.root, file) for file in self.files}

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Record:
        try:
            data = Path(self.root, self.files[index]).read_bytes()
        except OSError as error:
            raise DataError(
                f"{self.describe(index)}: cannot be read ({error.strerror}); restore it, or remove "
                f"it and start again"
            ) from error
        return Record(data, self.labels[index])


@dataclasses.dataclass(frozen=True)
class FileSplit[T]:
    """The files of a split in order, each with what belongs to it, such as its class."""

    files: tuple[tuple[str, T], ...]

    @property
    def num_examples(self) -> int:
        return len(self.files)

    @property
    def shard_lengths(self) -> list[int]:
        return [len(self.files)]  # TFDS's split syntax needs this


def spread(by_class: Mapping[str, Iterable[str]], seed: int) -> list[tuple[float, str, str]]:
    """Sorted (place in [0, 1], file, class); the files of a class are spread evenly over [0, 1].

    So any slice of the list has the classes in proportion. Places follow from names and seed alone.
    """
    placed = []
    for name, members in by_class.items():
        shuffled = sorted(members, key=lambda file: _hash(file, seed))
        placed += [((i + 0.5) / len(shuffled), file, name) for i, file in enumerate(shuffled)]
    return sorted(placed, key=lambda entry: (entry[0], _hash(entry[1], seed)))


def train_and_test(
    placed: Iterable[tuple[float, str, str]],
    *,
    test_share: float,
    classes: Mapping[str, Iterable[str | int]] | None = None,
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Splits the result of `spread` into (file, class) of `train` and of `test`.

    The same share of each class is in `test`; the first file of a class is always in `train`.

    Args:
      placed: the files and classes. Files of several classes may be spread as one class.
      test_share: the share of `test`.
      classes: all classes of each file; None if they are those of `placed`.
    """
    train, test = [], []
    seen: set[str | int] = set()
    for place, file, name in placed:
        names = {name} if classes is None else {name, *classes[file]}
        (test if place >= 1 - test_share and names <= seen else train).append((file, name))
        seen |= names
    return train, test


def _hash(file: str, seed: int) -> bytes:
    return hashlib.blake2b(os.fsencode(f"{seed}/{file}"), digest_size=8).digest()
