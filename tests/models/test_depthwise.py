"""Both forms of the depthwise convolution agree, in values and gradients."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcls.models import depthwise

SHAPES = [(1, 1), (2, 1), (2, 2), (3, 4), (7, 7), (8, 5)]


def _results(form, gradients, x, kernel, cotangent, *, stride):
    return (
        form(x, kernel, stride=stride),
        *gradients(x, kernel, cotangent, stride=stride),
    )


def _inputs(height, width, stride, dtype):
    rng = np.random.default_rng(height * 100 + width)
    out = (2, -(-height // stride), -(-width // stride), 5)
    shapes = (2, height, width, 5), (3, 3, 1, 5), out
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("height", "width"), SHAPES)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_shifted_equals_grouped(height, width, stride, dtype, tolerance):
    inputs = _inputs(height, width, stride, dtype)
    # bfloat16 is compared with exact arithmetic on the same inputs.
    wide = [x.astype(jnp.float32) for x in inputs]
    expected = _results(depthwise.grouped, depthwise.grouped_gradients, *wide, stride=stride)
    results = _results(depthwise.shifted, depthwise.shifted_gradients, *inputs, stride=stride)
    for result, exact in zip(results, expected, strict=True):
        assert result.dtype == jnp.dtype(dtype)
        error = jnp.max(jnp.abs(result.astype(jnp.float32) - exact))
        assert error <= tolerance * jnp.max(jnp.abs(exact))


@pytest.mark.parametrize("stride", [1, 2])
def test_public_function_has_the_gradients_of_the_grouped_form(stride):
    x, kernel, cotangent = _inputs(7, 6, stride, "float32")
    y, pullback = jax.vjp(partial(depthwise.depthwise_conv, stride=stride), x, kernel)
    expected = _results(
        depthwise.grouped, depthwise.grouped_gradients, x, kernel, cotangent, stride=stride
    )
    for result, exact in zip((y, *pullback(cotangent)), expected, strict=True):
        np.testing.assert_allclose(result, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("platform", "num_convolutions"), [("cpu", 0), ("tpu", 3), ("cuda", 3)])
def test_only_the_platforms_own_form_is_lowered(platform, num_convolutions):
    x, kernel, cotangent = _inputs(8, 8, 1, "float32")

    def forward_and_gradients(x, kernel, cotangent):
        y, pullback = jax.vjp(partial(depthwise.depthwise_conv, stride=1), x, kernel)
        return y, pullback(cotangent)

    traced = jax.jit(forward_and_gradients).trace(x, kernel, cotangent)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert len(re.findall(r"stablehlo\.convolution", text)) == num_convolutions
