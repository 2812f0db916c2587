"""Batch normalisation together with the following activation and squeeze-and-excite.

They form one function with its own gradient, because their speed depends on how often they read and
write the features. x is [batch, height, width, channels] throughout.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax

from jaxcls.models.layers import (
    Activation,
    GateParams,
    channel_means,
    gate,
    identity,
    statistics_dtype,
)
from jaxcls.system.errors import UserError

BatchNormGroups = int | Literal["global"]


def _grouped(x: Array, group_size: int) -> Array:
    """Reshapes [batch, ...] to [groups, group_size, ...] of consecutive examples."""
    return x.reshape(x.shape[0] // group_size, group_size, *x.shape[1:])


def _group_mean(x: Array, group_size: int) -> Array:
    """Returns the mean over each group's examples and pixels, [groups, 1, 1, 1, channels].

    Each example is averaged first, because the CPU compiler splits that over threads.
    """
    per_example = jnp.mean(x, axis=(1, 2))
    return jnp.mean(_grouped(per_example, group_size), axis=1)[:, None, None, None, :]


def _normed(x: Array, mean: Array, inverse: Array, group_size: int) -> Array:
    """Returns (x - mean) * inverse for each group, [groups, group_size, ...]."""
    return (_grouped(x.astype(mean.dtype), group_size) - mean) * inverse


def _normalize(
    x: Array, scale: Array, bias: Array, group_size: int, epsilon: float, activation: Activation
) -> tuple[Array, Array, Array]:
    """Normalises each group of consecutive examples by its own statistics.

    The gradient is written by hand, so that only `x` is stored for it, and not the normalised or
    activated values. The mean and variance are for the moving statistics and have no gradient.

    Args:
      x: [batch, height, width, channels].
      scale: [channels].
      bias: [channels].
      group_size: the examples in a group; divides the batch.
      epsilon: added to the variance.
      activation: elementwise, applied to the result.

    Returns:
      The activated values in the dtype of `x`; mean and biased variance, both [groups, channels].
    """
    return _normalize_forward(x, scale, bias, group_size, epsilon, activation)[0]


def _normalize_forward(x, scale, bias, group_size, epsilon, activation):
    wide = x.astype(statistics_dtype(x.dtype))
    mean = _group_mean(wide, group_size)
    variance = jnp.maximum(_group_mean(wide * wide, group_size) - mean * mean, 0)
    inverse = lax.rsqrt(variance + epsilon)
    factor = inverse * scale
    shifted = _grouped(wide, group_size) * factor + (bias - mean * factor)
    y = activation(shifted).astype(x.dtype).reshape(x.shape)
    return (y, mean[:, 0, 0, 0], variance[:, 0, 0, 0]), (x, scale, bias, mean, inverse)


def _normalize_backward(group_size, epsilon, activation, residuals, cotangents):
    del epsilon
    x, scale, bias, mean, inverse = residuals
    grad = cotangents[0].astype(mean.dtype)
    normed = _normed(x, mean, inverse, group_size)
    (grad,) = jax.vjp(activation, normed * scale + bias)[1](_grouped(grad, group_size))
    # Rounded like a layer's gradient; otherwise a TPU writes it in float32, 5.6 MB more in a block.
    grad = grad.astype(x.dtype).astype(mean.dtype)
    grad_mean = _group_mean(grad.reshape(x.shape), group_size)
    dot_mean = _group_mean((grad * normed).reshape(x.shape), group_size)
    grad_x = (grad - grad_mean - normed * dot_mean) * (inverse * scale)
    count = group_size * x.shape[1] * x.shape[2]
    grad_scale = jnp.sum(dot_mean, axis=(0, 1, 2, 3)) * count
    grad_bias = jnp.sum(grad_mean, axis=(0, 1, 2, 3)) * count
    return grad_x.astype(x.dtype).reshape(x.shape), grad_scale, grad_bias


normalize = jax.custom_vjp(_normalize, nondiff_argnums=(3, 4, 5))
normalize.defvjp(_normalize_forward, _normalize_backward)


def _normalize_and_gate(
    x: Array,
    scale: Array,
    bias: Array,
    gate_params: GateParams,
    group_size: int,
    epsilon: float,
    activation: Activation,
) -> tuple[Array, Array, Array]:
    """Applies `normalize`, then squeeze-and-excite.

    As one function, because the gate and its gradient are constant over an example's pixels: all
    sums for the gradient of the batch statistics then come from one pass over `x` and the
    cotangent. As two functions, they need three more passes.

    Args:
      gate_params: the output of `SqueezeExcite`; the others are as for `normalize`.
    """
    return _normalize_and_gate_forward(
        x, scale, bias, gate_params, group_size, epsilon, activation
    )[0]


def _normalize_and_gate_forward(x, scale, bias, gate_params, group_size, epsilon, activation):
    (y, mean, variance), kept = _normalize_forward(x, scale, bias, group_size, epsilon, activation)
    means = channel_means(y)
    gated = y * gate(means, gate_params, activation)
    return (gated, mean, variance), (kept, means, gate_params)


def _normalize_and_gate_backward(group_size, epsilon, activation, residuals, cotangents):
    del epsilon
    (x, scale, bias, mean, inverse), means, gate_params = residuals
    gates, gate_vjp = jax.vjp(
        lambda means, params: gate(means, params, activation), means, gate_params
    )
    grad = cotangents[0].astype(mean.dtype)
    normed = _normed(x, mean, inverse, group_size).reshape(x.shape)
    y, activation_vjp = jax.vjp(activation, normed * scale + bias)
    (slope,) = activation_vjp(jnp.ones_like(y))

    def sum_over_pixels(values: Array) -> Array:
        return jnp.sum(values, axis=(1, 2), keepdims=True)

    grad_means, grad_gate_params = gate_vjp(sum_over_pixels(grad * y).astype(x.dtype))
    # The cotangent of y is grad * gates + shift; gates and shift are constant over the pixels.
    gates, pixels = gates.astype(mean.dtype), x.shape[1] * x.shape[2]
    shift = grad_means.astype(mean.dtype) / pixels
    sums = gates * sum_over_pixels(grad * slope) + shift * sum_over_pixels(slope)
    dots = gates * sum_over_pixels(grad * slope * normed) + shift * sum_over_pixels(slope * normed)
    grad_mean, dot_mean = (_group_mean(of, group_size) / pixels for of in (sums, dots))
    centred = slope * (grad * gates + shift)
    grad_x = _grouped(centred, group_size) - grad_mean - _grouped(normed, group_size) * dot_mean
    grad_x = (grad_x * (inverse * scale)).astype(x.dtype).reshape(x.shape)
    return grad_x, jnp.sum(dots, axis=(0, 1, 2)), jnp.sum(sums, axis=(0, 1, 2)), grad_gate_params


normalize_and_gate = jax.custom_vjp(_normalize_and_gate, nondiff_argnums=(4, 5, 6))
normalize_and_gate.defvjp(_normalize_and_gate_forward, _normalize_and_gate_backward)


class BatchNorm(nn.Module):
    """Batch normalisation over the global batch or fixed groups of examples, and the activation.

    Statistics are float32 (float64 for float64 inputs) for any compute dtype. Each call updates the
    moving statistics with the average of the groups' means and biased variances. This is linear in
    the groups, so averaging `batch_stats` over micro-batches of whole groups gives the same as one
    large batch.

    Attributes:
      groups: "global", or the number of consecutive examples that are normalised together.
      momentum: the share of the moving statistics that an update keeps.
      epsilon: added to the variance.
      activation: elementwise function of the result.
      frozen: normalise by the moving statistics in training too, and do not update them.
    """

    groups: BatchNormGroups = "global"
    momentum: float = 0.9
    epsilon: float = 1e-3
    activation: Activation = identity
    frozen: bool = False

    @nn.compact
    def __call__(self, x: Array, *, train: bool, gate_params: GateParams | None = None) -> Array:
        """Normalises x; with `gate_params` (from `SqueezeExcite`) also gates the result."""
        dtype, shape = statistics_dtype(x.dtype), (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, shape, dtype)
        bias = self.param("bias", nn.initializers.zeros, shape, dtype)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, dtype)
        var = self.variable("batch_stats", "var", jnp.ones, shape, dtype)
        if self.frozen or not train:
            factor = scale * lax.rsqrt(var.value + self.epsilon)
            wide = x.astype(dtype) * factor + (bias - mean.value * factor)
            y = self.activation(wide).astype(x.dtype)
            if gate_params is None:
                return y
            return y * gate(channel_means(y), gate_params, self.activation)
        group_size = batch_norm_group_size(x.shape[0], self.groups)
        how = group_size, self.epsilon, self.activation
        if gate_params is None:
            y, means, variances = normalize(x, scale, bias, *how)
        else:
            y, means, variances = normalize_and_gate(x, scale, bias, gate_params, *how)
        if not self.is_initializing():
            keep = self.momentum
            mean.value = keep * mean.value + (1 - keep) * jnp.mean(means, axis=0)
            var.value = keep * var.value + (1 - keep) * jnp.mean(variances, axis=0)
        return y


def batch_norm_group_size(batch: int, groups: BatchNormGroups) -> int:
    """Returns the number of examples that are normalised together in a batch of `batch`."""
    if groups == "global":
        return batch
    if groups < 1 or batch % groups:
        raise UserError(
            f"model.batch_norm: a batch of {batch} examples cannot be cut into groups of {groups};"
            ' choose a positive divisor of the (micro-)batch, or "global"'
        )
    return groups
