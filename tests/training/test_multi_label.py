import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score

from jaxcls.training.multi_label import average_precisions, multi_label_metrics


def random_case(seed: int, *, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of a few values, so that there are ties, and labels; each class has some."""
    generator = np.random.default_rng(seed)
    labels = generator.uniform(size=(60, 7)) < np.linspace(0.05, 0.9, 7)
    labels[generator.integers(60, size=7), np.arange(7)] = True
    probabilities = generator.integers(levels + 1, size=labels.shape) / levels
    return probabilities.astype(np.float32), labels


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**16), levels=st.sampled_from([1, 2, 10, 10_000]))
def test_the_metrics_are_those_of_scikit_learn(seed: int, levels: int) -> None:
    probabilities, labels = random_case(seed, levels=levels)
    precisions = average_precisions(probabilities, labels)
    for index, precision in enumerate(precisions):
        expected = average_precision_score(labels[:, index], probabilities[:, index])
        assert precision == pytest.approx(expected)
    predicted = probabilities >= 0.5
    assert multi_label_metrics(probabilities, labels) == pytest.approx(
        {
            "map": np.mean(precisions),
            "micro_f1": f1_score(labels, predicted, average="micro"),
            "macro_f1": f1_score(labels, predicted, average="macro"),
        }
    )


def test_classes_without_examples_do_not_count() -> None:
    probabilities, labels = random_case(0, levels=10)
    more = np.concatenate([labels, np.zeros((60, 1), bool)], axis=1)
    unused = np.concatenate([probabilities, np.zeros((60, 1), np.float32)], axis=1)
    assert np.isnan(average_precisions(unused, more)[-1])
    assert multi_label_metrics(unused, more) == multi_label_metrics(probabilities, labels)


def test_a_split_without_any_class_scores_0() -> None:
    nothing = np.zeros((3, 2))
    assert set(multi_label_metrics(nothing, nothing > 0).values()) == {0.0}


def test_the_order_of_examples_does_not_matter() -> None:
    probabilities, labels = random_case(1, levels=3)
    assert multi_label_metrics(probabilities[::-1], labels[::-1]) == pytest.approx(
        multi_label_metrics(probabilities, labels)
    )
