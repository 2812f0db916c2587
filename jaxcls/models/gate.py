"""The gate of squeeze-and-excite, and its gradients.

It is two small layers for each example. XLA needs some 15 kernels for them on a GPU, each of which
takes longer to start than to run; there, kernels of Triton do the work of one direction at once.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jax.sharding import AbstractMesh, PartitionSpec

from jaxcls.distributed.mesh import batch_spec, triton_mesh
from jaxcls.models.channel_sums import power_of_two
from jaxcls.models.layers import Activation, GateParams

_ROWS = 16  # examples of a program, the fewest that a matrix unit takes
_COLUMNS = 64  # channels that a program has in registers at once
_MAX_WIDTH = 128  # of the bottleneck: more does not fit into the shared memory of some cards


def gate(means: Array, params: GateParams, activation: Activation, *, dtype: jnp.dtype) -> Array:
    """Computes the gate of squeeze-and-excite for each channel, in (0, 1).

    Args:
      means: the means of the channels, float32 [batch, channels] (float64 for float64).
      params: the output of `SqueezeExcite`: kernel and bias of "reduce", [channels, width] and
        [width], and of "expand", [width, channels] and [channels].
      activation: the elementwise function inside the bottleneck.
      dtype: the dtype of the network, and of the result.
    """
    return _differentiable_gate(means, params, activation, dtype)


def _gate(means: Array, params: GateParams, activation: Activation, dtype: jnp.dtype) -> Array:
    mesh = _mesh_for_kernels(means, params, dtype)
    if mesh is not None:
        return gate_by_kernel(means, params, activation, dtype=dtype, mesh=mesh)
    return _gate_by_compiler(means, params, activation, dtype)


def _gate_forward(
    means: Array, params: GateParams, activation: Activation, dtype: jnp.dtype
) -> tuple[Array, tuple[Array, GateParams]]:
    return _gate(means, params, activation, dtype), (means, params)


def _gate_backward(
    activation: Activation, dtype: jnp.dtype, kept: tuple[Array, GateParams], grad: Array
) -> tuple[Array, GateParams]:
    means, params = kept
    grad = grad.astype(means.dtype)
    return gate_gradients(means, params, activation, grad, pixels=1, dtype=dtype)


_differentiable_gate = jax.custom_vjp(_gate, nondiff_argnums=(2, 3))
_differentiable_gate.defvjp(_gate_forward, _gate_backward)


def _mesh_for_kernels(means: Array, params: GateParams, dtype: jnp.dtype) -> AbstractMesh | None:
    """The devices for kernels of Triton; None if there are none, or the kernels do not fit them."""
    width = params["expand"][0].shape[0]
    if dtype == jnp.float64 or _padded(width) > _MAX_WIDTH:  # Triton has no float64 products
        return None
    return triton_mesh(means.shape[0])


def _gate_by_compiler(
    means: Array, params: GateParams, activation: Activation, dtype: jnp.dtype
) -> Array:
    means = means.astype(dtype)
    for name, function in (("reduce", activation), ("expand", lax.logistic)):
        kernel, bias = params[name]
        means = function(means @ kernel.astype(means.dtype) + bias.astype(means.dtype))
    return means


def gate_gradients(
    means: Array,
    params: GateParams,
    activation: Activation,
    grad: Array,
    *,
    pixels: int,
    dtype: jnp.dtype,
) -> tuple[Array, GateParams]:
    """Returns the gradients of `gate` for a pixel of the image, and for the parameters.

    Args:
      grad: the gradient for the result, float32 [batch, channels].
      pixels: the number of pixels of an image; the others are as for `gate`.

    Returns:
      The gradient for each pixel, [batch, channels]: that for the mean, divided by `pixels`. And
      the gradients for the parameters, with the structure of `params`.
    """
    mesh = _mesh_for_kernels(means, params, dtype)
    if mesh is not None:
        return gradients_by_kernel(
            means, params, activation, grad, pixels=pixels, dtype=dtype, mesh=mesh
        )
    _, pullback = jax.vjp(
        lambda means, params: _gate_by_compiler(means, params, activation, dtype), means, params
    )
    grad_means, grad_params = pullback(grad.astype(dtype))
    return grad_means / pixels, grad_params


def gate_by_kernel(
    means: Array,
    params: GateParams,
    activation: Activation,
    *,
    dtype: jnp.dtype,
    mesh: AbstractMesh,
    interpret: bool = False,
) -> Array:
    """Computes `gate` with a kernel of Triton on each device of a mesh.

    Args:
      mesh: the devices; the batch is divisible by their number.
      interpret: whether to compute step by step on a CPU, for tests; the others are as for `gate`.
    """

    def on_device(means: Array, *weights: Array) -> Array:
        return pl.pallas_call(
            functools.partial(_gate_kernel, activation=activation),
            grid=(pl.cdiv(len(means), _ROWS),),
            out_shape=jax.ShapeDtypeStruct(means.shape, dtype),
            compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
            interpret=interpret,
            name="gate",
        )(means, *weights)

    split, whole = batch_spec(mesh), PartitionSpec()
    return jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(split, whole, whole, whole, whole),
        out_specs=split,
        check_vma=False,
    )(means, *params["reduce"], *params["expand"])


def gradients_by_kernel(
    means: Array,
    params: GateParams,
    activation: Activation,
    grad: Array,
    *,
    pixels: int,
    dtype: jnp.dtype,
    mesh: AbstractMesh,
    interpret: bool = False,
) -> tuple[Array, GateParams]:
    """Computes `gate_gradients` with two kernels of Triton; arguments as for `gate_by_kernel`."""
    width, channels = params["expand"][0].shape
    options: dict[str, Any] = {
        "compiler_params": triton.CompilerParams(num_warps=4, num_stages=2),
        "interpret": interpret,
    }

    def on_device(means: Array, grad: Array, *weights: Array) -> tuple[Array, ...]:
        batch = len(means)
        hidden = jax.ShapeDtypeStruct((batch, width), dtype)
        wide = jax.ShapeDtypeStruct(means.shape, dtype)
        grad_means, *parts = pl.pallas_call(
            functools.partial(_means_gradient_kernel, activation=activation, pixels=pixels),
            grid=(pl.cdiv(batch, _ROWS),),
            out_shape=(jax.ShapeDtypeStruct(means.shape, means.dtype), wide, hidden, hidden),
            name="gate_gradient",
            **options,
        )(means, grad, *weights)
        sums = pl.pallas_call(
            _weights_gradient_kernel,
            grid=(pl.cdiv(channels, _COLUMNS),),
            out_shape=tuple(jax.ShapeDtypeStruct(of.shape, of.dtype) for of in weights),
            name="gate_weights_gradient",
            **options,
        )(means, *parts)
        return grad_means, *(of[None] for of in sums)

    split, whole = batch_spec(mesh), PartitionSpec()
    grad_means, *sums = jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(split, split, whole, whole, whole, whole),
        out_specs=(split,) * 5,
        check_vma=False,
    )(means, grad, *params["reduce"], *params["expand"])
    kernel, bias, last_kernel, last_bias = (jnp.sum(of, axis=0) for of in sums)
    return grad_means, {"reduce": (kernel, bias), "expand": (last_kernel, last_bias)}


def _gate_kernel(
    means: Any, kernel: Any, bias: Any, last_kernel: Any, last_bias: Any, gates: Any, *, activation
) -> None:
    """Computes the gates [batch, channels] of some examples."""
    (batch, channels), width = means.shape, bias.shape[0]
    rows = _Span(pl.program_id(0) * _ROWS, _ROWS, batch)
    hidden = _Span(0, _padded(width), width)
    inner = activation(_inner(means, kernel, bias, rows, hidden, gates.dtype)).astype(gates.dtype)

    def write(block: Array, _: None) -> None:
        columns = _Span(block * _COLUMNS, _COLUMNS, channels)
        outer = _outer(inner, last_kernel, last_bias, hidden, columns)
        _store(gates, lax.logistic(outer), rows, columns)

    lax.fori_loop(0, pl.cdiv(channels, _COLUMNS), write, None)


def _means_gradient_kernel(
    means: Any,
    grad: Any,
    kernel: Any,
    bias: Any,
    last_kernel: Any,
    last_bias: Any,
    grad_means: Any,
    grad_outer: Any,
    grad_inner: Any,
    inner: Any,
    *,
    activation: Activation,
    pixels: int,
) -> None:
    """Computes the gradients of some examples, and the inner activations, all [batch, …]."""
    (batch, channels), width, dtype = means.shape, bias.shape[0], inner.dtype
    rows = _Span(pl.program_id(0) * _ROWS, _ROWS, batch)
    hidden = _Span(0, _padded(width), width)
    blocks = pl.cdiv(channels, _COLUMNS)
    activated, pullback = jax.vjp(activation, _inner(means, kernel, bias, rows, hidden, dtype))
    activated = activated.astype(dtype)
    _store(inner, activated, rows, hidden)

    def through_gates(block: Array, total: Array) -> Array:
        columns = _Span(block * _COLUMNS, _COLUMNS, channels)
        gates = lax.logistic(_outer(activated, last_kernel, last_bias, hidden, columns))
        outer = _load(grad, rows, columns).astype(gates.dtype) * gates * (1 - gates)
        _store(grad_outer, outer, rows, columns)
        weights = _load(last_kernel, hidden, columns).astype(dtype)
        return total + _dot(outer.astype(dtype), weights, over=(1, 1))

    zeros = jnp.zeros((_ROWS, hidden.length), bias.dtype)
    (of_inner,) = pullback(lax.fori_loop(0, blocks, through_gates, zeros))
    of_inner = of_inner.astype(dtype)
    _store(grad_inner, of_inner, rows, hidden)

    def write(block: Array, _: None) -> None:
        columns = _Span(block * _COLUMNS, _COLUMNS, channels)
        weights = _load(kernel, columns, hidden).astype(dtype)
        _store(grad_means, _dot(of_inner, weights, over=(1, 1)) / pixels, rows, columns)

    lax.fori_loop(0, blocks, write, None)


def _weights_gradient_kernel(
    means: Any,
    grad_outer: Any,
    grad_inner: Any,
    inner: Any,
    grad_kernel: Any,
    grad_bias: Any,
    grad_last_kernel: Any,
    grad_last_bias: Any,
) -> None:
    """Sums the gradients of the weights of some channels over all examples."""
    (batch, channels), width, dtype = means.shape, inner.shape[1], grad_bias.dtype
    columns = _Span(pl.program_id(0) * _COLUMNS, _COLUMNS, channels)
    hidden = _Span(0, _padded(width), width)

    def add(step: Array, totals: tuple[Array, ...]) -> tuple[Array, ...]:
        rows = _Span(step * _ROWS, _ROWS, batch)
        outer, of_inner = _load(grad_outer, rows, columns), _load(grad_inner, rows, hidden)
        added = (
            _dot(_load(means, rows, columns).astype(inner.dtype), of_inner, over=(0, 0)),
            jnp.sum(of_inner.astype(dtype), axis=0),
            _dot(_load(inner, rows, hidden), outer, over=(0, 0)),
            jnp.sum(outer.astype(dtype), axis=0),
        )
        return tuple(total + more for total, more in zip(totals, added, strict=True))

    shapes = (
        (columns.length, hidden.length),
        (hidden.length,),
        (hidden.length, columns.length),
        (columns.length,),
    )
    zeros = tuple(jnp.zeros(shape, dtype) for shape in shapes)
    sums = lax.fori_loop(0, pl.cdiv(batch, _ROWS), add, zeros)
    _store(grad_kernel, sums[0], columns, hidden)
    _store(grad_bias, sums[1], hidden)  # each program writes the same
    _store(grad_last_kernel, sums[2], hidden, columns)
    _store(grad_last_bias, sums[3], columns)


def _inner(
    means: Any, kernel: Any, bias: Any, rows: "_Span", hidden: "_Span", dtype: jnp.dtype
) -> Array:
    """The input of the inner activation, [rows, hidden], of means and weights of a dtype."""
    channels = means.shape[1]

    def add(block: Array, total: Array) -> Array:
        columns = _Span(block * _COLUMNS, _COLUMNS, channels)
        weights = _load(kernel, columns, hidden).astype(dtype)
        return total + _dot(_load(means, rows, columns).astype(dtype), weights)

    zeros = jnp.zeros((rows.length, hidden.length), bias.dtype)
    total = lax.fori_loop(0, pl.cdiv(channels, _COLUMNS), add, zeros)
    return total + _load(bias, hidden)[None]


def _outer(inner: Array, kernel: Any, bias: Any, hidden: "_Span", columns: "_Span") -> Array:
    """The input of the logistic function, [rows, columns]."""
    weights = _load(kernel, hidden, columns).astype(inner.dtype)
    return _dot(inner, weights) + _load(bias, columns)[None]


class _Span:
    """A part of an axis: `length` places from `start`, of which those below `end` exist."""

    def __init__(self, start: Any, length: int, end: int):
        self.start, self.length, self.end = start, length, end

    @property
    def places(self) -> Any:
        return pl.ds(self.start, self.length)

    @property
    def exist(self) -> Array:
        return self.start + jnp.arange(self.length) < self.end


def _load(array: Any, *spans: _Span) -> Array:
    """Loads a part of an array, with zeros where it ends."""
    return triton.load(array.at[_places(spans)], mask=_mask(spans), other=0)


def _store(array: Any, values: Array, *spans: _Span) -> None:
    triton.store(array.at[_places(spans)], values.astype(array.dtype), mask=_mask(spans))


def _places(spans: tuple[_Span, ...]) -> tuple[Any, ...]:
    return tuple(span.places for span in spans)


def _mask(spans: tuple[_Span, ...]) -> Array:
    if len(spans) == 1:
        return spans[0].exist
    rows, columns = spans
    return rows.exist[:, None] & columns.exist[None]


def _dot(left: Array, right: Array, *, over: tuple[int, int] = (1, 0)) -> Array:
    """Sums products over an axis of each matrix in float32, of whose bits none is rounded off."""
    return lax.dot_general(
        left,
        right,
        (((over[0],), (over[1],)), ((), ())),
        precision=lax.Precision.HIGHEST if left.dtype == jnp.float32 else None,
        preferred_element_type=jnp.promote_types(left.dtype, jnp.float32),
    )


def _padded(width: int) -> int:
    """A width that a matrix unit takes."""
    return max(16, power_of_two(width))
