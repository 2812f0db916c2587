"""Both forms of the depthwise convolution agree, in values and gradients."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcls.models import depthwise

SHAPES = [(1, 1), (2, 1), (2, 2), (3, 4), (7, 7), (8, 5)]
WINDOWS = [(3, "same"), (5, "same"), (3, "symmetric"), (5, "symmetric")]


def _results(form, gradients, x, kernel, cotangent, **window):
    return form(x, kernel, **window), *gradients(x, kernel, cotangent, **window)


def _inputs(height, width, stride, dtype, *, size=3):
    rng = np.random.default_rng(height * 100 + width)
    out = (2, -(-height // stride), -(-width // stride), 5)
    shapes = (2, height, width, 5), (size, size, 1, 5), out
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("height", "width"), SHAPES)
@pytest.mark.parametrize(
    ("size", "padding", "dtype", "tolerance"),
    [
        *((*window, "float32", 1e-5) for window in WINDOWS),
        (3, "same", "bfloat16", 2e-2),
        (5, "symmetric", "bfloat16", 2e-2),
    ],
)
def test_shifted_equals_grouped(height, width, stride, size, padding, dtype, tolerance):
    inputs = _inputs(height, width, stride, dtype, size=size)
    window = {"stride": stride, "padding": padding}
    # bfloat16 is compared with exact arithmetic on the same inputs.
    wide = [x.astype(jnp.float32) for x in inputs]
    expected = _results(depthwise.grouped, depthwise.grouped_gradients, *wide, **window)
    results = _results(depthwise.shifted, depthwise.shifted_gradients, *inputs, **window)
    for result, exact in zip(results, expected, strict=True):
        assert result.dtype == jnp.dtype(dtype)
        error = jnp.max(jnp.abs(result.astype(jnp.float32) - exact))
        assert error <= tolerance * jnp.max(jnp.abs(exact))


def _by_hand(x, kernel, *, stride, pads):
    """The definition, in numpy: every window of the padded image times the kernel."""
    padded = np.pad(x, ((0, 0), *pads, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape[:2], axis=(1, 2))
    return np.einsum("bhwcij,ijc->bhwc", windows[:, ::stride, ::stride], kernel[:, :, 0])


# What PyTorch calls padding=(size - 1) // 2, on both sides; and TensorFlow's, by its documentation.
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("height", "width"), [(1, 2), (7, 8), (8, 5)])
@pytest.mark.parametrize(("size", "padding"), WINDOWS)
def test_padding_is_what_its_name_says(height, width, stride, size, padding):
    x, kernel, _ = _inputs(height, width, stride, "float32", size=size)
    if padding == "symmetric":
        pads = [((size - 1) // 2,) * 2] * 2
    else:
        totals = [
            max(size - (stride if length % stride == 0 else length % stride), 0)
            for length in (height, width)
        ]
        pads = [(total // 2, total - total // 2) for total in totals]
    expected = _by_hand(np.asarray(x), np.asarray(kernel), stride=stride, pads=pads)
    result = depthwise.depthwise_conv(x, kernel, stride=stride, padding=padding)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("size", "padding"), WINDOWS)
def test_public_function_has_the_gradients_of_the_grouped_form(stride, size, padding):
    x, kernel, cotangent = _inputs(7, 6, stride, "float32", size=size)
    window = {"stride": stride, "padding": padding}
    y, pullback = jax.vjp(partial(depthwise.depthwise_conv, **window), x, kernel)
    expected = _results(
        depthwise.grouped, depthwise.grouped_gradients, x, kernel, cotangent, **window
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
