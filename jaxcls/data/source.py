"""The interface of a data set: random access to encoded images and their labels."""

import abc
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from etils import epath

from jaxcls.system.errors import DataError

if TYPE_CHECKING:
    from jaxcls.config import DataConfig

type Label = int | tuple[int, ...]  # a class number, or those of all classes of an image


@dataclasses.dataclass(frozen=True)
class Record:
    """One example as stored.

    Attributes:
      image: the content of an image file.
      label: the class number, in [0, num_classes). In a source with `multi_label`: the numbers of
        all its classes, perhaps none, ascending and each once.
    """

    image: bytes
    label: Label


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source(abc.ABC):
    """Random access to the records of one split; picklable and thread-safe.

    Attributes:
      name: the name of the data set, for messages and charts.
      split: the split as the user named it, for example "train[:90%]".
      class_names: the names of the classes, in the order of the labels.
      multi_label: whether an image may have any number of classes (data.labels "multiple").
      broken: broken images found since the split was opened: record -> error message. Filled in the
        process that reads the batches.
    """

    name: str
    split: str
    class_names: tuple[str, ...]
    multi_label: bool = False
    broken: dict[int, str] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def identity(self) -> str:
        """A text that must be the same when a run resumes: the version, if any, and the size."""
        return f"{len(self)} examples"

    def describe(self, index: int) -> str:
        """Returns the name of record `index` in error messages."""
        return f"record {index} of {self.name} {self.split!r}"

    def class_counts(self) -> np.ndarray:
        """Counts the examples of each class, int64 [num_classes]; reads every record.

        An image with several classes counts for each of them.

        Raises:
          DataError: a record cannot be read.
        """
        return count_classes(self.all_labels(), self.num_classes)

    def all_labels(self) -> Sequence[Label]:
        """Returns the label of each record; reads every record.

        Raises:
          DataError: a record cannot be read.
        """
        with ThreadPoolExecutor(8) as threads:
            return list(threads.map(lambda index: self[index].label, range(len(self))))

    def example_name(self, index: int) -> str:
        """Returns the name of record `index` in lists of examples: its file, or its number."""
        return str(index)

    def stored_files(self) -> Mapping[str, Path | epath.Path]:
        """Returns the files that hold the records: a name that stays the same -> where it is."""
        raise NotImplementedError(f"{type(self).__name__} does not say which files it reads")

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def __getitem__(self, index: int) -> Record:
        """Reads record `index`, 0 <= index < len(self).

        Raises:
          DataError: the record cannot be read, or its label is not a class number.
        """


def classes_of(label: Label) -> tuple[int, ...]:
    """Returns the numbers of the classes that a record with this label has."""
    return label if isinstance(label, tuple) else (label,)


def count_classes(labels: Iterable[Label], num_classes: int) -> np.ndarray:
    """Counts the labels that have each class, int64 [num_classes]."""
    numbers = [number for label in labels for number in classes_of(label)]
    return np.bincount(np.asarray(numbers, np.int64), minlength=num_classes)


def require_single_labels(data: "DataConfig") -> None:
    """Checks that a source whose images have one class each is not asked for several.

    Raises:
      DataError: data.labels is "multiple".
    """
    if data.labels == "multiple":
        raise DataError(
            f'data.labels: "multiple" does not fit {data.source!r}, whose images have one class '
            f"each; list the classes of each image in a file, and name it as data.source csv:FILE"
        )
