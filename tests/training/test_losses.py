import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcls.training.losses import LOSSES, one_hot_labels, smooth_labels


def random_case(num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and soft labels whose rows sum to 1."""
    generator = np.random.default_rng(num_classes)
    logits = generator.normal(scale=3, size=(16, num_classes))
    labels = generator.dirichlet(np.ones(num_classes), size=16)
    return logits.astype(np.float32), labels.astype(np.float32)


def softmax_reference(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    exponents = np.exp(logits.astype(np.float64))
    return -(labels * np.log(exponents / exponents.sum(-1, keepdims=True))).sum(-1)


def sigmoid_reference(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    probabilities = 1 / (1 + np.exp(-logits.astype(np.float64)))
    return -(labels * np.log(probabilities) + (1 - labels) * np.log(1 - probabilities)).sum(-1)


REFERENCES = {"softmax": softmax_reference, "sigmoid": sigmoid_reference}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("num_classes", [2, 10, 1000])
def test_a_loss_is_its_formula_one_number_an_example(name: str, num_classes: int) -> None:
    logits, labels = random_case(num_classes)
    losses = LOSSES[name](jnp.asarray(logits), jnp.asarray(labels))
    assert losses.shape == (16,)
    assert losses.dtype == jnp.float32
    np.testing.assert_allclose(losses, REFERENCES[name](logits, labels), rtol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_extreme_logits_give_finite_losses_and_gradients(name: str) -> None:
    logits = jnp.asarray([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]])
    labels = one_hot_labels(jnp.asarray([0, 0]), 3)
    losses, gradient = jax.value_and_grad(lambda x: LOSSES[name](x, labels).sum())(logits)
    assert np.isfinite(losses)
    assert np.isfinite(gradient).all()
    right, wrong = LOSSES[name](logits, labels)
    assert right < 1 < 1e4 <= wrong


def test_the_gradient_of_softmax_is_probability_minus_label() -> None:
    logits, labels = random_case(10)
    gradient = jax.grad(lambda x: LOSSES["softmax"](x, jnp.asarray(labels)).sum())(
        jnp.asarray(logits)
    )
    exponents = np.exp(logits.astype(np.float64))
    expected = exponents / exponents.sum(-1, keepdims=True) - labels
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_the_losses_are_those_that_the_config_names() -> None:
    assert set(LOSSES) == {"softmax", "sigmoid"}


def test_soft_labels_are_one_hot_rows() -> None:
    rows = one_hot_labels(jnp.asarray([2, 0]), 3)
    assert rows.dtype == jnp.float32
    np.testing.assert_array_equal(rows, [[0, 0, 1], [1, 0, 0]])


def test_smoothing_spreads_its_share_over_all_classes() -> None:
    rows = smooth_labels(one_hot_labels(jnp.asarray([1]), 4), 0.1)
    np.testing.assert_allclose(rows, [[0.025, 0.925, 0.025, 0.025]], rtol=1e-6)


def test_smoothing_keeps_the_mass_of_mixed_labels() -> None:
    _, labels = random_case(10)
    smoothed = smooth_labels(jnp.asarray(labels), 0.3)
    np.testing.assert_allclose(smoothed.sum(-1), labels.sum(-1), rtol=1e-6)
    np.testing.assert_allclose(smoothed, 0.7 * labels + 0.03, rtol=1e-5)


def test_no_smoothing_and_full_smoothing_are_the_ends() -> None:
    rows = one_hot_labels(jnp.asarray([1]), 4)
    np.testing.assert_array_equal(smooth_labels(rows, 0.0), rows)
    np.testing.assert_array_equal(smooth_labels(rows, 1.0), np.full((1, 4), 0.25))
