"""The types that a traced function may use, independent of `JAX_ENABLE_X64`."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp


def traced_for[**P, T](dtype: jnp.dtype) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorates a function so that JAX traces it with 64-bit types only if `dtype` is float64.

    With `JAX_ENABLE_X64=1`, every draw and constant without a dtype would be float64, in optax as
    well as here, and 64-bit draws differ from 32-bit draws.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def trace(*args: P.args, **kwargs: P.kwargs) -> T:
            with jax.enable_x64(dtype == jnp.dtype("float64")):
                return function(*args, **kwargs)

        return trace

    return decorate
