"""The initial values of a model's variables, from their names and shapes.

Convolution kernels are drawn as in the reference code (EfficientNet,
https://arxiv.org/abs/1905.11946): from a truncated normal of variance 2 / fan-out, where fan-out is
height * width * out, or height * width for a depthwise kernel. The classifier is drawn from a
uniform of variance 1 / (3 fan), where fan is the mean of the numbers of inputs and classes. The
reference uses the number of classes, which is similar for 1,000, but gives ten classes an initial
loss of 6.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

# The standard deviation of a unit normal cut off at two of its standard deviations.
_TRUNCATED_STD = 0.87962566103423978


def initial_params(key: Array, shapes: Any, *, head_scale: float = 1.0) -> Any:
    """Draws values for a tree of parameters with the shapes and dtypes in `shapes`.

    All convolution kernels are parts of one draw, which compiles in 2 s on a CPU; one draw for each
    kernel takes 13 s.

    Args:
      key: the random key.
      shapes: nested dicts of `jax.ShapeDtypeStruct`; leaves are named kernel, scale or bias.
      head_scale: a factor for the classifier's kernel.
    """
    conv_key, dense_key = jax.random.split(key)
    leaves, structure = jax.tree_util.tree_flatten_with_path(shapes)
    sizes = [leaf.size if leaf.ndim == 4 else 0 for _, leaf in leaves]
    dtype = jnp.result_type(*(leaf.dtype for _, leaf in leaves))
    normals = jax.random.truncated_normal(conv_key, -2, 2, (sum(sizes),), dtype) / _TRUNCATED_STD
    normals = lax.optimization_barrier(normals)  # otherwise compiled again for each kernel
    values, start = [], 0
    for (path, leaf), size in zip(leaves, sizes, strict=True):
        name = path[-1].key
        if leaf.ndim == 4:
            height, width, inputs, outputs = leaf.shape
            fan_out = height * width * (1 if inputs == 1 else outputs)
            value = normals[start : start + size].reshape(leaf.shape) * math.sqrt(2 / fan_out)
        elif name == "kernel":
            limit = head_scale / math.sqrt(sum(leaf.shape) / 2)
            value = jax.random.uniform(dense_key, leaf.shape, dtype, minval=-limit, maxval=limit)
        else:
            value = jnp.full(leaf.shape, 1.0 if name == "scale" else 0.0)
        values.append(value.astype(leaf.dtype))
        start += size
    return jax.tree.unflatten(structure, values)


def initial_batch_stats(shapes: Any) -> Any:
    """Returns means of 0 and variances of 1 with the shapes and dtypes in `shapes`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.full(leaf.shape, float(path[-1].key == "var"), leaf.dtype), shapes
    )
