"""Sums over pixels of what is computed from each pixel: most of the work of batch normalisation.

Where several sums share what they add, XLA on NVIDIA GPUs writes it to memory first, in float32,
and needs two or more kernels for each sum. There, a kernel of Triton reads the images once and
keeps everything else in registers. Elsewhere XLA does as well by itself.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jax.sharding import AbstractMesh, PartitionSpec

from jaxcls.distributed.mesh import batch_spec, triton_mesh

type Terms = Callable[..., Sequence[Array]]

_TILE_ELEMENTS = 4096  # of an image that a program has in registers at once
_COLUMNS = 128  # channels of a tile: rows of 256 bytes in bfloat16
_MAX_ELEMENTS = 2**31  # of a device's images, because the kernel's offsets are int32
_PROGRAMS = 512  # programs of a kernel: about four for each multiprocessor of a large card


def group_sums(
    terms: Terms, images: Sequence[Array], vectors: Sequence[Array], *, groups: int
) -> tuple[Array, ...]:
    """Sums terms over the pixels of groups of consecutive examples.

    Args:
      terms: `terms(*images, *vectors)` computes the terms of each sum from elements of the images
        and vectors, as float32 (float64 for float64). It works on arrays that broadcast with each
        other.
      images: each [batch, height, width, channels].
      vectors: each [n, channels], or [n, 1] for all channels; n divides the batch, and a row
        belongs to batch / n consecutive examples.
      groups: the number of groups; divides the batch.

    Returns:
      The sums of each term, [groups, channels].
    """
    mesh = triton_mesh(images[0].shape[0])
    if mesh is not None and images[0].size // mesh.size < _MAX_ELEMENTS:
        return sum_by_kernel(terms, images, vectors, groups=groups, mesh=mesh)
    return sum_by_compiler(terms, images, vectors, groups=groups)


def sum_by_compiler(
    terms: Terms, images: Sequence[Array], vectors: Sequence[Array], *, groups: int
) -> tuple[Array, ...]:
    """Computes `group_sums` with operations of XLA.

    Each example is summed first, because the CPU's compiler splits that over threads.
    """
    (batch, *_, channels), dtype = images[0].shape, _dtype(images[0])
    rows = [for_each_example(vector, batch) for vector in vectors]
    computed = terms(*(image.astype(dtype) for image in images), *rows)
    sums = [jnp.sum(term, axis=(1, 2)) for term in computed]
    return tuple(jnp.sum(of.reshape(groups, -1, channels), axis=1) for of in sums)


def sum_by_kernel(
    terms: Terms,
    images: Sequence[Array],
    vectors: Sequence[Array],
    *,
    groups: int,
    mesh: AbstractMesh,
    interpret: bool = False,
) -> tuple[Array, ...]:
    """Computes `group_sums` with a kernel of Triton on each device of a mesh.

    The examples are split over all devices. Each program of a kernel sums a unit for some of the
    channels. A unit is a number of consecutive examples that share a device, a group and the rows
    of all vectors, or a piece of one example where there are too few examples to keep a GPU busy. A
    second kernel adds the units of a device that belong to the same group.

    Args:
      mesh: the devices; the batch is divisible by their number.
      interpret: whether to compute step by step on a CPU, for tests; the others are as for
        `group_sums`.
    """
    (batch, *_, channels) = images[0].shape
    columns = min(_COLUMNS, power_of_two(channels))
    examples, units_wanted = batch // mesh.size, pl.cdiv(_PROGRAMS, pl.cdiv(channels, columns))
    vectors = [_divisible(vector, mesh.size) for vector in vectors]
    rows = [batch // len(vector) for vector in vectors if len(vector) > 1]
    sizes = _divisors(math.gcd(examples, batch // groups, *rows))
    unit = max(size for size in sizes if size <= max(1, examples // units_wanted))
    units = examples // unit  # of a device
    pieces = max(1, units_wanted // examples) if unit == 1 else 1
    units_of_group = math.gcd(units, batch // groups // unit)  # on a device
    num_terms = len(
        jax.eval_shape(terms, *(jnp.zeros((), _dtype(of)) for of in [*images, *vectors]))
    )

    def on_device(*operands: Array) -> list[Array]:
        arrays = [of.reshape(units, -1, channels) for of in operands[: len(images)]]
        vectors = operands[len(images) :]
        sums = _sum_rows(terms, arrays, vectors, num_terms, pieces=pieces, interpret=interpret)
        if units_of_group * pieces > 1:
            runs = [of.reshape(units // units_of_group, -1, channels) for of in sums]
            sums = _sum_rows(lambda *tiles: tiles, runs, (), num_terms, interpret=interpret)
        return [of[:, 0] for of in sums]

    split, whole = batch_spec(mesh), PartitionSpec()
    sums = jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(*(split for _ in images), *(split if len(v) > 1 else whole for v in vectors)),
        out_specs=split,
        check_vma=False,
    )(*images, *vectors)
    whole_groups = (of.reshape(groups, -1, channels) for of in sums)  # groups may span devices
    return tuple(of[:, 0] if of.shape[1] == 1 else jnp.sum(of, axis=1) for of in whole_groups)


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _sum_rows(
    terms: Terms,
    arrays: Sequence[Array],
    vectors: Sequence[Array],
    num_terms: int,
    *,
    pieces: int = 1,
    interpret: bool,
) -> Sequence[Array]:
    """Sums terms of arrays [units, rows, channels] over the rows of each piece of a unit.

    Returns:
      The sums of each term, [units, pieces, channels].
    """
    units, _, channels = arrays[0].shape
    columns = min(_COLUMNS, power_of_two(channels))
    kernel = functools.partial(
        _kernel,
        terms=terms,
        num_images=len(arrays),
        num_terms=num_terms,
        columns=columns,
        pieces=pieces,
    )
    return pl.pallas_call(
        kernel,
        grid=(units, pieces, pl.cdiv(channels, columns)),
        out_shape=[jax.ShapeDtypeStruct((units, pieces, channels), _dtype(arrays[0]))] * num_terms,
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
        name="channel_sums",
    )(*arrays, *vectors)


def _kernel(
    *refs: Any, terms: Terms, num_images: int, num_terms: int, columns: int, pieces: int
) -> None:
    """Sums a piece of a unit of examples for some channels.

    Args:
      refs: the images, each [units, rows, channels]; the vectors, each [n, channels]; and the sums
        of each term, each [units, pieces, channels].
      terms: as for `group_sums`.
      num_images: the number of images.
      num_terms: the number of terms.
      columns: the channels of a tile.
      pieces: the number of pieces that a unit is cut into.
    """
    images, vectors, sums = refs[:num_images], refs[num_images:-num_terms], refs[-num_terms:]
    units, rows, channels = images[0].shape
    unit, piece, block = (pl.program_id(axis) for axis in range(3))
    height, start, dtype = _TILE_ELEMENTS // columns, block * columns, sums[0].dtype
    inside = start + jnp.arange(columns) < channels

    def row_of(vector: Any) -> Array:
        row = unit * vector.shape[0] // units
        if vector.shape[1] == 1:
            return triton.load(vector.at[row, pl.ds(0, 1)])[None]
        return triton.load(vector.at[row, pl.ds(start, columns)], mask=inside, other=0)[None]

    of_unit = [row_of(vector).astype(dtype) for vector in vectors]
    first = piece * pl.cdiv(rows, pieces)
    last = jnp.minimum(first + pl.cdiv(rows, pieces), rows)

    def add(step: Array, totals: tuple[Array, ...]) -> tuple[Array, ...]:
        row = first + step * height
        mask = (row + jnp.arange(height) < last)[:, None] & inside[None]
        tiles = [
            triton.load(
                of.at[unit, pl.ds(row, height), pl.ds(start, columns)], mask=mask, other=0
            ).astype(dtype)
            for of in images
        ]
        added = terms(*tiles, *of_unit)
        return tuple(
            total + jnp.where(mask, term, 0) for total, term in zip(totals, added, strict=True)
        )

    steps = pl.cdiv(pl.cdiv(rows, pieces), height)
    zeros = (jnp.zeros((height, columns), dtype),) * num_terms
    totals = jax.lax.fori_loop(0, steps, add, zeros)
    for total, of in zip(totals, sums, strict=True):
        where = of.at[unit, piece, pl.ds(start, columns)]
        triton.store(where, jnp.sum(total, axis=0), mask=inside)


def for_each_example(vector: Array, batch: int) -> Array:
    """Repeats the rows of a vector [n, channels] for consecutive examples.

    Returns:
      [batch, 1, 1, channels], or [1, 1, 1, channels] if there is one row.
    """
    rows = vector if len(vector) == 1 else jnp.repeat(vector, batch // len(vector), axis=0)
    return rows[:, None, None]


def _divisible(vector: Array, devices: int) -> Array:
    """Repeats the rows of a vector, so that each device has as many; but one row is for all."""
    if len(vector) == 1:
        return vector
    return jnp.repeat(vector, math.lcm(len(vector), devices) // len(vector), axis=0)


def _dtype(array: Array) -> jnp.dtype:
    return jnp.promote_types(array.dtype, jnp.float32)


def power_of_two(number: int) -> int:
    """The smallest power of two that is at least `number`."""
    return 1 << (number - 1).bit_length()
