"""An optimizer's update of all parameters in a few kernels, for GPUs.

XLA starts a kernel for each array, which for hundreds of small arrays takes longer than their work.
An optimizer that treats each element by itself gives the same result if it is called with a piece
of one array, as if that were the only parameter. So a kernel of Triton calls it, and updates in
place.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jax.sharding import Mesh, PartitionSpec

from jaxcls.models.interface import PyTree
from jaxcls.training.block_program import BlockProgram, shape_of
from jaxcls.training.ema import update_ema
from jaxcls.training.skipping import optimizer_unless_skipped, unless_skipped

_BLOCK = 1024  # elements of a block, which an instance of the kernel updates
_MAX_ARRAYS = 256  # of a kernel; their addresses must fit into its arguments, which take 4 kB
# What the update of a block may consist of: operations that Triton knows, by which each element of
# a result depends on the same elements only.
_ELEMENTWISE = frozenset(
    (
        *("abs", "add", "add_any", "and", "broadcast_in_dim", "clamp", "convert_element_type"),
        *("div", "eq", "exp", "floor", "ge", "gt", "integer_pow", "le", "log", "lt", "max"),
        *("min", "mul", "ne", "neg", "not", "or", "pow", "rsqrt", "select_n", "sign", "sqrt"),
        *("square", "sub", "tanh"),
    )
)

type Update = Callable[..., tuple[PyTree, PyTree, PyTree]]
type Shape = tuple[int, ...]


def update_each(optimizer: optax.GradientTransformation, decay: float) -> Update:
    """Makes the update of one array after another; arguments and results as of `FusedUpdate`."""

    def update(
        grads: PyTree,
        state: PyTree,
        params: PyTree,
        averages: PyTree,
        *,
        step: Array,
        skipped: Array | None = None,
    ) -> tuple[PyTree, PyTree, PyTree]:
        updates, new_state = optimizer.update(grads, state, params)
        new_params: PyTree = optax.apply_updates(params, updates)
        new_averages = averages
        if averages is not None:
            new_averages = update_ema(averages, new_params, step=step, decay=decay)
        return (
            unless_skipped(new_params, params, skipped=skipped),
            optimizer_unless_skipped(new_state, state, skipped=skipped),
            unless_skipped(new_averages, averages, skipped=skipped),
        )

    return update


@dataclasses.dataclass(frozen=True)
class FusedUpdate:
    """Updates parameters, the optimizer's state and moving averages, all of which are float32.

    Attributes:
      optimizer: the optimizer.
      decay: the decay of the moving averages of the parameters; 0 for none.
      mesh: the devices, each of which has all arrays.
      interpret: whether to compute step by step on a CPU, for tests.
    """

    optimizer: optax.GradientTransformation
    decay: float
    mesh: Mesh
    interpret: bool = False

    def fits(self, params: PyTree) -> bool:
        """Whether the optimizer treats each element of such parameters by itself, in float32."""
        state = jax.eval_shape(self.optimizer.init, params)
        layout = _StateStructure.of(state, params)
        slots, scalars = layout.split(state)
        if any(leaf.ndim for leaf in scalars):  # arrays that are not like the parameters
            return False
        float32 = [
            jax.ShapeDtypeStruct(leaf.shape, jnp.float32) for leaf in jax.tree.leaves(params)
        ]
        if any([*map(shape_of, jax.tree.leaves(tree))] != float32 for tree in (params, *slots)):
            return False
        count = jax.ShapeDtypeStruct((), jnp.int32)
        programs = self._programs(layout, scalars, {"step": count, "skipped": count})
        return all(program.consists_of(_ELEMENTWISE) for program in programs.values())

    def _programs(
        self, layout: "_StateStructure", scalars: Sequence[Any], counts: Mapping[str, Any]
    ) -> dict[Shape, BlockProgram]:
        """Traces the update of a block for each shape that blocks have (`_block_shape`).

        Its scalars are those of the optimizer's state, and the counts "step" and maybe "skipped".
        """
        update_one = update_each(self.optimizer, self.decay)
        blocks_from = len(scalars) + len(counts)

        def update(*values: Array) -> tuple[list[Any], list[Any]]:
            named = dict(zip(counts, values[len(scalars) : blocks_from], strict=True))
            grad, param, *slots = values[blocks_from:]
            average = slots.pop() if self.decay else None
            state = layout.join(slots, values[: len(scalars)])
            new, state, average = update_one(grad, state, param, average, **named)
            new_slots, new_scalars = layout.split(state)
            return [new, *new_slots, *([average] if self.decay else [])], new_scalars

        given = [*scalars, *counts.values()]
        count = 2 + sum(layout.is_slot) + (self.decay > 0)
        return {
            shape: BlockProgram.trace(
                update, given, [jax.ShapeDtypeStruct(shape, jnp.float32)] * count
            )
            for shape in map(_block_shape, (1, 2))
        }

    def __call__(
        self,
        grads: PyTree,
        state: PyTree,
        params: PyTree,
        averages: PyTree,
        *,
        step: Array,
        skipped: Array | None = None,
    ) -> tuple[PyTree, PyTree, PyTree]:
        """Returns the new parameters, state and averages (None without).

        Args:
          grads: the gradients.
          state: the state of the optimizer.
          params: the parameters.
          averages: their moving averages; None without.
          step: the number of steps taken so far.
          skipped: if not 0, the step is skipped, and all but the counts of schedules stays as it is
            (`count_skipped`); None if no step is ever skipped.
        """
        layout = _StateStructure.of(state, params)
        slots, scalars = layout.split(state)
        trees = [grads, params, *slots] + ([averages] if self.decay else [])
        rows = list(zip(*map(jax.tree.leaves, trees), strict=True))
        counts = {"step": step} if skipped is None else {"step": step, "skipped": skipped}
        programs = self._programs(layout, scalars, counts)
        used, new_scalars = {}, []
        for shape, program in programs.items():
            used[shape], new_scalars = program.scalars_from([*scalars, *counts.values()])
        results: list[Sequence[Array]] = []
        # A kernel reads an array of each tree, and writes all but the gradients.
        for some in itertools.batched(rows, _MAX_ARRAYS // (2 * len(trees) - 1)):
            results += self._update_arrays(some, programs, used)
        structure = jax.tree.structure(params)
        new_params, *others = (structure.unflatten(of) for of in zip(*results, strict=True))
        new_state = layout.join(others[: len(slots)], new_scalars)
        return new_params, new_state, others[-1] if self.decay else None

    def _update_arrays(
        self,
        rows: Sequence[Sequence[Array]],
        programs: Mapping[Shape, BlockProgram],
        used: Mapping[Shape, Sequence[Array]],
    ) -> list[Sequence[Array]]:
        """Updates some arrays with one kernel.

        Args:
          rows: for each parameter: its gradient, itself, its part of the state, its average.
          programs: the update of a block, for each shape of blocks.
          used: the scalars that it uses.

        Returns:
          For each parameter: itself, its part of the state, its average.
        """
        arrays, width = [array for row in rows for array in row], len(rows[0])
        updated = [index for index in range(len(arrays)) if index % width]  # no gradients
        scalars = [scalar[None] for each in used.values() for scalar in each]
        blocks = [pl.cdiv(row[0].size, _BLOCK) for row in rows]
        ends = list(itertools.accumulate(blocks))

        def kernel(*refs: Any) -> None:
            block = pl.program_id(0)  # counted over all arrays
            values = iter([ref[0] for ref in refs[: len(scalars)]])
            known = {shape: [next(values) for _ in each] for shape, each in used.items()}
            inputs = refs[len(scalars) : len(scalars) + len(arrays)]
            outputs = refs[len(scalars) + len(arrays) :]
            for number, row in enumerate(rows):
                start, shape = ends[number] - blocks[number], _block_shape(row[0].ndim)
                body = functools.partial(
                    _update_block,
                    lambda tiles, shape=shape: programs[shape].blocks_from(tiles, known[shape]),
                    inputs[number * width : (number + 1) * width],
                    outputs[number * (width - 1) : (number + 1) * (width - 1)],
                    block=block - start,
                    shape=shape,
                )
                pl.when((block >= start) & (block < ends[number]))(body)

        def on_device(*operands: Array) -> list[Array]:
            flat = [operand.ravel() for operand in operands]
            return pl.pallas_call(
                kernel,
                grid=(ends[-1],),
                out_shape=[
                    jax.ShapeDtypeStruct((arrays[index].size,), arrays[index].dtype)
                    for index in updated
                ],
                input_output_aliases={
                    len(scalars) + index: output for output, index in enumerate(updated)
                },
                compiler_params=triton.CompilerParams(num_warps=4, num_stages=1),
                interpret=self.interpret,
                name="update",
            )(*flat)

        whole = PartitionSpec()
        results = jax.shard_map(
            on_device, mesh=self.mesh, in_specs=whole, out_specs=whole, check_vma=False
        )(*scalars, *arrays)
        shaped = [
            result.reshape(arrays[index].shape)
            for result, index in zip(results, updated, strict=True)
        ]
        return list(itertools.batched(shaped, width - 1))


def _block_shape(ndim: int) -> Shape:
    """The shape of the blocks of a parameter: one axis, or two for a parameter with more.

    Optimizers look at the number of axes, because weight decay leaves out parameters with one.
    """
    return (_BLOCK,) if ndim < 2 else (1, _BLOCK)


def _update_block(
    update: Callable[[list[Array]], list[Array]],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    *,
    block: Array,
    shape: tuple[int, ...],
) -> None:
    """Updates a block of one parameter, in a kernel."""
    places = pl.ds(block * _BLOCK, _BLOCK)
    mask = block * _BLOCK + jnp.arange(_BLOCK) < inputs[0].shape[0]
    tiles = [triton.load(ref.at[places], mask=mask, other=0).reshape(shape) for ref in inputs]
    for ref, value in zip(outputs, update(tiles), strict=True):
        triton.store(ref.at[places], value.reshape(_BLOCK).astype(ref.dtype), mask=mask)


@dataclasses.dataclass(frozen=True)
class _StateStructure:
    """Where the state of an optimizer has trees like the parameters ("slots"), and scalars."""

    structure: Any
    is_slot: tuple[bool, ...]

    @classmethod
    def of(cls, state: PyTree, params: PyTree) -> "_StateStructure":
        like = jax.tree.structure(params)

        def is_slot(node: Any) -> bool:
            return jax.tree.structure(node) == like

        nodes, structure = jax.tree.flatten(state, is_leaf=is_slot)
        return cls(structure, tuple(map(is_slot, nodes)))

    def split(self, state: PyTree) -> tuple[list[Any], list[Any]]:
        """Returns the slots and the scalars."""
        nodes = self.structure.flatten_up_to(state)
        parts = list(zip(nodes, self.is_slot, strict=True))
        return [node for node, slot in parts if slot], [node for node, slot in parts if not slot]

    def join(self, slots: Sequence[Any], scalars: Sequence[Any]) -> PyTree:
        each_slot, each_scalar = iter(slots), iter(scalars)
        return self.structure.unflatten(
            next(each_slot if is_slot else each_scalar) for is_slot in self.is_slot
        )
