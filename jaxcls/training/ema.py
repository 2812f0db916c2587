"""Moving averages of parameters and batch statistics (EMA)."""

import jax
import jax.numpy as jnp
from jax import Array

from jaxcls.models.interface import Variables


def update_ema(averages: Variables, latest: Variables, *, step: Array, decay: float) -> Variables:
    """Moves the averages towards the latest values.

    The decay rises with (1 + step) / (10 + step) up to `decay`, as in TensorFlow's
    ExponentialMovingAverage, so that the random initial values are soon forgotten.
    """
    decay_now = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(
        lambda average, value: average + (1 - decay_now).astype(value.dtype) * (value - average),
        averages,
        latest,
    )
