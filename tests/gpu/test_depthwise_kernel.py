"""The kernels of the depthwise convolution, step by step on a CPU, against XLA's convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from depthwise_kernel import by_kernel, gradients_by_kernel
from jax import Array

from jaxcls.models.depthwise import grouped, grouped_gradients
from jaxcls.models.padding import Padding


@pytest.mark.parametrize(
    ("size", "stride", "padding", "shape"),
    [
        (3, 1, "symmetric", (2, 5, 7, 70)),  # two tiles of channels
        pytest.param(3, 2, "same", (3, 6, 9, 5), marks=pytest.mark.long),
        # An image smaller than the kernel.
        pytest.param(5, 1, "same", (1, 1, 2, 12), marks=pytest.mark.long),
        (5, 2, "symmetric", (2, 7, 6, 12)),
    ],
)
def test_the_kernels_equal_the_grouped_convolution(
    size: int, stride: int, padding: Padding, shape: tuple[int, ...]
) -> None:
    draws, pads = np.random.default_rng(0), {"stride": stride, "padding": padding}
    out = (shape[0], -(-shape[1] // stride), -(-shape[2] // stride), shape[3])
    x, kernel, grad = (
        jnp.asarray(draws.normal(size=of), jnp.float32)
        for of in (shape, (size, size, 1, shape[3]), out)
    )

    @jax.jit
    def both(x: Array, kernel: Array, grad: Array) -> tuple[tuple[Array, ...], ...]:
        steps = {**pads, "interpret": True}
        return (
            (by_kernel(x, kernel, **steps), *gradients_by_kernel(x, kernel, grad, **steps)),
            (grouped(x, kernel, **pads), *grouped_gradients(x, kernel, grad, **pads)),
        )

    for of, reference in zip(*both(x, kernel, grad), strict=True):
        assert of.shape == reference.shape
        np.testing.assert_allclose(of, reference, rtol=1e-5, atol=1e-5)
