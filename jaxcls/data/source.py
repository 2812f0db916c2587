"""The interface of a data set: random access to encoded images and their labels."""

import abc
import dataclasses
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from etils import epath


@dataclasses.dataclass(frozen=True)
class Record:
    """One example as stored.

    Attributes:
      image: the content of an image file.
      label: the class number, in [0, num_classes).
    """

    image: bytes
    label: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source(abc.ABC):
    """Random access to the records of one split; picklable and thread-safe.

    Attributes:
      name: the name of the data set, for messages and charts.
      split: the split as the user named it, for example "train[:90%]".
      class_names: the names of the classes, in the order of the labels.
      broken: broken images found since the split was opened: record -> error message. Filled in the
        process that reads the batches.
    """

    name: str
    split: str
    class_names: tuple[str, ...]
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

        Raises:
          DataError: a record cannot be read.
        """
        with ThreadPoolExecutor(8) as threads:
            labels = list(threads.map(lambda index: self[index].label, range(len(self))))
        return np.bincount(labels, minlength=self.num_classes)

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
