"""Convolutions and their gradients against JAX's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array, lax

from jaxcls.models.convolution import Zeros, conv

DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def normal(*shape: int) -> Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


@pytest.mark.parametrize(
    ("size", "outputs", "stride", "zeros"),
    [
        (3, 7, 1, ((1, 1), (1, 1))),
        (3, 7, 1, ((0, 2), (2, 0))),
        (5, 7, 1, ((2, 2), (2, 2))),
        (3, 7, 1, ((0, 0), (0, 0))),
        (3, 7, 1, ((3, 1), (1, 4))),  # more zeros than the kernel sees at once
        (3, 7, 2, ((0, 1), (1, 1))),
        (11, 7, 1, ((0, 1), (1, 1))),  # larger than the image: nothing results
        (3, 4, 1, ((1, 1), (1, 1))),  # not wider
        (7, 8, 2, ((3, 2), (3, 2))),
    ],
)
def test_the_result_and_the_gradients_are_those_of_jax(
    size: int, outputs: int, stride: int, zeros: Zeros
) -> None:
    x, kernel = normal(3, 9, 8, 4), normal(size, size, 4, outputs)

    def reference(x: Array, kernel: Array) -> Array:
        return lax.conv_general_dilated(
            x, kernel, (stride, stride), zeros, dimension_numbers=DIMENSIONS
        )

    weights = normal(*reference(x, kernel).shape)
    actual, expected = (
        jax.value_and_grad(lambda *of, f=f: jnp.sum(weights * f(*of)), argnums=(0, 1))(x, kernel)
        for f in (lambda x, kernel: conv(x, kernel, stride=stride, zeros=zeros), reference)
    )
    jax.tree.map(
        lambda *of: np.testing.assert_allclose(*of, rtol=1e-4, atol=1e-4), actual, expected
    )


@pytest.mark.parametrize(
    ("platform", "image", "kernel"),
    [("cpu", "2x8x8x6", "2x8x8x4"), ("tpu", "2x8x8x4", "2x8x8x6"), ("cuda", "2x8x8x4", "2x8x8x6")],
)
def test_only_a_cpu_exchanges_image_and_gradient(platform: str, image: str, kernel: str) -> None:
    def gradient(x: Array, kernel: Array) -> Array:
        def total(kernel: Array) -> Array:
            return jnp.sum(conv(x, kernel, stride=1, zeros=((1, 1), (1, 1))))

        return jax.grad(total)(kernel)

    traced = jax.jit(gradient).trace(normal(2, 8, 8, 4), normal(3, 3, 4, 6))
    program = traced.lower(lowering_platforms=(platform,)).as_text()
    assert f"(tensor<{image}xf32>, tensor<{kernel}xf32>)" in program
