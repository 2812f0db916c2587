"""Depthwise convolution by kernels of Triton, to compare with the forms in jaxcls.models.depthwise.

A program computes a block of pixels of the result in each of several places, for some channels. It
loads each pixel that a block needs once, and 0 outside of the image, so no padded copy is written
to memory. The gradient for the image is computed in the same way from that for the result.
"""

import functools
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from jaxcls.models.channel_sums import power_of_two
from jaxcls.models.padding import Padding, explicit_padding

_ROWS = 4  # rows of a block
_COLUMNS = 64  # channels of a tile: 128 bytes in bfloat16
_TILE = 1024  # elements of a tile: a thread has 8, which in bfloat16 are one load of 16 bytes
_TILE_OF_SUMS = 512  # the same for the kernel's gradient, whose programs keep up to 25 tiles
_PROGRAMS = 1024  # programs of the kernel's gradient: about eight for each multiprocessor
_MAX_SIZE = 2**31  # elements of an image, because offsets are int32
_PARAMS = triton.CompilerParams(num_warps=4, num_stages=1)


def by_kernel(
    x: Array, kernel: Array, *, stride: int, padding: Padding = "same", interpret: bool = False
) -> Array:
    """Computes `depthwise_conv`.

    Args:
      interpret: whether to compute step by step on a CPU, for tests; the others are as for
        `depthwise_conv`.
    """
    return _convolve(x, kernel, _axes(x, kernel, stride, padding), interpret)


def gradients_by_kernel(
    x: Array,
    kernel: Array,
    grad: Array,
    *,
    stride: int,
    padding: Padding = "same",
    interpret: bool = False,
) -> tuple[Array, Array]:
    """Returns the gradients of `by_kernel` for x and kernel, given the gradient for its result."""
    forward, backward = (_axes(x, kernel, stride, padding, backward=of) for of in (False, True))
    return (
        _convolve(grad, kernel, backward, interpret),
        _kernel_gradient(x, kernel, grad, forward, interpret),
    )


class _Axis(NamedTuple):
    """One axis of a convolution, or of its gradient for the image.

    Attributes:
      size: the pixels of the result.
      block: the pixels of a block of the result.
      step: the pixels of the source from the start of one block to that of the next.
      terms: the pixels of the source that a block needs, counted from the block's start. To each
        belong the pixels of the block that it is added to, with the tap it is multiplied by.
    """

    size: int
    block: int
    step: int
    terms: Mapping[int, Sequence[tuple[int, int]]]


