import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcls.distributed.mesh import make_mesh, replicated, split_by_example
from jaxcls.training.accuracy import count_hits, count_hits_of_classes

counted = jax.jit(count_hits)


def reference(logits: np.ndarray, labels: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Counts by sorting each row: best first, equal ones by class number, NaN last."""
    sums = {"top1": 0, "top5": 0, "num_examples": 0}
    for row, label, counts in zip(logits, labels, mask, strict=True):
        if not counts:
            continue
        order = sorted(range(len(row)), key=lambda c: (np.isnan(row[c]), -np.nan_to_num(row[c]), c))
        # A label whose own logit is no number is no guess at all.
        rank = len(row) if np.isnan(row[label]) else order.index(label)
        sums["top1"] += rank < 1
        sums["top5"] += rank < 5
        sums["num_examples"] += 1
    return {name: float(value) for name, value in sums.items()}


def count(logits: object, labels: object, mask: object = None) -> dict[str, float]:
    sums = counted(
        jnp.asarray(logits), jnp.asarray(labels), None if mask is None else jnp.asarray(mask)
    )
    return {name: float(value) for name, value in sums.items()}


@pytest.mark.parametrize("num_classes", [2, 4, 5, 6, 10, 1000])
def test_counts_are_those_of_sorting_in_numpy(num_classes: int) -> None:
    generator = np.random.default_rng(num_classes)
    logits = generator.normal(size=(64, num_classes)).astype(np.float32)
    labels = generator.integers(num_classes, size=64)
    mask = generator.random(64) < 0.7
    assert count(logits, labels, mask) == reference(logits, labels, mask)
    assert count(logits, labels) == reference(logits, labels, np.ones(64, bool))


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_counts_with_ties_infinities_and_nans_are_those_of_sorting(data: st.DataObject) -> None:
    def rows(values: st.SearchStrategy, size: int) -> np.ndarray:
        return np.array(data.draw(st.lists(values, min_size=size, max_size=size)))

    num_classes = data.draw(st.sampled_from([3, 7]))
    logit = st.sampled_from([0.0, 1.0, -1.0, np.inf, -np.inf, np.nan])
    logits = rows(logit, 8 * num_classes).reshape(8, num_classes).astype(np.float32)
    labels = rows(st.integers(0, num_classes - 1), 8)
    mask = rows(st.booleans(), 8)
    assert count(logits, labels, mask) == reference(logits, labels, mask)


def test_a_constant_network_scores_no_more_than_guessing() -> None:
    sums = count(np.zeros((10, 10), np.float32), np.arange(10))
    assert sums == {"top1": 1.0, "top5": 5.0, "num_examples": 10.0}


def test_ties_rank_by_class_number() -> None:
    logits = np.array([[1, 3, 3, 0]] * 2, np.float32)
    assert count(logits[:1], [1])["top1"] == 1
    assert count(logits[1:], [2])["top1"] == 0


def test_a_network_of_nans_never_scores() -> None:
    sums = count(np.full((10, 10), np.nan, np.float32), np.arange(10))
    assert sums == {"top1": 0.0, "top5": 0.0, "num_examples": 10.0}


def test_a_nan_elsewhere_does_not_take_the_place_of_the_best_guess() -> None:
    assert count(np.array([[np.nan, 1, 0]], np.float32), [1])["top1"] == 1


@pytest.mark.parametrize("num_classes", [2, 3, 4])
def test_with_fewer_than_five_classes_every_example_is_in_the_top_five(num_classes: int) -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(20, num_classes)).astype(np.float32)
    sums = count(logits, generator.integers(num_classes, size=20))
    assert sums["top5"] == sums["num_examples"] == 20


def test_masked_examples_count_for_nothing() -> None:
    logits = np.eye(6, dtype=np.float32)
    mask = [True, False, True, False, False, False]
    assert count(logits, np.arange(6), mask) == {"top1": 2, "top5": 2, "num_examples": 2}
    assert count(logits, np.arange(6), [False] * 6) == {"top1": 0, "top5": 0, "num_examples": 0}


def test_any_split_adds_up_to_the_whole() -> None:
    generator = np.random.default_rng(1)
    logits = generator.normal(size=(48, 10)).astype(np.float32)
    labels = generator.integers(10, size=48)
    whole = count(logits, labels)
    for size in (16, 24):
        parts = [
            count(logits[start : start + size], labels[start : start + size])
            for start in range(0, 48, size)
        ]
        assert {name: sum(part[name] for part in parts) for name in whole} == whole


def test_bfloat16_logits_are_counted_exactly() -> None:
    num_examples = 1024  # a bfloat16 sum would stop at 256
    logits = jnp.tile(jnp.asarray([[0, 1]], jnp.bfloat16), (num_examples, 1))
    sums = counted(logits, jnp.ones(num_examples, jnp.int32))
    assert sums["top1"] == num_examples
    assert all(value.dtype == jnp.float32 for value in sums.values())


def test_counting_gathers_no_logits() -> None:
    mesh = make_mesh()
    split = split_by_example(mesh)
    count_split = jax.jit(count_hits, in_shardings=(split, split), out_shardings=replicated(mesh))
    text = count_split.lower(jnp.zeros((16, 10)), jnp.zeros(16, jnp.int32)).compile().as_text()
    assert text is not None
    assert "all-reduce" in text
    assert "all-gather" not in text


# Several labels an image


def test_of_several_labels_the_best_guess_counts() -> None:
    logits = jnp.asarray([[3.0, 2, 1, 0, -1, -2], [3, 2, 1, 0, -1, -2], [3, 2, 1, 0, -1, -2]])
    labels = jnp.asarray([[1, 0, 1, 0, 0, 0], [0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 1]], bool)
    assert count(logits, labels) == {"top1": 1, "top5": 2, "num_examples": 3}


def test_an_image_without_a_label_never_scores() -> None:
    none = jnp.zeros((2, 3), bool)
    assert count(jnp.zeros((2, 3)), none) == {"top1": 0, "top5": 0, "num_examples": 2}


def test_one_label_gives_the_same_in_both_forms() -> None:
    generator = np.random.default_rng(3)
    logits = generator.integers(3, size=(64, 8)).astype(np.float32)  # ties
    logits[generator.uniform(size=logits.shape) < 0.1] = np.nan
    labels = generator.integers(8, size=64)
    mask = generator.uniform(size=64) < 0.8
    one_hot = np.eye(8, dtype=bool)[labels]
    assert count(logits, one_hot, mask) == count(logits, labels, mask)


def test_classes_are_counted_one_by_one() -> None:
    logits = jnp.asarray([[1.0, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 1]])
    labels, mask = jnp.asarray([0, 0, 1, 5]), jnp.asarray([True, True, True, True])
    counts = count_hits_of_classes(logits, labels, mask)  # 5 is a class the network does not know
    np.testing.assert_array_equal(counts["class_examples"], [2, 1, 0])
    np.testing.assert_array_equal(counts["class_top1"], [1, 1, 0])
    masked = count_hits_of_classes(logits, labels, jnp.asarray([True, False, False, False]))
    np.testing.assert_array_equal(masked["class_examples"], [1, 0, 0])
