"""3x3 depthwise convolution in the form that suits the platform.

XLA's grouped convolution is right for TPU and GPU. On CPU it is 4 to 20 times slower than shifted
multiply-adds, which in turn cost a TPU half more memory traffic.

Images are [batch, height, width, channels], kernels [3, 3, 1, channels], padding is TensorFlow's
SAME.
"""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

_FEW_ROWS = 4


def depthwise_conv(x: Array, kernel: Array, *, stride: int) -> Array:
    """Convolves each channel with its own 3x3 kernel.

    Args:
      x: [batch, height, width, channels].
      kernel: [3, 3, 1, channels], of the dtype of `x`.
      stride: 1 or 2, of both axes.

    Returns:
      [batch, ceil(height / stride), ceil(width / stride), channels].
    """
    return _by_platform(x, kernel, stride)


# The gradient chooses by platform too. (Differentiating through `platform_dependent` would keep
# the residuals of both forms.)
def _choose(x: Array, kernel: Array, stride: int) -> Array:
    return lax.platform_dependent(
        x, kernel, cpu=partial(shifted, stride=stride), default=partial(grouped, stride=stride)
    )


def _forward(x: Array, kernel: Array, stride: int) -> tuple[Array, tuple[Array, Array]]:
    return _choose(x, kernel, stride), (x, kernel)


def _backward(stride: int, residuals: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    return lax.platform_dependent(
        x,
        kernel,
        grad,
        cpu=partial(shifted_gradients, stride=stride),
        default=partial(grouped_gradients, stride=stride),
    )


_by_platform = jax.custom_vjp(_choose, nondiff_argnums=(2,))
_by_platform.defvjp(_forward, _backward)


def grouped(x: Array, kernel: Array, *, stride: int) -> Array:
    """`depthwise_conv` as one grouped convolution."""
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def grouped_gradients(x: Array, kernel: Array, grad: Array, *, stride: int) -> tuple[Array, Array]:
    """The gradients of `grouped` for x and kernel, given that for its result."""
    return jax.vjp(partial(grouped, stride=stride), x, kernel)[1](grad)


def shifted(x: Array, kernel: Array, *, stride: int) -> Array:
    """`depthwise_conv` as nine shifted multiply-adds."""
    height, width = x.shape[1:3]
    padding = (0, 0), _padding(height, stride), _padding(width, stride), (0, 0)
    # The barrier keeps the compiler from testing for the border at every multiply-add.
    padded = lax.optimization_barrier(jnp.pad(x, padding))
    rows, cols = -(-height // stride), -(-width // stride)
    terms = (
        _tap(padded, i, j, rows, cols, stride) * kernel[i, j, 0].astype(_wide(x))
        for i in _live_taps(height, stride)
        for j in _live_taps(width, stride)
    )
    return sum(terms, start=jnp.zeros((), _wide(x))).astype(x.dtype)


def shifted_gradients(x: Array, kernel: Array, grad: Array, *, stride: int) -> tuple[Array, Array]:
    """The gradients of `shifted` for x and kernel, given that for its result."""
    return _input_gradient(x, kernel, grad, stride), _kernel_gradient(x, kernel, grad, stride)


def _input_gradient(x: Array, kernel: Array, grad: Array, stride: int) -> Array:
    """The turned-round kernel over the result's gradient, spread out by the stride."""
    config = [(0, 0, 0)]
    for size, outputs in zip(x.shape[1:3], grad.shape[1:3], strict=True):
        low = 2 - _padding(size, stride)[0]
        high = size + 2 - low - ((outputs - 1) * stride + 1)
        config.append((low, high, stride - 1))
    padded = lax.pad(grad, jnp.zeros((), grad.dtype), [*config, (0, 0, 0)])
    padded = lax.optimization_barrier(padded)
    height, width = x.shape[1:3]
    terms = (
        _tap(padded, 2 - i, 2 - j, height, width, 1) * kernel[i, j, 0].astype(_wide(x))
        for i in _live_taps(height, stride)
        for j in _live_taps(width, stride)
    )
    return sum(terms, start=jnp.zeros((), _wide(x))).astype(x.dtype)


def _kernel_gradient(x: Array, kernel: Array, grad: Array, stride: int) -> Array:
    """Sums image times gradient for each tap.

    A loop over rows that adds into [batch, width, channels] runs along the channels with vector
    instructions, 8 times faster than the compiler's own reduction over batch, height and width. It
    also takes longer to compile, so images of few rows do without.
    """
    height, width = x.shape[1:3]
    rows, cols = grad.shape[1:3]
    padding = (0, 0), _padding(height, stride), _padding(width, stride), (0, 0)
    padded = lax.optimization_barrier(jnp.pad(x, padding))
    taps = [(i, j) for i in _live_taps(height, stride) for j in _live_taps(width, stride)]

    def products(window: Array, grad: Array) -> tuple[Array, ...]:
        count = grad.shape[1]
        grad = grad.astype(_wide(x))
        return tuple(_tap(window, i, j, count, cols, stride) * grad for i, j in taps)

    def add_row(row: Array, sums: tuple[Array, ...]) -> tuple[Array, ...]:
        window = lax.dynamic_slice_in_dim(padded, row * stride, 3, axis=1)
        grad_row = lax.dynamic_slice_in_dim(grad, row, 1, axis=1)
        return tuple(map(jnp.add, sums, products(window, grad_row)))

    if rows <= _FEW_ROWS:
        sums = products(padded, grad)
    else:
        zeros = jnp.zeros((x.shape[0], 1, cols, x.shape[3]), _wide(x))
        sums = lax.fori_loop(0, rows, add_row, (zeros,) * len(taps))
    by_tap = {tap: jnp.sum(total, axis=(0, 1, 2)) for tap, total in zip(taps, sums, strict=True)}
    zero = jnp.zeros(x.shape[-1:], _wide(x))
    flat = jnp.stack([by_tap.get((i, j), zero) for i in range(3) for j in range(3)])
    return flat.reshape(kernel.shape).astype(kernel.dtype)


def _padding(size: int, stride: int) -> tuple[int, int]:
    """SAME padding (before, after) of one axis of `size`."""
    total = max((-(-size // stride) - 1) * stride + 3 - size, 0)
    return total // 2, total - total // 2


def _live_taps(size: int, stride: int) -> Iterator[int]:
    """The taps of one axis that see anything but padding; one of three on a 1-pixel image."""
    before = _padding(size, stride)[0]
    last = (-(-size // stride) - 1) * stride
    return (i for i in range(3) if i - before < size and i - before + last >= 0)


def _tap(padded: Array, i: int, j: int, rows: int, cols: int, stride: int) -> Array:
    """What the kernel's entry [i, j] sees: [batch, rows, cols, channels]."""
    return padded[
        :, i : i + (rows - 1) * stride + 1 : stride, j : j + (cols - 1) * stride + 1 : stride
    ]


def _wide(x: Array) -> jnp.dtype:
    """The dtype to add up in."""
    return jnp.promote_types(x.dtype, jnp.float32)
