"""An optimizer's update of all parameters in a few kernels, for GPUs.

XLA starts a kernel for each array, which for hundreds of small arrays takes longer than their work.
An optimizer that treats each element by itself gives the same result if it is called with a piece
of one array, as if that were the only parameter. So a kernel of Triton calls it, and updates in
place.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jax.sharding import Mesh, PartitionSpec

from jaxcls.models.interface import PyTree
from jaxcls.training.block_program import BlockProgram
from jaxcls.training.ema import update_ema

_BLOCK = 1024  # elements of a program
_MAX_ARRAYS = 256  # of a kernel; their addresses must fit into 4 kB
# What the update of a block may consist of: operations that Triton knows, by which each element of
# a result depends on the same elements only.
_ELEMENTWISE = {
    *("abs", "add", "add_any", "and", "broadcast_in_dim", "clamp", "convert_element_type", "div"),
    *(
        "eq",
        "exp",
        "floor",
        "ge",
        "gt",
        "integer_pow",
        "le",
        "log",
        "lt",
        "max",
        "min",
        "mul",
        "ne",
    ),
    *("neg", "not", "or", "pow", "rsqrt", "select_n", "sign", "sqrt", "square", "sub", "tanh"),
}

Update = Callable[..., tuple[PyTree, PyTree, PyTree]]


def update_each(optimizer: optax.GradientTransformation, decay: float) -> Update:
    """Makes the update of one array after another; arguments and results as of `FusedUpdate`."""

    def update(
        grads: PyTree, state: PyTree, params: PyTree, averages: PyTree, *, step: Array
    ) -> tuple[PyTree, PyTree, PyTree]:
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        if averages is not None:
            averages = update_ema(averages, params, step=step, decay=decay)
        return params, state, averages

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
        layout = _Layout.of(state, params)
        slots, scalars = layout.split(state)
        if any(leaf.ndim for leaf in scalars):  # arrays that are not like the parameters
            return False
        if any(leaf.dtype != jnp.float32 for leaf in jax.tree.leaves((params, slots))):
            return False
        programs = self._programs(layout, scalars)
        return all(program.operations() <= _ELEMENTWISE for program in programs)

    def _programs(self, layout: "_Layout", scalars: Sequence[Any]) -> tuple[BlockProgram, ...]:
        """Traces the update of a block of a vector, and of a block of a kernel.

        A block of a kernel has two axes, because weight decay leaves out arrays with one.
        """

        def update(*values: Array) -> list[Any]:
            scalars, (step, grad, param, *rest) = values[:num_scalars], values[num_scalars:]
            average = rest.pop() if self.decay else None
            updates, state = self.optimizer.update(grad, layout.join(rest, scalars), param)
            new: Any = optax.apply_updates(param, updates)
            slots = layout.split(state)[0]
            if average is None:
                return [new, *slots]
            of_leaf: Any = average  # which is a tree, too
            return [new, *slots, update_ema(of_leaf, new, step=step, decay=self.decay)]

        num_scalars = len(scalars)
        numbers = [*scalars, jax.ShapeDtypeStruct((), jnp.int32)]
        count = 2 + sum(layout.is_slot) + (self.decay > 0)
        return tuple(
            BlockProgram.trace(update, numbers, [jax.ShapeDtypeStruct(shape, jnp.float32)] * count)
            for shape in ((_BLOCK,), (1, _BLOCK))
        )

    def __call__(
        self, grads: PyTree, state: PyTree, params: PyTree, averages: PyTree, *, step: Array
    ) -> tuple[PyTree, PyTree, PyTree]:
        """Returns the new parameters, state and averages (None without).

        Args:
          grads: the gradients.
          state: the state of the optimizer.
          params: the parameters.
          averages: their moving averages; None without.
          step: the number of steps taken so far.
        """
        layout = _Layout.of(state, params)
        slots, scalars = layout.split(state)
        trees = [grads, params, *slots] + ([averages] if self.decay else [])
        rows = list(zip(*map(jax.tree.leaves, trees), strict=True))
        programs = self._programs(layout, scalars)
        numbers = [program.derived_numbers([*scalars, step]) for program in programs]
        results: list[Sequence[Array]] = []
        for some in itertools.batched(rows, _MAX_ARRAYS // (2 * len(trees) - 1)):
            results += self._update_arrays(some, programs, numbers)
        structure = jax.tree.structure(params)
        new_params, *others = (structure.unflatten(of) for of in zip(*results, strict=True))
        # The state's scalars, such as the count of steps, do not depend on the parameters.
        one = jnp.zeros((1,))
        _, counted = self.optimizer.update(one, layout.join([one] * len(slots), scalars), one)
        new_state = layout.join(others[: len(slots)], layout.split(counted)[1])
        return new_params, new_state, others[-1] if self.decay else None

    def _update_arrays(
        self,
        rows: Sequence[Sequence[Array]],
        programs: Sequence[BlockProgram],
        numbers: Sequence[Sequence[Array]],
    ) -> list[Sequence[Array]]:
        """Updates some arrays with one kernel.

        Args:
          rows: for each parameter: its gradient, itself, its part of the state, its average.
          programs: of the blocks of vectors, and of kernels.
          numbers: the numbers that they use.

        Returns:
          For each parameter: itself, its part of the state, its average.
        """
        arrays, width = [array for row in rows for array in row], len(rows[0])
        updated = [place for place in range(len(arrays)) if place % width]  # no gradients
        flat_numbers = [number[None] for of in numbers for number in of]
        blocks = [pl.cdiv(row[0].size, _BLOCK) for row in rows]
        ends = list(itertools.accumulate(blocks))

        def kernel(*refs: Any) -> None:
            program = pl.program_id(0)
            known = iter([ref[0] for ref in refs[: len(flat_numbers)]])
            derived = [[next(known) for _ in of] for of in numbers]
            inputs = refs[len(flat_numbers) : len(flat_numbers) + len(arrays)]
            outputs = refs[len(flat_numbers) + len(arrays) :]
            for place, row in enumerate(rows):
                start, kind = ends[place] - blocks[place], int(row[0].ndim > 1)
                body = functools.partial(
                    _update_block,
                    lambda tiles, kind=kind: programs[kind].apply(tiles, derived[kind]),
                    inputs[place * width : (place + 1) * width],
                    outputs[place * (width - 1) : (place + 1) * (width - 1)],
                    block=program - start,
                    shape=(1, _BLOCK) if kind else (_BLOCK,),
                )
                pl.when((program >= start) & (program < ends[place]))(body)

        def on_device(*operands: Array) -> list[Array]:
            flat = [operand.ravel() for operand in operands]
            return pl.pallas_call(
                kernel,
                grid=(ends[-1],),
                out_shape=[
                    jax.ShapeDtypeStruct((arrays[n].size,), arrays[n].dtype) for n in updated
                ],
                input_output_aliases={
                    len(flat_numbers) + number: place for place, number in enumerate(updated)
                },
                compiler_params=triton.CompilerParams(num_warps=4, num_stages=1),
                interpret=self.interpret,
                name="update",
            )(*flat)

        whole = PartitionSpec()
        results = jax.shard_map(
            on_device, mesh=self.mesh, in_specs=whole, out_specs=whole, check_vma=False
        )(*flat_numbers, *arrays)
        shaped = [of.reshape(arrays[n].shape) for of, n in zip(results, updated, strict=True)]
        return list(itertools.batched(shaped, width - 1))


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
class _Layout:
    """Where the state of an optimizer has trees like the parameters ("slots"), and scalars."""

    structure: Any
    is_slot: tuple[bool, ...]

    @classmethod
    def of(cls, state: PyTree, params: PyTree) -> "_Layout":
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
        rest = iter(slots), iter(scalars)
        return self.structure.unflatten(next(rest[not slot]) for slot in self.is_slot)
