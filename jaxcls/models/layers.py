"""The layers of the models: convolutions, batch normalisation, squeeze-and-excite, drop-path.

Images are [batch, height, width, channels] and kernels [height, width, in, out] throughout.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax

from jaxcls.errors import UserError
from jaxcls.models.depthwise import depthwise_conv
from jaxcls.models.padding import Padding, explicit_padding

BatchNormGroups = int | Literal["global"]
Activation = Callable[[Array], Array]

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def silu(x: Array) -> Array:
    return x * lax.logistic(x)


def relu6(x: Array) -> Array:
    """x cut to [0, 6]; the gradient is 0 at both ends, as in TensorFlow and PyTorch."""
    return lax.clamp(jnp.zeros((), x.dtype), x, jnp.full((), 6, x.dtype))


def identity(x: Array) -> Array:
    return x


ActivationName = Literal["silu", "relu6"]
ACTIVATIONS: dict[ActivationName, Activation] = {"silu": silu, "relu6": relu6}


# --- Batch normalisation -------------------------------------------------------------------------


def _grouped(x: Array, group_size: int) -> Array:
    """[batch, ...] as [groups, group_size, ...] of consecutive examples."""
    return x.reshape(x.shape[0] // group_size, group_size, *x.shape[1:])


def _group_mean(x: Array, group_size: int) -> Array:
    """The mean over each group's examples and pixels, [groups, 1, 1, 1, channels].

    Each example is summed before the group: the CPU compiler splits that over its threads.
    """
    per_example = jnp.mean(x, axis=(1, 2))
    return jnp.mean(_grouped(per_example, group_size), axis=1)[:, None, None, None, :]


def _statistics_dtype(dtype) -> jnp.dtype:
    return jnp.promote_types(dtype, jnp.float32)


def _normalize(
    x: Array, scale: Array, bias: Array, group_size: int, epsilon: float, activation: Activation
) -> tuple[Array, Array, Array]:
    """Normalises each group of consecutive examples by its own statistics.

    The gradient is written out so that only `x` is kept for it, not the normalised or activated
    values; `mean` and `variance` feed the moving statistics and carry no gradient.

    Args:
      x: [batch, height, width, channels].
      scale: [channels].
      bias: [channels].
      group_size: examples a group; divides batch.
      epsilon: added to the variance.
      activation: elementwise, applied to the result.

    Returns:
      The activated values in the dtype of `x`; mean and biased variance, both [groups, channels].
    """
    return _normalize_forward(x, scale, bias, group_size, epsilon, activation)[0]


def _normalize_forward(x, scale, bias, group_size, epsilon, activation):
    wide = x.astype(_statistics_dtype(x.dtype))
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
    normed = (_grouped(x.astype(mean.dtype), group_size) - mean) * inverse
    (grad,) = jax.vjp(activation, normed * scale + bias)[1](_grouped(grad, group_size))
    # Rounded as a layer's gradient is: a TPU else writes it in float32, 5.6 MB more in one block.
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


class BatchNorm(nn.Module):
    """Batch normalisation over the global batch or fixed groups of examples, and the activation.

    Statistics are float32 (float64 for float64 inputs) whatever the compute dtype. The moving
    statistics take one step a call, toward the mean over the groups of the groups' means and
    biased variances: linear in the groups, so averaging `batch_stats` over micro-batches of whole
    groups gives the large batch's.

    Attributes:
      groups: "global", or how many consecutive examples are normalised together.
      momentum: how much of the moving statistics a step keeps.
      epsilon: added to the variance.
      activation: elementwise function of the result.
      frozen: use the moving statistics in training too, and leave them as they are.
    """

    groups: BatchNormGroups = "global"
    momentum: float = 0.9
    epsilon: float = 1e-3
    activation: Activation = identity
    frozen: bool = False

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        dtype, shape = _statistics_dtype(x.dtype), (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, shape, dtype)
        bias = self.param("bias", nn.initializers.zeros, shape, dtype)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, dtype)
        var = self.variable("batch_stats", "var", jnp.ones, shape, dtype)
        if self.frozen or not train:
            factor = scale * lax.rsqrt(var.value + self.epsilon)
            wide = x.astype(dtype) * factor + (bias - mean.value * factor)
            return self.activation(wide).astype(x.dtype)
        group_size = batch_norm_group_size(x.shape[0], self.groups)
        y, means, variances = normalize(x, scale, bias, group_size, self.epsilon, self.activation)
        if not self.is_initializing():
            keep = self.momentum
            mean.value = keep * mean.value + (1 - keep) * jnp.mean(means, axis=0)
            var.value = keep * var.value + (1 - keep) * jnp.mean(variances, axis=0)
        return y


def batch_norm_group_size(batch: int, groups: BatchNormGroups) -> int:
    """How many examples are normalised together in a batch of `batch`."""
    if groups == "global":
        return batch
    if groups < 1 or batch % groups:
        raise UserError(
            f"model.batch_norm: a batch of {batch} examples cannot be cut into groups of {groups};"
            ' choose a positive divisor of the (micro-)batch, or "global"'
        )
    return groups


# --- Modules -------------------------------------------------------------------------------------


class Conv(nn.Module):
    """A convolution, parameter `kernel` (and `bias`)."""

    features: int
    kernel_size: int = 1
    stride: int = 1
    padding: Padding = "same"
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        dtype = _statistics_dtype(x.dtype)
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.zeros, shape, dtype).astype(x.dtype)
        if self.kernel_size == 1 and self.stride == 1:
            # As a matrix product: its kernel gradient needs no transposed copies on a CPU.
            y = x @ kernel[0, 0]
        else:
            strides = (self.stride, self.stride)
            zeros = [
                explicit_padding(
                    size,
                    kernel_size=self.kernel_size,
                    stride=self.stride,
                    padding=self.padding,
                )
                for size in x.shape[1:3]
            ]
            y = lax.conv_general_dilated(x, kernel, strides, zeros, dimension_numbers=_DIMENSIONS)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), dtype)
            y = y + bias.astype(x.dtype)
        return y


class DepthwiseConv(nn.Module):
    """A depthwise convolution, parameter `kernel` [kernel_size, kernel_size, 1, channels]."""

    kernel_size: int = 3
    stride: int = 1
    padding: Padding = "same"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (self.kernel_size, self.kernel_size, 1, x.shape[-1])
        kernel = self.param("kernel", nn.initializers.zeros, shape, _statistics_dtype(x.dtype))
        return depthwise_conv(x, kernel.astype(x.dtype), stride=self.stride, padding=self.padding)


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate computed from all the channels' means.

    Attributes:
      features: width of the bottleneck.
      activation: elementwise, inside the bottleneck.
    """

    features: int
    activation: Activation = silu

    @nn.compact
    def __call__(self, x: Array) -> Array:
        squeezed = jnp.mean(x, axis=(1, 2), keepdims=True, dtype=_statistics_dtype(x.dtype))
        gate = self.activation(
            Conv(self.features, use_bias=True, name="reduce")(squeezed.astype(x.dtype))
        )
        gate = lax.logistic(Conv(x.shape[-1], use_bias=True, name="expand")(gate))
        return x * gate


def drop_path(x: Array, uniforms: Array, *, rate: Array | float) -> Array:
    """Zeroes whole examples at `rate` and scales the others up, keeping the expectation.

    Args:
      x: [batch, height, width, channels].
      uniforms: [batch] draws from [0, 1).
      rate: share of the examples to zero, in [0, 1).
    """
    factor = jnp.where(uniforms >= rate, 1 / (1 - rate), 0.0).astype(x.dtype)
    return x * factor[:, None, None, None]


def dropout(x: Array, uniforms: Array, *, rate: Array | float) -> Array:
    """Zeroes elements at `rate` and scales the others up; `uniforms` has the shape of `x`."""
    return x * jnp.where(uniforms >= rate, 1 / (1 - rate), 0.0).astype(x.dtype)
