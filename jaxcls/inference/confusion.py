"""Which classes a network confuses with each other."""

import numpy as np


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts the examples of class i predicted as class j, int64 [classes, classes].

    Args:
      labels: class numbers, int [examples].
      predicted: the predicted class numbers, int [examples].
      num_classes: the number of classes.
    """
    counts = np.bincount(_pairs(labels, predicted, num_classes), minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def most_confused(
    labels: np.ndarray, predicted: np.ndarray, num_classes: int
) -> dict[int, tuple[int, int]]:
    """Returns, for each class with mistakes, the class predicted most often instead, and its count.

    Ties go to the lower class number. No confusion matrix is used, because with many classes it is
    large.
    """
    wrong = labels != predicted
    pairs = _pairs(labels[wrong], predicted[wrong], num_classes)
    worst: dict[int, tuple[int, int]] = {}
    for pair, count in zip(*np.unique(pairs, return_counts=True), strict=True):
        label, other = divmod(int(pair), num_classes)
        if label not in worst or count > worst[label][1]:
            worst[label] = other, int(count)
    return worst


def _pairs(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns one number for each pair of label and prediction."""
    return labels.astype(np.int64) * num_classes + predicted
