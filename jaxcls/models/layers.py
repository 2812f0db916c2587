"""The layers of the models: convolutions, squeeze-and-excite, dropout.

Batch normalisation is in `batch_norm.py`.

Images are [batch, height, width, channels] and kernels [height, width, in, out] throughout.
"""

from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax

from jaxcls.models.convolution import conv
from jaxcls.models.depthwise import depthwise_conv
from jaxcls.models.padding import Padding, explicit_padding
from jaxcls.models.pointwise import pointwise_conv

Activation = Callable[[Array], Array]
type GateParams = dict[str, tuple[Array, Array]]


def silu(x: Array) -> Array:
    return x * lax.logistic(x)


def relu6(x: Array) -> Array:
    """Clips x to [0, 6]; the gradient is 0 at both ends, as in TensorFlow and PyTorch."""
    return lax.clamp(jnp.zeros((), x.dtype), x, jnp.full((), 6, x.dtype))


def identity(x: Array) -> Array:
    return x


def statistics_dtype(dtype) -> jnp.dtype:
    """Returns the dtype of parameters, statistics and sums: float32, or float64 for float64."""
    return jnp.promote_types(dtype, jnp.float32)


ActivationName = Literal["silu", "relu", "relu6"]
ACTIVATIONS: dict[ActivationName, Activation] = {"silu": silu, "relu": nn.relu, "relu6": relu6}


class Conv(nn.Module):
    """A convolution without bias, parameter `kernel`."""

    features: int
    kernel_size: int = 1
    stride: int = 1
    padding: Padding = "same"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        dtype = statistics_dtype(x.dtype)
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.zeros, shape, dtype).astype(x.dtype)
        if self.kernel_size == 1 and self.stride == 1:
            # A matrix product, whose kernel gradient is faster on CPUs and GPUs.
            return pointwise_conv(x, kernel[0, 0])
        zeros = tuple(
            explicit_padding(
                size, kernel_size=self.kernel_size, stride=self.stride, padding=self.padding
            )
            for size in x.shape[1:3]
        )
        return conv(x, kernel, stride=self.stride, zeros=zeros)


class DepthwiseConv(nn.Module):
    """A depthwise convolution, parameter `kernel` [kernel_size, kernel_size, 1, channels]."""

    kernel_size: int = 3
    stride: int = 1
    padding: Padding = "same"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (self.kernel_size, self.kernel_size, 1, x.shape[-1])
        kernel = self.param("kernel", nn.initializers.zeros, shape, statistics_dtype(x.dtype))
        return depthwise_conv(x, kernel.astype(x.dtype), stride=self.stride, padding=self.padding)


class SqueezeExcite(nn.Module):
    """The parameters of squeeze-and-excite, `reduce` and `expand`; `gate.gate` computes with them.

    Attributes:
      features: the width of the bottleneck.
      channels: the number of channels that are gated.
    """

    features: int
    channels: int

    @nn.compact
    def __call__(self, dtype) -> GateParams:
        """Returns kernels [in, out] and biases [out] for inputs of a dtype."""
        sizes = {"reduce": (self.channels, self.features), "expand": (self.features, self.channels)}
        return {name: _Affine(*size, name=name)(dtype) for name, size in sizes.items()}


class _Affine(nn.Module):
    inputs: int
    outputs: int

    @nn.compact
    def __call__(self, dtype) -> tuple[Array, Array]:
        dtype, zeros = statistics_dtype(dtype), nn.initializers.zeros
        kernel = self.param("kernel", zeros, (1, 1, self.inputs, self.outputs), dtype)
        return kernel[0, 0], self.param("bias", zeros, (self.outputs,), dtype)


def dropout(x: Array, uniforms: Array, *, rate: Array | float) -> Array:
    """Sets elements to zero at `rate` and scales the others up; `uniforms` has the shape of `x`."""
    return x * jnp.where(uniforms >= rate, 1 / (1 - rate), 0.0).astype(x.dtype)
