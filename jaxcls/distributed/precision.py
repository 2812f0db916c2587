"""Which types a traced function may use, whatever `JAX_ENABLE_X64` says."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp


def traced_for[**P, T](dtype: jnp.dtype) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Lets a function use types of 64 bits only if `dtype` is one, when JAX traces it.

    With `JAX_ENABLE_X64=1`, every draw and constant without a dtype is float64, in optax as well as
    here, and a draw of 64 bits is another than one of 32.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def trace(*args: P.args, **kwargs: P.kwargs) -> T:
            with jax.enable_x64(dtype == jnp.dtype("float64")):
                return function(*args, **kwargs)

        return trace

    return decorate
