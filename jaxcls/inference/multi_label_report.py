"""The details of an evaluation of images that have several labels each."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TextIO

import numpy as np

from jaxcls.data.sources import Source
from jaxcls.inference.predict_split import MultiLabelPredictions
from jaxcls.system.csv_text import csv_line
from jaxcls.system.output import table
from jaxcls.training.multi_label import THRESHOLD, average_precisions, count_predictions


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelResult:
    """The results of a class, of which None is undefined.

    A class counts as predicted if its probability is at least `multi_label.THRESHOLD`.

    Attributes:
      id: the number of the class.
      name: the name of the class.
      num_examples: the number of examples that have this class.
      average_precision: `multi_label.average_precisions`; None without examples.
      recall: the share of its examples for which it is predicted; None without examples.
      precision: the share of its predictions that are correct; None without predictions.
      f1: the harmonic mean of both; None without examples and predictions.
      best_threshold: the probability from which on predicting it gives the highest F1 on this
        split; None without examples.
    """

    id: int
    name: str
    num_examples: int
    average_precision: float | None
    recall: float | None
    precision: float | None
    f1: float | None
    best_threshold: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiLabelEvaluation:
    """A network's predictions for a split of images with several labels.

    Attributes:
      metrics: as `ImageClassifier.evaluate` returns them.
      source: the split.
      class_names: the network's classes by number.
      predictions: the predictions for each example.
    """

    metrics: Mapping[str, float]
    source: Source
    class_names: tuple[str, ...]
    predictions: MultiLabelPredictions

    def per_class(self) -> list[LabelResult]:
        """Returns the result of each class, lowest average precision first; without examples last.

        All classes of the network are listed.
        """
        probabilities, labels = self.predictions.probabilities, self.predictions.labels
        precisions = average_precisions(probabilities, labels)
        right, predicted, wanted = count_predictions(probabilities >= THRESHOLD, labels)
        results = [
            LabelResult(
                id=index,
                name=name,
                num_examples=int(wanted[index]),
                average_precision=float(precisions[index]) if wanted[index] else None,
                recall=_share(right[index], wanted[index]),
                precision=_share(right[index], predicted[index]),
                f1=_share(2 * right[index], predicted[index] + wanted[index]),
                best_threshold=best_threshold(probabilities[:, index], labels[:, index]),
            )
            for index, name in enumerate(self.class_names)
        ]
        return sorted(results, key=_worst_first)

    def write_predictions(self, file: TextIO) -> None:
        """Writes a CSV file with one row for each example, in the order of the split.

        The columns are the example (its file or record number), its classes, the predicted classes,
        the most likely first, and their probabilities; each a list separated by semicolons.
        """
        file.write(csv_line(["example", "labels", "predicted", "probabilities"]))
        rows = self.predictions
        for index, labels, probabilities in zip(
            rows.index.tolist(), rows.labels, rows.probabilities, strict=True
        ):
            order = np.argsort(-probabilities, kind="stable")
            predicted = order[probabilities[order] >= THRESHOLD]
            file.write(
                csv_line(
                    [
                        self.source.example_name(index),
                        self._listed(np.flatnonzero(labels)),
                        self._listed(predicted),
                        ";".join(f"{probability:.6f}" for probability in probabilities[predicted]),
                    ]
                )
            )

    def _listed(self, numbers: np.ndarray) -> str:
        return ";".join(self.class_names[number] for number in numbers)


def best_threshold(probabilities: np.ndarray, labels: np.ndarray) -> float | None:
    """The probability from which on predicting a class gives the highest F1; None without examples.

    Args:
      probabilities: [examples].
      labels: bool [examples].
    """
    if not labels.any():
        return None
    order = np.argsort(-probabilities, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(probabilities[order])), len(order) - 1)
    hits = np.cumsum(labels[order])[ends]
    best = np.argmax(2 * hits / (ends + 1 + hits[-1]))
    return float(probabilities[order][ends[best]])


def describe_labels(results: Sequence[LabelResult]) -> str:
    """Formats the classes as a table for the user."""
    lines = [["class", "examples", "AP", "recall", "precision", "F1", "best threshold"]]
    for result in results:
        shares = (result.average_precision, result.recall, result.precision, result.f1)
        best = result.best_threshold
        lines.append(
            [
                result.name,
                f"{result.num_examples:,}",
                *("-" if share is None else f"{share:.2%}" for share in shares),
                "-" if best is None else f"{best:.3f}",
            ]
        )
    return table(lines, right=(1, 2, 3, 4, 5, 6))


def _worst_first(result: LabelResult) -> tuple[bool, float, int]:
    return result.average_precision is None, result.average_precision or 0.0, result.id


def _share(part: int, whole: int) -> float | None:
    return float(part / whole) if whole else None
