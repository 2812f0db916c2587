"""The kernels of NVIDIA GPUs, step by step on a CPU, against the plain formulas."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcls.distributed.mesh import make_mesh
from jaxcls.models.gate import gate, gate_by_kernel, gate_gradients, gradients_by_kernel
from jaxcls.models.layers import silu


def test_its_gradient_is_that_of_the_formula() -> None:
    draws = np.random.default_rng(0)

    def draw(*shape: int) -> jax.Array:
        return jnp.asarray(draws.normal(size=shape), jnp.float32)

    def formula(means: jax.Array, params: Any) -> jax.Array:
        hidden = silu(means @ params["reduce"][0] + params["reduce"][1])
        return jax.nn.sigmoid(hidden @ params["expand"][0] + params["expand"][1])

    weights, means = draw(4, 12), draw(4, 12)
    params = {"reduce": (draw(12, 3), draw(3)), "expand": (draw(3, 12), draw(12))}

    def gradients(function: Any) -> Any:
        return jax.grad(lambda *of: jnp.sum(weights * function(*of)), argnums=(0, 1))(means, params)

    actual = gradients(lambda means, params: gate(means, params, silu, dtype=means.dtype))
    jax.tree.map(
        lambda *of: np.testing.assert_allclose(*of, rtol=1e-5, atol=1e-6),
        actual,
        gradients(formula),
    )


@pytest.mark.parametrize(
    ("devices", "batch", "channels", "width"),
    [(1, 20, 70, 3), (1, 16, 64, 17), (4, 8, 24, 6)],
)
def test_the_kernels_equal_the_compiler(
    devices: int, batch: int, channels: int, width: int
) -> None:
    """With sizes that fill the kernels' tiles and others that do not."""
    dtype = jnp.dtype("float32")
    mesh, draws = make_mesh(jax.devices()[:devices]), np.random.default_rng(0)

    def draw(*shape: int) -> jax.Array:
        return jnp.asarray(draws.normal(size=shape), jnp.float32)

    means, grad = draw(batch, channels), draw(batch, channels)
    params = {
        "reduce": (draw(channels, width) / 8, draw(width)),
        "expand": (draw(width, channels) / 2, draw(channels)),
    }
    options = {"mesh": mesh.abstract_mesh, "interpret": True}
    with jax.set_mesh(mesh):
        gates = jax.jit(
            lambda means, params: gate_by_kernel(means, params, silu, dtype=dtype, **options)
        )(means, params)
        gradients = jax.jit(
            lambda means, params, grad: gradients_by_kernel(
                means, params, silu, grad, pixels=3, dtype=dtype, **options
            )
        )(means, params, grad)
    np.testing.assert_allclose(gates, gate(means, params, silu, dtype=dtype), rtol=1e-5, atol=1e-5)
    expected = gate_gradients(means, params, silu, grad, pixels=3, dtype=dtype)
    jax.tree.map(
        lambda actual, wanted: np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=1e-5),
        gradients,
        expected,
    )
