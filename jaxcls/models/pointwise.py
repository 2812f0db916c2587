"""1x1 convolutions as matrix products."""

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl

from jaxcls.distributed.mesh import triton_mesh

_TILE = 128  # rows and columns of the result that a program of a GPU computes
_ALIGNED = 64  # the compiler pads sums to a multiple of this
_PROGRAMS = 128  # about one for each multiprocessor of a large card


def pointwise_conv(x: Array, kernel: Array) -> Array:
    """Multiplies the channels of each pixel by a matrix.

    Args:
      x: [batch, height, width, in].
      kernel: [in, out], with the dtype of `x`.

    Returns:
      [batch, height, width, out].
    """
    mesh = triton_mesh(x.shape[0])
    if mesh is None:
        return _with_gradient_in_parts(x, kernel, 1)
    pixels = x[..., 0].size // mesh.size
    return _with_gradient_in_parts(x, kernel, num_parts(pixels, *kernel.shape) * mesh.size)


def num_parts(pixels: int, inputs: int, outputs: int) -> int:
    """The number of parts of a device's pixels that are summed apart for the kernel's gradient.

    Enough to keep a GPU busy, and such that the compiler need not make the parts longer, which it
    does by copying the images.
    """
    tiles = pl.cdiv(inputs, _TILE) * pl.cdiv(outputs, _TILE)
    divisors = [n for n in range(1, _PROGRAMS + 1) if pixels % n == 0]
    fitting = [n for n in divisors if pixels // n % _ALIGNED == 0] or divisors
    enough = [n for n in fitting if n * tiles >= _PROGRAMS]
    return min(enough, default=max(fitting))


def _multiply(x: Array, kernel: Array, parts: int) -> Array:
    del parts
    return x @ kernel


def _forward(x: Array, kernel: Array, parts: int) -> tuple[Array, tuple[Array, Array]]:
    return _multiply(x, kernel, parts), (x, kernel)


def _backward(parts: int, kept: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x, kernel = kept
    # The kernel's gradient is a product with a small result and a very long sum. A GPU's compiler
    # splits that sum too, but pads both images to parts of a size of its own, which copies them.
    of_parts = jnp.einsum(
        "spi,spo->sio",
        x.reshape(parts, -1, x.shape[-1]),
        grad.reshape(parts, -1, grad.shape[-1]),
        preferred_element_type=jnp.promote_types(x.dtype, jnp.float32),
    )
    return grad @ kernel.T, jnp.sum(of_parts, axis=0).astype(kernel.dtype)


_with_gradient_in_parts = jax.custom_vjp(_multiply, nondiff_argnums=(2,))
_with_gradient_in_parts.defvjp(_forward, _backward)
