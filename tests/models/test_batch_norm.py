"""Batch normalisation, with and without squeeze-and-excite, against plain formulas."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcls.models import batch_norm, layers

EPSILON = 1e-3


def _plain(x, scale, bias, multipliers, group_size):
    """The formula that `normalize` implements, for autodiff."""
    groups = x.reshape(-1, group_size, *x.shape[1:])
    mean = jnp.mean(groups, axis=(1, 2, 3), keepdims=True)
    variance = jnp.mean((groups - mean) ** 2, axis=(1, 2, 3), keepdims=True)
    y = (groups - mean) / jnp.sqrt(variance + EPSILON) * scale + bias
    return layers.silu(y).reshape(x.shape) * multipliers[:, :, None, None]


@pytest.mark.parametrize("group_size", [2, 4, 8])
@pytest.mark.parametrize("multiplied", [False, True])
def test_normalize_equals_autodiff_of_the_plain_formula(group_size, multiplied):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        drawn = jnp.asarray(rng.choice([0.0, 1.25], size=(8, 1)))
        multipliers = drawn if multiplied else None
        x, cotangent = (jnp.asarray(rng.normal(1, 2, size=(8, 3, 2, 5))) for _ in range(2))
        scale, bias = (jnp.asarray(rng.normal(size=5)) for _ in range(2))
        expected, plain_pullback = jax.vjp(
            lambda x, scale, bias: _plain(
                x, scale, bias, drawn if multiplied else jnp.ones((8, 1)), group_size
            ),
            x,
            scale,
            bias,
        )
        y, pullback = jax.vjp(
            lambda x, scale, bias: batch_norm.normalize(
                x, scale, bias, multipliers, group_size, EPSILON, layers.silu
            )[0],
            x,
            scale,
            bias,
        )
        np.testing.assert_allclose(y, expected, rtol=1e-9, atol=1e-12)
        for grad, plain in zip(pullback(cotangent), plain_pullback(cotangent), strict=True):
            np.testing.assert_allclose(grad, plain, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("group_size", [2, 4, 8])
@pytest.mark.parametrize("name", ["silu", "relu6"])
def test_with_a_gate_it_equals_autodiff_of_the_plain_formulas(group_size, name):
    activation, rng = layers.ACTIVATIONS[name], np.random.default_rng(0)

    def plain(x, scale, bias, params):
        groups = x.reshape(-1, group_size, *x.shape[1:])
        mean = jnp.mean(groups, axis=(1, 2, 3), keepdims=True)
        variance = jnp.mean((groups - mean) ** 2, axis=(1, 2, 3), keepdims=True)
        y = activation((groups - mean) / jnp.sqrt(variance + EPSILON) * scale + bias)
        y = y.reshape(x.shape)
        hidden = activation(y.mean((1, 2)) @ params["reduce"][0] + params["reduce"][1])
        gate = jax.nn.sigmoid(hidden @ params["expand"][0] + params["expand"][1])
        return y * gate[:, None, None]

    with jax.enable_x64(True):
        x, cotangent = (jnp.asarray(rng.normal(1, 2, size=(8, 3, 2, 5))) for _ in range(2))
        scale, bias = (jnp.asarray(rng.normal(size=5)) for _ in range(2))
        params = {
            name: (jnp.asarray(rng.normal(size=size)), jnp.asarray(rng.normal(size=size[1])))
            for name, size in {"reduce": (5, 3), "expand": (3, 5)}.items()
        }
        expected, plain_pullback = jax.vjp(plain, x, scale, bias, params)
        y, pullback = jax.vjp(
            lambda *of: batch_norm.normalize_and_gate(*of, group_size, EPSILON, activation)[0],
            x,
            scale,
            bias,
            params,
        )
        np.testing.assert_allclose(y, expected, rtol=1e-9, atol=1e-12)
        compare = jax.tree.map(
            lambda grad, plain: np.testing.assert_allclose(grad, plain, rtol=1e-8, atol=1e-10),
            pullback(cotangent),
            plain_pullback(cotangent),
        )
        assert len(compare) == 4


def _train(groups, x, batch_stats=None) -> Any:
    norm = batch_norm.BatchNorm(groups=groups)
    variables = norm.init(jax.random.key(0), x, train=False)
    if batch_stats is not None:
        variables = {**variables, "batch_stats": batch_stats}
    y, updated = norm.apply(variables, x, train=True, mutable=["batch_stats"])
    return y, updated["batch_stats"]


@pytest.mark.parametrize("groups", ["global", 4, 2, 8])
def test_groups_are_normalised_by_their_own_statistics(groups):
    x = np.random.default_rng(1).normal(3, 2, size=(8, 4, 4, 6)).astype(np.float32)
    size = 8 if groups == "global" else groups
    y, batch_stats = _train(groups, x)
    means, variances = [], []
    for start in range(0, 8, size):
        group = x[start : start + size].astype(np.float64)
        means.append(group.mean((0, 1, 2)))
        variances.append(group.var((0, 1, 2)))
        expected = (group - means[-1]) / np.sqrt(variances[-1] + EPSILON)
        np.testing.assert_allclose(y[start : start + size], expected, atol=1e-5)
    np.testing.assert_allclose(batch_stats["mean"], 0.1 * np.mean(means, 0), rtol=1e-5)
    np.testing.assert_allclose(batch_stats["var"], 0.9 + 0.1 * np.mean(variances, 0), rtol=1e-5)


def test_moving_statistics_of_micro_batches_average_to_the_large_batchs():
    x = np.random.default_rng(2).normal(size=(8, 4, 4, 6)).astype(np.float32)
    start = {"mean": jnp.full(6, 0.3), "var": jnp.full(6, 2.0)}
    y, large = _train(2, x, start)
    halves = [_train(2, half, start) for half in (x[:4], x[4:])]
    np.testing.assert_allclose(y, np.concatenate([half for half, _ in halves]), atol=1e-6)
    for name in large:
        mean = np.mean([stats[name] for _, stats in halves], axis=0)
        np.testing.assert_allclose(large[name], mean, rtol=1e-6)


def test_bfloat16_statistics_are_float32():
    x = jnp.asarray(np.random.default_rng(3).normal(5, 1, size=(8, 16, 16, 4)), jnp.bfloat16)
    y, batch_stats = _train("global", x)
    assert y.dtype == jnp.bfloat16
    assert batch_stats["mean"].dtype == jnp.float32
    exact = np.asarray(x, np.float64).mean((0, 1, 2))
    np.testing.assert_allclose(batch_stats["mean"], 0.1 * exact, rtol=1e-5)


@pytest.mark.parametrize("groups", [3, 0, 16])
def test_groups_that_do_not_divide_the_batch(groups):
    with pytest.raises(ValueError, match=f"model.batch_norm: .* 8 examples .* groups of {groups}"):
        _train(groups, np.zeros((8, 2, 2, 3), np.float32))
