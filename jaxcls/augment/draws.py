"""Random draws with a separate key for each image.

An image's key depends on the step's key and the image's place in the global batch, so its draws are
the same however the batch is split. `keys` are [batch], results [batch, …].
"""

import jax
import jax.numpy as jnp
from jax import Array


def image_keys(key: Array, positions: Array) -> Array:
    """Returns a key for each place in the global batch."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, positions)


def fold_in(keys: Array, number: int) -> Array:
    """Derives a new key from each of `keys`."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number)


def uniform(keys: Array, *shape: int) -> Array:
    """Draws float32 [batch, *shape], uniform in [0, 1)."""
    return jax.vmap(lambda key: jax.random.uniform(key, shape, jnp.float32))(keys)


def normal(keys: Array, *shape: int) -> Array:
    """Draws float32 [batch, *shape], normal with mean 0 and standard deviation 1."""
    return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)


def beta(keys: Array, alpha: Array) -> Array:
    """Draws float32 [batch] from Beta(alpha, alpha), in multiples of 1/4096; 1 if alpha is 0.

    Computations with such numbers are exact, so that no rounding depends on how the batch is split.
    """
    safe = jnp.maximum(alpha, 1e-3)

    # The values of `jax.random.beta`, but with one call for both gamma variables: half the program
    # to compile.
    def draw(key: Array) -> Array:
        logs = jax.vmap(lambda key: jax.random.loggamma(key, safe))(jax.random.split(key))
        scaled = jnp.exp(logs - jnp.max(logs))
        return scaled[0] / (scaled[0] + scaled[1])

    drawn = jax.vmap(draw)(keys)
    return jnp.where(alpha > 0, jnp.round(drawn * 4096) / 4096, 1.0)
