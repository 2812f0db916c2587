"""Depthwise convolution in the fastest form for each platform.

XLA's grouped convolution is best on TPU and GPU. On CPU it is 4 to 20 times slower than shifted
multiply-adds, which on TPU need 50 % more memory traffic.

Images are [batch, height, width, channels], kernels [size, size, 1, channels] with an odd size.
"""

import dataclasses
from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxcls.models.padding import Padding, explicit_padding

_FEW_ROWS = 4


def depthwise_conv(x: Array, kernel: Array, *, stride: int, padding: Padding = "same") -> Array:
    """Convolves each channel with its own kernel.

    Args:
      x: [batch, height, width, channels].
      kernel: [size, size, 1, channels], with the dtype of `x`; size 3 or 5.
      stride: 1 or 2, of both axes.
      padding: "same" as in TensorFlow, or "symmetric" as in PyTorch.

    Returns:
      [batch, ceil(height / stride), ceil(width / stride), channels].
    """
    return _by_platform(x, kernel, stride, padding)


# The gradient depends on the platform too. (The derivative of `platform_dependent` would store the
# residuals of both forms.)
def _choose(x: Array, kernel: Array, stride: int, padding: Padding) -> Array:
    return lax.platform_dependent(
        x,
        kernel,
        cpu=partial(shifted, stride=stride, padding=padding),
        default=partial(grouped, stride=stride, padding=padding),
    )


def _forward(
    x: Array, kernel: Array, stride: int, padding: Padding
) -> tuple[Array, tuple[Array, Array]]:
    return _choose(x, kernel, stride, padding), (x, kernel)


def _backward(
    stride: int, padding: Padding, residuals: tuple[Array, Array], grad: Array
) -> tuple[Array, Array]:
    x, kernel = residuals
    return lax.platform_dependent(
        x,
        kernel,
        grad,
        cpu=partial(shifted_gradients, stride=stride, padding=padding),
        default=partial(grouped_gradients, stride=stride, padding=padding),
    )


_by_platform = jax.custom_vjp(_choose, nondiff_argnums=(2, 3))
_by_platform.defvjp(_forward, _backward)


