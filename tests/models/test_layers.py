"""Padding, drop-path and dropout against plain formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcls.models import layers


@pytest.mark.parametrize(("height", "width"), [(1, 2), (7, 8)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [3, 5])
def test_symmetric_padding_is_half_a_kernel_on_both_sides(height, width, stride, size):
    rng = np.random.default_rng(4)
    x = jnp.asarray(rng.normal(size=(2, height, width, 3)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(size, size, 3, 4)), jnp.float32)
    y = layers.Conv(4, size, stride, "symmetric").apply({"params": {"kernel": kernel}}, x)
    pads = [(size // 2, size // 2)] * 2
    dimensions = ("NHWC", "HWIO", "NHWC")
    expected = jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), pads, dimension_numbers=dimensions
    )
    np.testing.assert_allclose(np.asarray(y), expected, rtol=1e-5, atol=1e-5)


def test_relu6():
    x = jnp.asarray([-1.0, 0.0, 2.0, 6.0, 7.0])
    np.testing.assert_array_equal(layers.relu6(x), [0, 0, 2, 6, 6])
    slopes = jax.vmap(jax.grad(layers.relu6))(x)
    np.testing.assert_array_equal(slopes, [0, 0, 1, 0, 0])


def test_dropout_keeps_the_expectation():
    uniforms = jax.random.uniform(jax.random.key(0), (200, 200))
    y = np.asarray(layers.dropout(jnp.ones((200, 200)), uniforms, rate=0.5))
    assert set(np.unique(y)) == {np.float32(0), np.float32(2)}
    assert np.mean(y) == pytest.approx(1, abs=0.03)
