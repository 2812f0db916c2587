"""The details of an evaluation: results of each class, confusion matrix, table of predictions."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

import numpy as np

from jaxcls.data.sources import Source
from jaxcls.inference.confusion import confusion_matrix, most_confused
from jaxcls.inference.predict_split import Predictions
from jaxcls.system.csv_text import csv_line
from jaxcls.system.errors import UserError
from jaxcls.system.output import table
from jaxcls.system.whole_files import replacing, try_writing


@dataclasses.dataclass(frozen=True, kw_only=True)
class Confused:
    """The class that another class is confused with most often, and how often."""

    id: int
    name: str
    count: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassResult:
    """The results of a class.

    Attributes:
      id: the number of the class.
      name: the name of the class.
      num_examples: the number of examples of this class.
      top1: the share of its examples that are predicted as this class (recall); None without
        examples.
      precision: the share of the predictions of this class that are correct; None without
        predictions.
      confused_with: the other class that is predicted most often for it; None if there is none.
    """

    id: int
    name: str
    num_examples: int
    top1: float | None
    precision: float | None
    confused_with: Confused | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A network's predictions for a split.

    Attributes:
      metrics: as `ImageClassifier.evaluate` returns them.
      source: the split.
      class_names: the network's classes by number, then the classes of the data.
      predictions: the predictions for each example.
      class_map: the network's number for each class of the source (None: they are the same).
      num_known: the number of classes that the network knows; higher numbers are other classes of
        the data.
    """

    metrics: Mapping[str, float]
    source: Source
    class_names: tuple[str, ...]
    predictions: Predictions
    class_map: Sequence[int] | None = None
    num_known: int | None = None

    @property
    def classes(self) -> list[int]:
        """The numbers of the classes that the data may have examples of, ascending."""
        return sorted(
            set(range(len(self.class_names)) if self.class_map is None else self.class_map)
        )

    def per_class(self) -> list[ClassResult]:
        """Returns the result of each class, lowest accuracy first; without examples last."""
        labels, predicted = self.predictions.labels, self.predictions.predicted
        num_classes = len(self.class_names)
        known = num_classes if self.num_known is None else self.num_known
        num_examples = np.bincount(labels, minlength=num_classes)
        num_predicted = np.bincount(predicted, minlength=num_classes)
        num_right = np.bincount(labels[labels == predicted], minlength=num_classes)
        worst = most_confused(labels, predicted, num_classes)
        results = [
            ClassResult(
                id=index,
                name=self.class_names[index],
                num_examples=int(num_examples[index]),
                top1=_share(num_right[index], num_examples[index]) if index < known else None,
                precision=_share(num_right[index], num_predicted[index]),
                confused_with=self._confused(*worst[index]) if index in worst else None,
            )
            for index in self.classes
        ]
        return sorted(results, key=_worst_first)

    def _confused(self, other: int, count: int) -> Confused:
        return Confused(id=other, name=self.class_names[other], count=count)

    def confusion_matrix(self) -> np.ndarray:
        """Counts the examples of class i predicted as class j, int64 [classes, classes]."""
        predictions = self.predictions
        return confusion_matrix(predictions.labels, predictions.predicted, len(self.class_names))

    def write_predictions(self, file: TextIO) -> None:
        """Writes a CSV file with one row for each example, in the order of the split.

        The columns are the example (its file or record number), its class, the predicted class and
        its probability, then the next best classes and their probabilities. `read_csv` reads it.
        """
        top = self.predictions.classes.shape[1]
        more = [
            f"{name}_{rank}" for rank in range(2, top + 1) for name in ("predicted", "probability")
        ]
        file.write(csv_line(["example", "label", "predicted", "probability", *more]))
        names, rows = self.class_names, self.predictions
        for index, label, classes, probabilities in zip(
            rows.index.tolist(),
            rows.labels.tolist(),
            rows.classes.tolist(),
            rows.probabilities.tolist(),
            strict=True,
        ):
            cells: list[str | float] = [self.source.example_name(index), names[label]]
            for guess, probability in zip(classes, probabilities, strict=True):
                cells += [names[guess], probability]
            file.write(csv_line(cells))


def describe_classes(results: Sequence[ClassResult]) -> str:
    """Formats the classes as a table for the user."""
    lines = [["class", "examples", "top1", "precision", "most confused with"]]
    for result in results:
        other = result.confused_with
        lines.append(
            [
                result.name,
                f"{result.num_examples:,}",
                _percent(result.top1),
                _percent(result.precision),
                f"{other.name} ({other.count})" if other else "-",
            ]
        )
    return table(lines, right=(1, 2, 3))


def require_writable(path: Path) -> None:
    """Checks that a file can be written, before its content takes hours to compute.

    Raises:
      UserError: it cannot be written; the message names it.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"cannot write {str(path)!r}: it is not a file")
    try:
        try_writing(_target(path))
    except OSError as error:
        raise _not_written(path, error) from error


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[TextIO]:
    """Opens a text file for writing, which appears only if the block ends without an error.

    Raises:
      UserError: the file cannot be written.
    """
    try:
        with (
            replacing(_target(path)) as temporary,
            # The name of a photo may not be UTF-8.
            temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
        ):
            yield file
    except OSError as error:
        raise _not_written(path, error) from error


def _target(path: Path) -> Path:
    return Path(os.path.realpath(path))  # replaces the target of a link, not the link


def _not_written(path: Path, error: OSError) -> UserError:
    return UserError(f"cannot write {str(path)!r}: {error.strerror}")


def _worst_first(result: ClassResult) -> tuple[bool, float, int]:
    return result.top1 is None, result.top1 or 0.0, result.id


def _share(part: int, whole: int) -> float | None:
    return float(part / whole) if whole else None


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"