def grouped(x: Array, kernel: Array, *, stride: int, padding: Padding = "same") -> Array:
    """Computes `depthwise_conv` as one grouped convolution."""
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [axis.zeros for axis in _axes(x, kernel, stride, padding)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def grouped_gradients(
    x: Array, kernel: Array, grad: Array, *, stride: int, padding: Padding = "same"
) -> tuple[Array, Array]:
    """Returns the gradients of `grouped` for x and kernel, given the gradient for its result."""
    return jax.vjp(partial(grouped, stride=stride, padding=padding), x, kernel)[1](grad)


def shifted(x: Array, kernel: Array, *, stride: int, padding: Padding = "same") -> Array:
    """Computes `depthwise_conv` with a shifted multiply-add for each entry of the kernel."""
    rows, cols = _axes(x, kernel, stride, padding)
    padded = _padded(x, rows, cols)
    terms = (
        _tap(padded, i, j, rows.outputs, cols.outputs, stride) * kernel[i, j, 0].astype(_wide(x))
        for i in rows.live_taps()
        for j in cols.live_taps()
    )
    return sum(terms, start=jnp.zeros((), _wide(x))).astype(x.dtype)


def shifted_gradients(
    x: Array, kernel: Array, grad: Array, *, stride: int, padding: Padding = "same"
) -> tuple[Array, Array]:
    """Returns the gradients of `shifted` for x and kernel, given the gradient for its result."""
    rows, cols = _axes(x, kernel, stride, padding)
    return _input_gradient(x, kernel, grad, rows, cols), _kernel_gradient(
        x, kernel, grad, rows, cols
    )


@dataclasses.dataclass(frozen=True)
class _Axis:
    """One axis of a convolution: the sizes of image and kernel, stride and padding."""

    size: int
    kernel_size: int
    stride: int
    padding: Padding

    @property
    def outputs(self) -> int:
        return -(-self.size // self.stride)

    @property
    def zeros(self) -> tuple[int, int]:
        """The number of zeros before and after the image."""
        return explicit_padding(
            self.size, kernel_size=self.kernel_size, stride=self.stride, padding=self.padding
        )

    def live_taps(self) -> Iterator[int]:
        """Yields the taps that do not see only padding; one of three on a 1-pixel image."""
        before = self.zeros[0]
        last = (self.outputs - 1) * self.stride
        return (
            i for i in range(self.kernel_size) if i - before < self.size and i - before + last >= 0
        )


def _axes(x: Array, kernel: Array, stride: int, padding: Padding) -> tuple[_Axis, _Axis]:
    height, width = x.shape[1:3]
    return (
        _Axis(height, kernel.shape[0], stride, padding),
        _Axis(width, kernel.shape[1], stride, padding),
    )


def _padded(x: Array, rows: _Axis, cols: _Axis) -> Array:
    # Without the barrier, the compiler tests for the border at every multiply-add.
    return lax.optimization_barrier(jnp.pad(x, ((0, 0), rows.zeros, cols.zeros, (0, 0))))


def _input_gradient(x: Array, kernel: Array, grad: Array, rows: _Axis, cols: _Axis) -> Array:
    """Convolves the result's gradient, spread out by the stride, with the rotated kernel."""
    config = [(0, 0, 0)]
    for axis in (rows, cols):
        low = axis.kernel_size - 1 - axis.zeros[0]
        spread = (axis.outputs - 1) * axis.stride + 1
        high = axis.size + axis.kernel_size - 1 - low - spread
        config.append((low, high, axis.stride - 1))
    padded = lax.pad(grad, jnp.zeros((), grad.dtype), [*config, (0, 0, 0)])
    padded = lax.optimization_barrier(padded)
    last_i, last_j = rows.kernel_size - 1, cols.kernel_size - 1
    terms = (
        _tap(padded, last_i - i, last_j - j, rows.size, cols.size, 1)
        * kernel[i, j, 0].astype(_wide(x))
        for i in rows.live_taps()
        for j in cols.live_taps()
    )
    return sum(terms, start=jnp.zeros((), _wide(x))).astype(x.dtype)


def _kernel_gradient(x: Array, kernel: Array, grad: Array, rows: _Axis, cols: _Axis) -> Array:
    """Sums image times gradient for each tap.

    A loop over rows that adds to [batch, width, channels] uses vector instructions along the
    channels, which is 8 times faster than the compiler's reduction over batch, height and width.
    But it takes longer to compile, so it is not used for images with few rows.
    """
    stride = rows.stride
    padded = _padded(x, rows, cols)
    taps = [(i, j) for i in rows.live_taps() for j in cols.live_taps()]

    def products(window: Array, grad: Array) -> tuple[Array, ...]:
        count = grad.shape[1]
        grad = grad.astype(_wide(x))
        return tuple(_tap(window, i, j, count, cols.outputs, stride) * grad for i, j in taps)

    def add_row(row: Array, sums: tuple[Array, ...]) -> tuple[Array, ...]:
        window = lax.dynamic_slice_in_dim(padded, row * stride, rows.kernel_size, axis=1)
        grad_row = lax.dynamic_slice_in_dim(grad, row, 1, axis=1)
        return tuple(map(jnp.add, sums, products(window, grad_row)))

    if rows.outputs <= _FEW_ROWS:
        sums = products(padded, grad)
    else:
        zeros = jnp.zeros((x.shape[0], 1, cols.outputs, x.shape[3]), _wide(x))
        sums = lax.fori_loop(0, rows.outputs, add_row, (zeros,) * len(taps))
    by_tap = {tap: jnp.sum(total, axis=(0, 1, 2)) for tap, total in zip(taps, sums, strict=True)}
    zero = jnp.zeros(x.shape[-1:], _wide(x))
    every = [(i, j) for i in range(rows.kernel_size) for j in range(cols.kernel_size)]
    flat = jnp.stack([by_tap.get(tap, zero) for tap in every])
    return flat.reshape(kernel.shape).astype(kernel.dtype)


def _tap(padded: Array, i: int, j: int, rows: int, cols: int, stride: int) -> Array:
    """Returns the pixels that the kernel's entry [i, j] sees: [batch, rows, cols, channels]."""
    return padded[
        :, i : i + (rows - 1) * stride + 1 : stride, j : j + (cols - 1) * stride + 1 : stride
    ]


def _wide(x: Array) -> jnp.dtype:
    """Returns the dtype for sums."""
    return jnp.promote_types(x.dtype, jnp.float32)
