"""Mean and standard deviation, applied to images before they enter a network."""

import jax.numpy as jnp
from jax import Array

from jaxcls.models.interface import NetworkSpec


def normalize(images: Array, spec: NetworkSpec) -> Array:
    """Brings images in [0, 1] to the range that the network expects: (x - mean) / std."""
    mean, std = jnp.array(spec.mean, images.dtype), jnp.array(spec.std, images.dtype)
    return (images - mean) / std
