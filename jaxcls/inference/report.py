"""What an evaluation tells beside its metrics: classes, their confusion, and every example."""

import contextlib
import csv
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

import numpy as np

from jaxcls.data.sources import Source
from jaxcls.inference.predict_split import Predictions
from jaxcls.system.errors import UserError
from jaxcls.system.output import table
from jaxcls.system.whole_files import replacing, try_writing


@dataclasses.dataclass(frozen=True, kw_only=True)
class Confused:
    """A class that another one is taken for, and how often."""

    id: int
    name: str
    count: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassResult:
    """How a class fared.

    Attributes:
      id: number of the class.
      name: of the class.
      num_examples: of this class.
      top1: share of them that the network takes for this class (recall); None without examples.
      precision: share of what the network takes for this class that is of it; None if it never
        does.
      confused_with: the other class that it is most often taken for; None if for no other.
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
      class_names: the network's, in the order of its class numbers.
      predictions: for each example.
      class_map: the network's class of each class of the source (None: they are the same).
      num_known: classes that the network knows; later numbers stand for other classes of the data.
    """

    metrics: Mapping[str, float]
    source: Source
    class_names: tuple[str, ...]
    predictions: Predictions
    class_map: Sequence[int] | None = None
    num_known: int | None = None

    @property
    def classes(self) -> list[int]:
        """The network's classes of which the data may have examples, ascending."""
        return sorted(
            set(range(len(self.class_names)) if self.class_map is None else self.class_map)
        )

    def per_class(self) -> list[ClassResult]:
        """Every class of the data, lowest accuracy first; those without examples last."""
        labels, predicted = self.predictions.labels, self.predictions.predicted
        num_classes = len(self.class_names)
        known = num_classes if self.num_known is None else self.num_known
        num_examples = np.bincount(labels, minlength=num_classes)
        num_predicted = np.bincount(predicted, minlength=num_classes)
        num_right = np.bincount(labels[labels == predicted], minlength=num_classes)
        worst = _most_confused(labels, predicted, self.class_names)
        results = [
            ClassResult(
                id=index,
                name=self.class_names[index],
                num_examples=int(num_examples[index]),
                top1=_share(num_right[index], num_examples[index]) if index < known else None,
                precision=_share(num_right[index], num_predicted[index]),
                confused_with=worst.get(index),
            )
            for index in self.classes
        ]
        return sorted(results, key=_worst_first)

    def confusion_matrix(self) -> np.ndarray:
        """Examples of class i that are taken for class j, int64 [classes, classes]."""
        num_classes = len(self.class_names)
        pairs = _pairs(self.predictions.labels, self.predictions.predicted, num_classes)
        counts = np.bincount(pairs, minlength=num_classes**2)
        return counts.reshape(num_classes, num_classes)

    def write_predictions(self, file: TextIO) -> None:
        """Writes CSV: a row an example, in the order of the split.

        The columns are the example (its file, or else its record number), its class, the class that
        is predicted, that one's probability, and then the next best classes with theirs.
        """
        writer = csv.writer(file, lineterminator="\n")
        top = self.predictions.classes.shape[1]
        more = [
            f"{name}_{rank}" for rank in range(2, top + 1) for name in ("predicted", "probability")
        ]
        writer.writerow(["example", "label", "predicted", "probability", *more])
        names, rows = self.class_names, self.predictions
        for index, label, classes, probabilities in zip(
            rows.index.tolist(),
            rows.labels.tolist(),
            rows.classes.tolist(),
            rows.probabilities.tolist(),
            strict=True,
        ):
            cells = [self.source.example_name(index), names[label]]
            for guess, probability in zip(classes, probabilities, strict=True):
                cells += [names[guess], f"{probability:.6f}"]
            writer.writerow(cells)


def describe_classes(results: Sequence[ClassResult]) -> str:
    """The classes as a table for a person."""
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
    """Checks that a file can be written, before hours are spent on what shall stand in it.

    Raises:
      UserError: it cannot; the message names it.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"cannot write {str(path)!r}: it is no file")
    try:
        try_writing(_target(path))
    except OSError as error:
        raise _not_written(path, error) from error


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[TextIO]:
    """A text file to write, which appears when the block ends well, and otherwise not at all.

    Raises:
      UserError: it cannot be written.
    """
    try:
        with (
            replacing(_target(path)) as temporary,
            # A photo's name need not be UTF-8.
            temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
        ):
            yield file
    except OSError as error:
        raise _not_written(path, error) from error


def _target(path: Path) -> Path:
    return Path(os.path.realpath(path))  # what a link points to is replaced, not the link


def _not_written(path: Path, error: OSError) -> UserError:
    return UserError(f"cannot write {str(path)!r}: {error.strerror}")


def _pairs(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """One number for each pair of label and prediction."""
    return labels.astype(np.int64) * num_classes + predicted


def _most_confused(
    labels: np.ndarray, predicted: np.ndarray, class_names: Sequence[str]
) -> dict[int, Confused]:
    """For each class with a mistake, the class that it is most often taken for.

    Of two as frequent, the one of the lower number. Needs no matrix, which is large with many
    classes.
    """
    wrong = labels != predicted
    pairs = _pairs(labels[wrong], predicted[wrong], len(class_names))
    worst: dict[int, Confused] = {}
    for pair, count in zip(*np.unique(pairs, return_counts=True), strict=True):
        label, other = divmod(int(pair), len(class_names))
        if label not in worst or count > worst[label].count:
            worst[label] = Confused(id=other, name=class_names[other], count=int(count))
    return worst


def _worst_first(result: ClassResult) -> tuple[bool, float, int]:
    return result.top1 is None, result.top1 or 0.0, result.id


def _share(part: int, whole: int) -> float | None:
    return float(part / whole) if whole else None


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"