def _axes(
    x: Array, kernel: Array, stride: int, padding: Padding, *, backward: bool = False
) -> list[_Axis]:
    assert x.size < _MAX_SIZE
    axes = []
    for size, taps, block in zip(x.shape[1:3], kernel.shape[:2], (_ROWS, 1), strict=True):
        before, _ = explicit_padding(size, kernel_size=taps, stride=stride, padding=padding)
        block = math.lcm(block, stride) if backward else block
        terms = defaultdict(list)
        for pixel, tap in product(range(block), range(taps)):
            at, rest = pixel * stride + tap - before, 0
            if backward:
                at, rest = divmod(pixel + before - tap, stride)
            if rest == 0:
                terms[at].append((pixel, tap))
        result, step = (size, block // stride) if backward else (-(-size // stride), block * stride)
        axes.append(_Axis(result, block, step, terms))
    return axes


def _convolve(source: Array, kernel: Array, axes: Sequence[_Axis], interpret: bool) -> Array:
    (batch, *_, channels), (rows, cols) = source.shape, axes
    columns = min(_COLUMNS, power_of_two(channels))
    places = _TILE // columns
    return pl.pallas_call(
        functools.partial(_convolve_unit, axes=axes, places=places, columns=columns),
        grid=(pl.cdiv(channels, columns), _units(batch, axes, places)),
        out_shape=jax.ShapeDtypeStruct((batch, rows.size, cols.size, channels), source.dtype),
        compiler_params=_PARAMS,
        interpret=interpret,
        name="depthwise",
    )(source, kernel[:, :, 0])


def _convolve_unit(
    source: Any, kernel: Any, result: Any, *, axes: Sequence[_Axis], places: int, columns: int
) -> None:
    channel = _channels(columns)
    place = *_place(pl.program_id(1), axes, places), channel
    dtype = jnp.promote_types(source.dtype, jnp.float32)
    zeros = jnp.zeros((places, columns), dtype)
    weight = functools.cache(lambda i, j: _load(kernel, i, j, channel).astype(dtype))
    sums = dict.fromkeys(product(range(axes[0].block), range(axes[1].block)), zeros)
    for tile, pixel, tap in _terms(source, axes, place, dtype):
        sums[pixel] += tile * weight(*tap)
    for pixel, total in sums.items():
        at = _pixel(axes, place, *pixel)
        triton.store(result.at[at], total.astype(result.dtype), mask=_inside(result, *at))


def _kernel_gradient(
    x: Array, kernel: Array, grad: Array, axes: Sequence[_Axis], interpret: bool
) -> Array:
    """Sums image times gradient for each tap, in each program for a piece of the batch."""
    batch, channels, taps = x.shape[0], x.shape[-1], kernel.shape[:2]
    columns = min(_COLUMNS, power_of_two(channels))
    places, blocks = _TILE_OF_SUMS // columns, pl.cdiv(channels, columns)
    units = _units(batch, axes, places)
    steps = pl.cdiv(units, max(1, _PROGRAMS // blocks))
    shape, dtype = (pl.cdiv(units, steps), *taps, channels), jnp.promote_types(x.dtype, jnp.float32)
    sums = pl.pallas_call(
        functools.partial(_sum_units, axes=axes, places=places, columns=columns, steps=steps),
        grid=(blocks, shape[0]),
        out_shape=jax.ShapeDtypeStruct(shape, dtype),
        compiler_params=_PARAMS,
        interpret=interpret,
        name="depthwise_kernel_gradient",
    )(x, grad)
    return jnp.sum(sums, axis=0).reshape(kernel.shape).astype(kernel.dtype)


def _sum_units(
    x: Any, grad: Any, sums: Any, *, axes: Sequence[_Axis], places: int, columns: int, steps: int
) -> None:
    piece, channel, dtype = pl.program_id(1), _channels(columns), sums.dtype
    taps = list(product(*map(range, sums.shape[1:3])))

    def add(step: Array, totals: dict[tuple[int, int], Array]) -> dict[tuple[int, int], Array]:
        place = *_place(piece * steps + step, axes, places), channel
        of_pixel = functools.cache(
            lambda r, c: _load(grad, *_pixel(axes, place, r, c)).astype(dtype)
        )
        for tile, pixel, tap in _terms(x, axes, place, dtype):
            totals[tap] += tile * of_pixel(*pixel)
        return totals

    zeros = dict.fromkeys(taps, jnp.zeros((places, columns), dtype))
    for tap, total in jax.lax.fori_loop(0, steps, add, zeros).items():
        at = piece, *tap, channel[0]
        triton.store(sums.at[at], jnp.sum(total, axis=0), mask=_inside(sums, *at))


def _units(batch: int, axes: Sequence[_Axis], places: int) -> int:
    """The number of units: the same block of rows in several places, image after image."""
    rows, cols = axes
    return pl.cdiv(batch * pl.cdiv(cols.size, cols.block), places) * pl.cdiv(rows.size, rows.block)


def _channels(columns: int) -> Array:
    """Returns the channels of a program, [1, columns]."""
    return pl.program_id(0) * columns + jnp.arange(columns)[None]


def _place(unit: Array, axes: Sequence[_Axis], places: int) -> tuple[Array, ...]:
    """Returns a unit's images [places, 1], block of rows, and blocks of columns [places, 1]."""
    blocks, blocks_of_cols = (pl.cdiv(axis.size, axis.block) for axis in axes)
    place = unit // blocks * places + jnp.arange(places)[:, None]
    return place // blocks_of_cols, unit % blocks, place % blocks_of_cols


def _pixel(axes: Sequence[_Axis], place: Sequence[Array], r: int, c: int) -> tuple[Array, ...]:
    """Returns where pixel [r, c] of a unit's blocks is in the result."""
    (rows, cols), (image, row, col, channels) = axes, place
    return image, row * rows.block + r, col * cols.block + c, channels


def _terms(
    source: Any, axes: Sequence[_Axis], place: Sequence[Array], dtype: jnp.dtype
) -> Iterator[tuple[Array, tuple[int, int], tuple[int, int]]]:
    """Yields a tile of the source, a pixel of the block that it is added to, and its tap."""
    (rows, cols), (image, row, col, channels) = axes, place
    for (c, of_cols), (r, of_rows) in product(cols.terms.items(), rows.terms.items()):
        tile = _load(source, image, row * rows.step + r, col * cols.step + c, channels)
        tile = tile.astype(dtype)
        for (row_of_block, i), (col_of_block, j) in product(of_rows, of_cols):
            yield tile, (row_of_block, col_of_block), (i, j)


def _load(array: Any, *at: Any) -> Array:
    """Loads elements, or 0 outside of the array."""
    return triton.load(array.at[at], mask=_inside(array, *at), other=0)


def _inside(array: Any, *at: Any) -> Array:
    tests = [(of >= 0) & (of < size) for of, size in zip(at, array.shape, strict=True)]
    return functools.reduce(jnp.logical_and, tests)
