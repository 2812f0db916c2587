import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import Array

from jaxcls.config import LossConfig
from jaxcls.training.losses import (
    evaluation_loss,
    make_training_loss,
    smooth_labels,
    soft_labels,
)


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

CONFIGS = {
    "softmax": LossConfig(),
    "softmax, focal": LossConfig(focal=2),
    "softmax, focal below 1": LossConfig(focal=0.5),
    "sigmoid": LossConfig(name="sigmoid"),
    "sigmoid, focal": LossConfig(name="sigmoid", focal=2),
    "asymmetric": LossConfig(name="asymmetric"),
    "asymmetric without margin": LossConfig(name="asymmetric", margin=0, positive_focal=0.5),
}


type AnyLoss = Callable[[Any, Any], Array]  # also of numpy arrays


def training_loss(
    config: LossConfig,
    num_classes: int,
    *,
    class_weights: np.ndarray | None = None,
    class_prior: np.ndarray | None = None,
) -> AnyLoss:
    """The loss without smoothing."""
    return make_training_loss(
        dataclasses.replace(config, label_smoothing=0),
        class_weights=class_weights,
        class_prior=np.zeros(num_classes) if class_prior is None else class_prior,
    )


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("num_classes", [2, 10, 1000])
def test_a_loss_is_its_formula_one_number_an_example(name: Any, num_classes: int) -> None:
    logits, labels = random_case(num_classes)
    for loss in (training_loss(LossConfig(name=name), num_classes), evaluation_loss(name)):
        losses = loss(jnp.asarray(logits), jnp.asarray(labels))
        assert losses.shape == (16,)
        assert losses.dtype == jnp.float32
        np.testing.assert_allclose(losses, REFERENCES[name](logits, labels), rtol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_extreme_logits_give_finite_losses_and_gradients(name: str) -> None:
    loss = training_loss(CONFIGS[name], 3)
    logits = jnp.asarray([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0], [0.0, 0.0, 0.0]])
    labels = soft_labels(jnp.asarray([0, 0, 0]), 3)
    losses, gradient = jax.value_and_grad(lambda x: loss(x, labels).sum())(logits)
    assert np.isfinite(losses)
    assert np.isfinite(gradient).all()
    right, wrong, _ = loss(logits, labels)
    assert right < 1 < 1e4 <= wrong


def test_the_gradient_of_softmax_is_probability_minus_label() -> None:
    logits, labels = random_case(10)
    loss = training_loss(LossConfig(), 10)
    gradient = jax.grad(lambda x: loss(x, jnp.asarray(labels)).sum())(jnp.asarray(logits))
    exponents = np.exp(logits.astype(np.float64))
    expected = exponents / exponents.sum(-1, keepdims=True) - labels
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


# Focal and asymmetric losses


