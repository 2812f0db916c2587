"""Batch normalisation together with the following activation and squeeze-and-excite.

They form one function with its own gradient, because their speed depends on how often they read and
write the features. x is [batch, height, width, channels] throughout.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax

from jaxcls.models.channel_sums import for_each_example, group_sums
from jaxcls.models.gate import gate, gate_gradients
from jaxcls.models.layers import (
    Activation,
    GateParams,
    identity,
    statistics_dtype,
)
from jaxcls.system.errors import UserError

BatchNormGroups = int | Literal["global"]


def _normalize(
    x: Array,
    scale: Array,
    bias: Array,
    multipliers: Array | None,
    group_size: int,
    epsilon: float,
    activation: Activation,
) -> tuple[Array, Array, Array]:
    """Normalises each group of consecutive examples by its own statistics.

    The gradient is written by hand, so that only `x` is stored for it, and not the normalised or
    activated values. The mean and variance are for the moving statistics and have no gradient.

    Args:
      x: [batch, height, width, channels].
      scale: [channels].
      bias: [channels].
      multipliers: [batch, 1], with which each example's result is multiplied; None for 1. They have
        no gradient.
      group_size: the examples in a group; divides the batch.
      epsilon: added to the variance.
      activation: elementwise, applied to the result.

    Returns:
      The activated values in the dtype of `x`; mean and biased variance, both [groups, channels].
    """
    return _normalize_forward(x, scale, bias, multipliers, group_size, epsilon, activation)[0]


def _normalize_forward(x, scale, bias, multipliers, group_size, epsilon, activation):
    batch, groups = len(x), len(x) // group_size
    count = group_size * x.shape[1] * x.shape[2]
    sums = group_sums(lambda x: (x, x * x), (x,), (), groups=groups)
    mean, mean_square = (of / count for of in sums)
    variance = jnp.maximum(mean_square - mean * mean, 0)
    inverse = lax.rsqrt(variance + epsilon)
    factor = inverse * scale
    shift = bias - mean * factor
    shifted = x.astype(mean.dtype) * for_each_example(factor, batch) + for_each_example(
        shift, batch
    )
    y = activation(shifted)
    if multipliers is not None:
        y = y * for_each_example(multipliers.astype(mean.dtype), batch)
    return (y.astype(x.dtype), mean, variance), (x, scale, bias, multipliers, mean, inverse)


def _normalize_backward(group_size, epsilon, activation, residuals, cotangents):
    del epsilon
    x, scale, bias, multipliers, mean, inverse = residuals
    batch, groups = len(x), len(x) // group_size
    vectors = mean, inverse, scale[None], bias[None]
    if multipliers is not None:
        vectors = *vectors, multipliers.astype(mean.dtype)

    dtype, wide = x.dtype, mean.dtype

    def terms(x: Array, grad: Array, *vectors: Array) -> tuple[Array, Array]:
        grad, normed = _before_activation(x, grad, *vectors, activation=activation, dtype=dtype)
        return grad, grad * normed

    grad_bias, grad_scale = group_sums(terms, (x, cotangents[0]), vectors, groups=groups)
    count = group_size * x.shape[1] * x.shape[2]
    grad, normed = _before_activation(
        x.astype(wide),
        cotangents[0].astype(wide),
        *(for_each_example(vector, batch) for vector in vectors),
        activation=activation,
        dtype=dtype,
    )
    grad_mean, dot_mean = (for_each_example(of / count, batch) for of in (grad_bias, grad_scale))
    factor = for_each_example(inverse * scale, batch)
    grad_x = (grad - grad_mean - normed * dot_mean) * factor
    return grad_x.astype(dtype), jnp.sum(grad_scale, axis=0), jnp.sum(grad_bias, axis=0), None


def _before_activation(
    x: Array,
    grad: Array,
    mean: Array,
    inverse: Array,
    scale: Array,
    bias: Array,
    multiplier: Array | None = None,
    *,
    activation: Activation,
    dtype: jnp.dtype,
) -> tuple[Array, Array]:
    """Returns the gradient for the activation's input, and the normalised x.

    Args:
      x: elements of the input.
      grad: the gradients for the activation's results.
      mean, inverse, scale, bias: of the elements' channels.
      multiplier: of the elements' examples; None for 1.
      activation: the activation.
      dtype: the dtype of the network, to which the gradient is rounded like that of a layer.
        Otherwise a TPU writes it in float32, in a block of B0 up to 5.6 MB more for each image.
    """
    normed = (x - mean) * inverse
    grad = grad if multiplier is None else grad * multiplier
    (grad,) = jax.vjp(activation, normed * scale + bias)[1](grad)
    return grad.astype(dtype).astype(x.dtype), normed


normalize = jax.custom_vjp(_normalize, nondiff_argnums=(4, 5, 6))
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
    (y, mean, variance), (*_, inverse) = _normalize_forward(
        x, scale, bias, None, group_size, epsilon, activation
    )
    kept, dtype = (x, scale, bias, mean, inverse), x.dtype
    factor, pixels = inverse * scale, x.shape[1] * x.shape[2]
    vectors = factor, bias - mean * factor

    def term(x: Array, factor: Array, shift: Array) -> tuple[Array]:
        return (activation(x * factor + shift).astype(dtype).astype(x.dtype) / pixels,)

    (means,) = group_sums(term, (x,), vectors, groups=len(x))
    gates = gate(means, gate_params, activation, dtype=dtype)
    return (y * gates[:, None, None], mean, variance), (kept, means, gates, gate_params)


def _normalize_and_gate_backward(group_size, epsilon, activation, residuals, cotangents):
    del epsilon
    (x, scale, bias, mean, inverse), means, gates, gate_params = residuals
    batch, groups, wide = len(x), len(x) // group_size, mean.dtype
    vectors = mean, inverse, scale[None], bias[None]

    def activated(x: Array, *vectors: Array) -> tuple[Array, Array, Array]:
        """Returns y, its derivative, and the normalised x."""
        mean, inverse, scale, bias = vectors
        normed = (x - mean) * inverse
        y, activation_vjp = jax.vjp(activation, normed * scale + bias)
        return y, activation_vjp(jnp.ones_like(y))[0], normed

    def terms(x: Array, grad: Array, *vectors: Array) -> tuple[Array, ...]:
        y, slope, normed = activated(x, *vectors)
        return grad * y, grad * slope, slope, grad * slope * normed, slope * normed

    sums = group_sums(terms, (x, cotangents[0]), vectors, groups=batch)
    grad_gates, grads, slopes, grad_dots, dots = sums
    pixels = x.shape[1] * x.shape[2]
    # The cotangent of y is grad * gates + shift; gates and shift are constant over the pixels.
    shift, grad_gate_params = gate_gradients(
        means, gate_params, activation, grad_gates, pixels=pixels, dtype=x.dtype
    )
    gates, shift = gates.astype(wide), shift.astype(wide)

    both = jnp.stack([gates * grads + shift * slopes, gates * grad_dots + shift * dots])
    grad_bias, grad_scale = jnp.sum(both.reshape(2, groups, group_size, -1), axis=2)
    count = group_size * pixels
    grad_mean, dot_mean = (for_each_example(of / count, batch) for of in (grad_bias, grad_scale))
    rows = (for_each_example(vector, batch) for vector in vectors)
    _, slope, normed = activated(x.astype(wide), *rows)
    gates, shift = gates[:, None, None], shift[:, None, None]
    grad_x = slope * (cotangents[0].astype(wide) * gates + shift) - grad_mean - normed * dot_mean
    grad_x = (grad_x * for_each_example(inverse * scale, batch)).astype(x.dtype)
    return grad_x, jnp.sum(grad_scale, axis=0), jnp.sum(grad_bias, axis=0), grad_gate_params


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
    def __call__(
        self,
        x: Array,
        *,
        train: bool,
        gate_params: GateParams | None = None,
        multipliers: Array | None = None,
    ) -> Array:
        """Normalises x; also gates the result, or multiplies it, but not both.

        Args:
          x: [batch, height, width, channels].
          train: whether to use batch statistics.
          gate_params: the parameters of a gate, from `SqueezeExcite`.
          multipliers: [batch], with which each example's result is multiplied.
        """
        assert gate_params is None or multipliers is None
        if multipliers is not None:
            multipliers = multipliers[:, None]
        dtype, shape = statistics_dtype(x.dtype), (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, shape, dtype)
        bias = self.param("bias", nn.initializers.zeros, shape, dtype)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, dtype)
        var = self.variable("batch_stats", "var", jnp.ones, shape, dtype)
        if self.frozen or not train:
            factor = scale * lax.rsqrt(var.value + self.epsilon)
            wide = x.astype(dtype) * factor + (bias - mean.value * factor)
            y = self.activation(wide).astype(x.dtype)
            if multipliers is not None:
                return y * for_each_example(multipliers, len(x))
            if gate_params is None:
                return y
            means = jnp.mean(y, axis=(1, 2), dtype=dtype)
            gates = gate(means, gate_params, self.activation, dtype=x.dtype)
            return y * gates[:, None, None]
        group_size = batch_norm_group_size(x.shape[0], self.groups)
        how = group_size, self.epsilon, self.activation
        if gate_params is None:
            y, means, variances = normalize(x, scale, bias, multipliers, *how)
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
