"""Losses over soft labels."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import Array

Loss = Callable[[Array, Array], Array]

# Each maps logits and soft labels, both [batch, classes], to one loss an example, [batch].
# The sigmoid form sums over the classes, as big_vision does.
LOSSES: dict[str, Loss] = {
    "softmax": optax.softmax_cross_entropy,
    "sigmoid": lambda logits, labels: optax.sigmoid_binary_cross_entropy(logits, labels).sum(-1),
}


def one_hot_labels(labels: Array, num_classes: int) -> Array:
    """One-hot labels, float32 [batch, classes], of class numbers [batch]."""
    return jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)


def smooth_labels(labels: Array, smoothing: float) -> Array:
    """Spreads the share `smoothing` of each row evenly over all classes (Szegedy et al. 2015)."""
    return labels * (1 - smoothing) + smoothing / labels.shape[-1]
