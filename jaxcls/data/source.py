"""What a data set is to the rest of jaxcls: random access to (encoded image, label)."""

import abc
import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np


@dataclasses.dataclass(frozen=True)
class Record:
    """One example as stored.

    Attributes:
      image: content of an image file.
      label: class number in [0, num_classes).
    """

    image: bytes
    label: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source(abc.ABC):
    """Random access to the records of one split; picklable, and safe to read from many threads.

    Attributes:
      name: the data set, for messages and charts.
      split: the split as asked for, for example "train[:90%]".
      class_names: one name a class, in the order of the labels.
      broken: images that turned out broken since the split was opened: record -> what is wrong.
        Filled where batches are consumed, in this process only.
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
        """What must be the same when a run goes on: version, if it has one, and size."""
        return f"{len(self)} examples"

    def describe(self, index: int) -> str:
        """What an error calls record `index`."""
        return f"record {index} of {self.name} {self.split!r}"

    def class_counts(self) -> np.ndarray:
        """How many examples each class has, int64 [num_classes]; reads every record.

        Raises:
          DataError: a record cannot be read.
        """
        with ThreadPoolExecutor(8) as threads:
            labels = list(threads.map(lambda index: self[index].label, range(len(self))))
        return np.bincount(labels, minlength=self.num_classes)

    def example_name(self, index: int) -> str:
        """What a list of examples calls record `index`: its file, or else its number."""
        return str(index)

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def __getitem__(self, index: int) -> Record:
        """Reads record `index`, 0 <= index < len(self).

        Raises:
          DataError: the record cannot be read, or its label is no class number.
        """
