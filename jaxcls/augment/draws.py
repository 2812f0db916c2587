"""Random draws, each image's from a key of its own.

An image's key follows from the step's and the image's place in the global batch, so that its draws
are the same however the batch is cut. `keys` are [batch], results [batch, …].
"""

import jax
import jax.numpy as jnp
from jax import Array


def image_keys(key: Array, positions: Array) -> Array:
    """A key for each place in the global batch."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, positions)


def fold_in(keys: Array, number: int) -> Array:
    """Other keys, one for each of `keys`."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number)


def uniform(keys: Array, *shape: int) -> Array:
    """float32 [batch, *shape] in [0, 1)."""
    return jax.vmap(lambda key: jax.random.uniform(key, shape, jnp.float32))(keys)


def normal(keys: Array, *shape: int) -> Array:
    """float32 [batch, *shape] of mean 0 and standard deviation 1."""
    return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)


def beta(keys: Array, alpha: Array) -> Array:
    """float32 [batch] of Beta(alpha, alpha), a multiple of 1/4096; 1 where alpha is 0.

    The grid makes what is computed from it exact: no rounding depends on how the batch is cut.
    """
    safe = jnp.maximum(alpha, 1e-3)
    drawn = jax.vmap(lambda key: jax.random.beta(key, safe, safe))(keys)
    return jnp.where(alpha > 0, jnp.round(drawn * 4096) / 4096, 1.0)
