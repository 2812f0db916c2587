"""Losses over soft labels.

A loss adds up a positive term for each class that an image has and, unless it is the softmax one, a
negative term for each class that it does not have. Labels [batch, classes] say how much of each
class an image has: one 1, several, or anything between 0 and 1 after mixing and smoothing.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxcls.config.schema import LossConfig

# Maps logits and labels, [batch, classes], to one loss an example, [batch].
Loss = Callable[[Array, Array], Array]
# Maps logits, positive and negative labels, [batch, classes], to one loss an example, [batch].
Terms = Callable[[Array, Array, Array], Array]


def make_training_loss(
    loss: LossConfig, *, class_weights: np.ndarray | None, class_prior: np.ndarray
) -> Loss:
    """Makes the loss that training minimises, of logits and labels before smoothing.

    Args:
      loss: the loss of the config.
      class_weights: factors on the positive terms of each class, float32 [classes]; None for none.
      class_prior: the logarithm of each class' share of the training data, float32 [classes]; used
        by `logit_adjustment` (Menon et al. 2021).
    """
    terms = _training_terms(loss)
    adjustment = loss.logit_adjustment * class_prior if loss.logit_adjustment else None

    def losses(logits: Array, labels: Array) -> Array:
        labels = smooth_labels(labels, loss.label_smoothing)
        if adjustment is not None:
            logits = logits + adjustment
        positive = labels if class_weights is None else labels * class_weights
        return terms(logits, positive, 1 - labels)

    return losses


def evaluation_loss(name: str) -> Loss:
    """The plain cross-entropy of the loss `name`: of the classes, or summed over each of them."""
    terms = softmax_terms if name == "softmax" else sigmoid_terms
    return lambda logits, labels: terms(logits, labels, 1 - labels)


def _training_terms(loss: LossConfig) -> Terms:
    if loss.name == "softmax":
        return functools.partial(softmax_terms, focal=loss.focal)
    if loss.name == "sigmoid":
        focal = loss.focal
        return functools.partial(sigmoid_terms, positive_focal=focal, negative_focal=focal)
    assert loss.name == "asymmetric"
    return functools.partial(
        sigmoid_terms,
        positive_focal=loss.positive_focal,
        negative_focal=loss.negative_focal,
        margin=loss.margin,
    )


def softmax_terms(logits: Array, positive: Array, negative: Array, *, focal: float = 0.0) -> Array:
    """Cross-entropy, with the factor (1 - p)^focal on the term of a class of probability p.

    Source: Lin et al. 2017, for one of several classes as in Keras' CategoricalFocalCrossentropy.
    """
    del negative
    if not focal:
        return optax.softmax_cross_entropy(logits, positive)
    log_p = jax.nn.log_softmax(logits)
    return -jnp.sum(positive * _power(-jnp.expm1(log_p), focal) * log_p, axis=-1)


def sigmoid_terms(
    logits: Array,
    positive: Array,
    negative: Array,
    *,
    positive_focal: float = 0.0,
    negative_focal: float = 0.0,
    margin: float = 0.0,
) -> Array:
    """Binary cross-entropy of each class, summed over the classes, as in big_vision.

    A positive term of a class of probability p has the factor (1 - p)^positive_focal. A negative
    term has the factor p^negative_focal, after `margin` is subtracted from p (at least 0 stays). So
    it is the asymmetric loss (Ridnik et al. 2021), or with equal exponents and no margin the focal
    loss (Lin et al. 2017).
    """
    log_p, log_not_p = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    p = jax.nn.sigmoid(logits)
    if margin:
        p = jnp.maximum(p - margin, 0)
        log_not_p = jnp.log1p(-p)
    if positive_focal:
        log_p *= _power(jax.nn.sigmoid(-logits), positive_focal)
    if negative_focal:
        log_not_p *= _power(p, negative_focal)
    return -jnp.sum(positive * log_p + negative * log_not_p, axis=-1)


def _power(base: Array, exponent: float) -> Array:
    """base^exponent for numbers in [0, 1]; the gradient is finite at 0, too."""
    positive = base > 0
    return jnp.where(positive, jnp.where(positive, base, 1) ** exponent, 0)


def soft_labels(labels: Array, num_classes: int) -> Array:
    """Labels as float32 [batch, classes], of class numbers [batch] or multi-hot ones.

    Classes from `num_classes` on, which the network does not know, are left out.
    """
    if labels.ndim == 2:
        missing = max(num_classes - labels.shape[1], 0)
        return jnp.pad(labels[:, :num_classes], ((0, 0), (0, missing))).astype(jnp.float32)
    return jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)


def smooth_labels(labels: Array, smoothing: float) -> Array:
    """Takes the share `smoothing` off each label, and adds smoothing / classes to every class.

    So a one-hot row still sums to 1 (Szegedy et al. 2015).
    """
    return labels * (1 - smoothing) + smoothing / labels.shape[-1]
