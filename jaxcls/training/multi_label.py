"""How well a network finds all classes of images that may have several."""

import numpy as np

THRESHOLD = 0.5  # a class of this probability or more is predicted


def average_precisions(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Average precision of each class: its precision at each recall that a threshold can reach.

    It is the sum over the thresholds of precision times gain in recall, without interpolation, as
    in scikit-learn; examples with equal scores count together.

    Args:
      scores: [examples, classes]; any increasing function of the probabilities.
      labels: bool [examples, classes], which classes each example has.

    Returns:
      float64 [classes]; NaN for a class that no example has.
    """
    precisions = np.full(scores.shape[1], np.nan)
    for index in np.flatnonzero(labels.any(axis=0)):
        order = np.argsort(-scores[:, index], kind="stable")
        score, right = scores[order, index], labels[order, index]
        ends = np.append(np.flatnonzero(np.diff(score)), len(score) - 1)  # of equal scores
        hits = np.cumsum(right)[ends]
        gained = np.diff(hits, prepend=0) / hits[-1]
        precisions[index] = np.sum(gained * hits / (ends + 1))
    return precisions


def count_predictions(
    predicted: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts right predictions, all predictions and examples of each class, int64 [classes] each.

    Args:
      predicted: bool [examples, classes].
      labels: bool [examples, classes].
    """
    return (predicted & labels).sum(axis=0), predicted.sum(axis=0), labels.sum(axis=0)


def multi_label_metrics(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Metrics of a whole split.

    Args:
      probabilities: [examples, classes].
      labels: bool [examples, classes].

    Returns:
      map: the mean of the classes' average precision; micro_f1: F1 of all predictions with at least
      the probability `THRESHOLD`; macro_f1: the mean of the classes' F1. The means are over the
      classes that some example has. All are 0 if there is no such class.
    """
    right, predicted, wanted = count_predictions(probabilities >= THRESHOLD, labels)
    present = wanted > 0
    if not present.any():
        return {"map": 0.0, "micro_f1": 0.0, "macro_f1": 0.0}
    f1 = 2 * right[present] / (predicted + wanted)[present]
    return {
        "map": float(np.mean(average_precisions(probabilities, labels)[present])),
        "micro_f1": float(2 * right.sum() / (predicted + wanted).sum()),
        "macro_f1": float(np.mean(f1)),
    }