def hard_case(num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels of which several may be 1."""
    generator = np.random.default_rng(num_classes)
    logits = generator.normal(scale=3, size=(16, num_classes)).astype(np.float32)
    return logits, (generator.uniform(size=logits.shape) < 0.2).astype(np.float32)


@pytest.mark.parametrize("focal", [0.5, 1, 2.5])
def test_the_focal_loss_of_independent_classes_is_that_of_optax(focal: float) -> None:
    logits, labels = hard_case(12)
    losses = training_loss(LossConfig(name="sigmoid", focal=focal), 12)(logits, labels)
    expected = optax.sigmoid_focal_loss(logits, labels, gamma=focal).sum(axis=-1)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


@pytest.mark.parametrize("focal", [0.5, 1, 2.5])
def test_the_focal_loss_of_one_class_is_that_of_keras(focal: float) -> None:
    """`keras.losses.CategoricalFocalCrossentropy` with alpha 1."""
    logits, labels = random_case(12)
    losses = training_loss(LossConfig(focal=focal), 12)(logits, labels)
    exponents = np.exp(logits.astype(np.float64))
    p = exponents / exponents.sum(-1, keepdims=True)
    np.testing.assert_allclose(losses, -(labels * (1 - p) ** focal * np.log(p)).sum(-1), rtol=1e-4)


def asymmetric_reference(
    logits: np.ndarray, labels: np.ndarray, *, positive: float, negative: float, margin: float
) -> np.ndarray:
    """The steps of the authors' `AsymmetricLoss`, for labels that are 0 or 1."""
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    not_p = np.minimum(1 - p + margin, 1)
    loss = labels * np.log(p) + (1 - labels) * np.log(not_p)
    certainty = p * labels + not_p * (1 - labels)
    return -(loss * (1 - certainty) ** (positive * labels + negative * (1 - labels))).sum(-1)


@pytest.mark.parametrize(
    ("positive", "negative", "margin"), [(0, 4, 0.05), (1, 4, 0.05), (0.5, 2, 0), (0, 0, 0.2)]
)
def test_the_asymmetric_loss_is_its_formula(
    positive: float, negative: float, margin: float
) -> None:
    config = LossConfig(
        name="asymmetric", positive_focal=positive, negative_focal=negative, margin=margin
    )
    logits, labels = hard_case(80)
    losses = training_loss(config, 80)(jnp.asarray(logits), jnp.asarray(labels))
    expected = asymmetric_reference(
        logits, labels, positive=positive, negative=negative, margin=margin
    )
    np.testing.assert_allclose(losses, expected, rtol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_loss_of_mixed_labels_is_the_mixed_loss(name: str) -> None:
    logits, labels = hard_case(12)
    loss = training_loss(CONFIGS[name], 12)
    own, others = loss(logits, labels), loss(logits, labels[::-1])
    mixed = loss(logits, 0.3 * labels + 0.7 * labels[::-1])
    np.testing.assert_allclose(mixed, 0.3 * own + 0.7 * others, rtol=1e-4)


# Class weights and logit adjustment


@pytest.mark.parametrize("name", CONFIGS)
def test_class_weights_multiply_the_terms_of_the_classes_that_an_image_has(name: str) -> None:
    logits, _ = random_case(5)
    weights = np.asarray([0.5, 1, 2, 3, 4], np.float32)
    plain = training_loss(CONFIGS[name], 5)
    weighted = training_loss(CONFIGS[name], 5, class_weights=weights)
    for index, weight in enumerate(weights):
        labels = np.eye(5, dtype=np.float32)[[index] * 16]
        without = plain(logits, np.zeros_like(labels)) - plain_negative(plain, logits, index)
        expected = without + weight * (plain(logits, labels) - without)
        np.testing.assert_allclose(weighted(logits, labels), expected, rtol=1e-4, atol=1e-4)


def plain_negative(loss: AnyLoss, logits: np.ndarray, index: int) -> np.ndarray:
    """The negative term of one class: what the loss of no class has in addition to that of it."""
    only = np.full_like(logits, -1e4)  # whose negative terms are 0
    only[:, index] = logits[:, index]
    nothing = np.zeros_like(logits)
    return np.asarray(loss(only, nothing))


def test_class_weights_are_those_of_torch() -> None:
    """`torch.nn.CrossEntropyLoss(weight)` also with soft labels and smoothing, before its mean."""
    logits, labels = random_case(5)
    weights = np.asarray([0.5, 1, 2, 3, 4], np.float32)
    losses = make_training_loss(
        LossConfig(label_smoothing=0.1), class_weights=weights, class_prior=np.zeros(5)
    )(jnp.asarray(logits), jnp.asarray(labels))
    exponents = np.exp(logits.astype(np.float64))
    log_p = np.log(exponents / exponents.sum(-1, keepdims=True))
    smoothed = 0.9 * labels + 0.1 / 5
    np.testing.assert_allclose(losses, -(weights * smoothed * log_p).sum(-1), rtol=1e-5)


def test_logit_adjustment_adds_the_prior_in_training_only() -> None:
    logits, labels = random_case(5)
    prior = np.log(np.asarray([0.6, 0.2, 0.1, 0.05, 0.05], np.float32))
    adjusted = training_loss(LossConfig(logit_adjustment=1.5), 5, class_prior=prior)
    np.testing.assert_allclose(
        adjusted(logits, labels), softmax_reference(logits + 1.5 * prior, labels), rtol=1e-5
    )
    np.testing.assert_allclose(
        evaluation_loss("softmax")(jnp.asarray(logits), jnp.asarray(labels)),
        softmax_reference(logits, labels),
        rtol=1e-5,
    )


# Labels


def test_soft_labels_are_one_hot_rows() -> None:
    rows = soft_labels(jnp.asarray([2, 0]), 3)
    assert rows.dtype == jnp.float32
    np.testing.assert_array_equal(rows, [[0, 0, 1], [1, 0, 0]])


def test_smoothing_spreads_its_share_over_all_classes() -> None:
    rows = smooth_labels(soft_labels(jnp.asarray([1]), 4), 0.1)
    np.testing.assert_allclose(rows, [[0.025, 0.925, 0.025, 0.025]], rtol=1e-6)


def test_smoothing_keeps_the_mass_of_mixed_labels() -> None:
    _, labels = random_case(10)
    smoothed = smooth_labels(jnp.asarray(labels), 0.3)
    np.testing.assert_allclose(smoothed.sum(-1), labels.sum(-1), rtol=1e-6)
    np.testing.assert_allclose(smoothed, 0.7 * labels + 0.03, rtol=1e-5)


def test_no_smoothing_and_full_smoothing_are_the_ends() -> None:
    rows = soft_labels(jnp.asarray([1]), 4)
    np.testing.assert_array_equal(smooth_labels(rows, 0.0), rows)
    np.testing.assert_array_equal(smooth_labels(rows, 1.0), np.full((1, 4), 0.25))


def test_multi_hot_labels_stay_and_unknown_classes_are_left_out() -> None:
    labels = jnp.asarray([[1, 0, 1], [0, 0, 0]], jnp.uint8)
    np.testing.assert_array_equal(soft_labels(labels, 3), labels)
    np.testing.assert_array_equal(soft_labels(labels, 2), [[1, 0], [0, 0]])
    np.testing.assert_array_equal(soft_labels(labels, 4), [[1, 0, 1, 0], [0, 0, 0, 0]])
