"""The kernels of the depthwise convolution, step by step on a CPU, against XLA's convolution."""

import jax.numpy as jnp
import numpy as np
import pytest
from depthwise_kernel import by_kernel, gradients_by_kernel

from jaxcls.models.depthwise import grouped, grouped_gradients
from jaxcls.models.padding import Padding


@pytest.mark.parametrize(
    ("size", "stride", "padding", "shape"),
    [
        (3, 1, "same", (2, 5, 7, 70)),  # two tiles of channels
        (3, 2, "same", (3, 6, 9, 5)),
        (3, 2, "symmetric", (3, 6, 8, 5)),
        (5, 1, "symmetric", (1, 1, 2, 12)),  # an image smaller than the kernel
        (5, 2, "same", (2, 7, 6, 12)),
        (5, 2, "symmetric", (2, 7, 6, 12)),
    ],
)
def test_the_kernels_equal_the_grouped_convolution(
    size: int, stride: int, padding: Padding, shape: tuple[int, ...]
) -> None:
    draws = np.random.default_rng(0)

    def draw(*shape: int):
        return jnp.asarray(draws.normal(size=shape), jnp.float32)

    x, kernel = draw(*shape), draw(size, size, 1, shape[-1])
    expected = grouped(x, kernel, stride=stride, padding=padding)
    grad = draw(*expected.shape)
    wanted = grouped_gradients(x, kernel, grad, stride=stride, padding=padding)
    actual = by_kernel(x, kernel, stride=stride, padding=padding, interpret=True)
    gradients = gradients_by_kernel(x, kernel, grad, stride=stride, padding=padding, interpret=True)
    for of, reference in zip((actual, *gradients), (expected, *wanted), strict=True):
        assert of.shape == reference.shape
        np.testing.assert_allclose(of, reference, rtol=1e-5, atol=1e-5)
