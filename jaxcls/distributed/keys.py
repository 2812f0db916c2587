"""Random keys: the one place where they are made.

What is drawn from a key must follow from its seed alone. So nothing here heeds what the environment
says about random numbers: with `JAX_DEFAULT_PRNG_IMPL=rbg`, common on TPUs, draws depend on how
arrays lie on the devices, and other settings give other draws than the same training elsewhere.
"""

import flax
import jax

_SETTINGS = {
    # What JAX comes with, and old runs were made with.
    "jax_threefry_partitionable": True,
    "jax_random_seed_offset": 0,
    # Aids to look for faults, which refuse what optax and others do, or take a step to pieces.
    "jax_numpy_dtype_promotion": "standard",
    "jax_numpy_rank_promotion": "allow",
    "jax_disable_jit": False,
}


def random_key(seed: int) -> jax.Array:
    """The key of a seed, for the counter-based draws of Threefry (Salmon et al. 2011).

    JAX looks at its settings when the program that holds a draw is compiled, which may be in
    another thread. So this sets them for the process, and not for a while.

    Args:
      seed: in [0, 2**32).
    """
    for name, value in _SETTINGS.items():
        jax.config.update(name, value)
    flax.config.update("flax_fix_rng_separator", False)
    return jax.random.key(seed, impl="threefry2x32")
