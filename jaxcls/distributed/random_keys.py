"""Random keys: the only place that makes them.

Draws must depend on the seed alone, and not on what the environment says about random numbers. With
`JAX_DEFAULT_PRNG_IMPL=rbg`, which is common on TPUs, draws depend on how arrays are laid out on the
devices, and other settings also change them.
"""

import flax
import jax

_SETTINGS = {
    # JAX's defaults, with which existing runs were made.
    "jax_threefry_partitionable": True,
    "jax_random_seed_offset": 0,
    # Debugging aids that refuse what optax and other libraries do, or run a step op by op.
    "jax_numpy_dtype_promotion": "standard",
    "jax_numpy_rank_promotion": "allow",
    "jax_disable_jit": False,
}


def random_key(seed: int) -> jax.Array:
    """Makes the key of a seed, for counter-based draws by Threefry (Salmon et al. 2011).

    All draws begin with such a key, so this also calls `use_default_random_settings`.

    Args:
      seed: a number in [0, 2**32).
    """
    use_default_random_settings()
    return jax.random.key(seed, impl="threefry2x32")


def use_default_random_settings() -> None:
    """Sets what changes draws to JAX's and Flax's defaults, for the whole process.

    JAX reads these settings when it compiles a program with draws, which may happen later and in
    another thread. A context manager would therefore not be enough.
    """
    for name, value in _SETTINGS.items():
        jax.config.update(name, value)
    flax.config.update("flax_fix_rng_separator", False)
