"""Splits a traced function of scalars and blocks: what depends on scalars only, and the rest.

The first part is computed once, outside of a kernel, where every operation is allowed. The second
is computed in the kernel for each block. Both follow the equations of the traced function (its
jaxpr) one by one.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import Array
from jax.extend.core import Literal

# Operations that only call a function, and the name of the parameter that holds it.
_CALLS = {
    "jit": "jaxpr",
    "closed_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}


@dataclasses.dataclass(frozen=True)
class _Scalar:
    """A value that depends on no block; in a kernel, its value is unknown."""

    value: Any = None
    is_literal: bool = False


@dataclasses.dataclass(frozen=True)
class BlockProgram:
    """A traced function `(*scalars, *blocks) -> (*blocks, *scalars)`, all blocks of one shape.

    Attributes:
      closed: the function, as JAX traced it.
      num_scalars: the number of its arguments that are scalars.
      num_new_blocks: the number of its results that are blocks.
    """

    closed: Any
    num_scalars: int
    num_new_blocks: int

    @classmethod
    def trace(
        cls,
        function: Callable[..., tuple[Sequence[Any], Sequence[Any]]],
        scalars: Sequence[Any],
        blocks: Sequence[Any],
    ) -> "BlockProgram":
        """Traces a function for arguments, or for their shapes and dtypes.

        Args:
          function: `(*scalars, *blocks) -> (new_blocks, new_scalars)`.
          scalars: its first arguments.
          blocks: its other arguments.
        """
        closed, (new_blocks, _) = jax.make_jaxpr(function, return_shape=True)(*scalars, *blocks)
        return cls(closed, len(scalars), len(new_blocks))

    def consists_of(self, operations: frozenset[str]) -> bool:
        """Whether a kernel can compute the blocks.

        They must follow from blocks and scalars by the named operations, those scalars must be
        float32 or int32, and the new scalars must follow from scalars only.
        """
        names: set[str] = set()
        used: list[Any] = []

        def note(equation: Any, operands: Sequence[Any]) -> list[None]:
            names.add(equation.primitive.name)
            return [None] * len(equation.outvars)

        scalars = [shape_of(value) for value in self.closed.in_avals[: self.num_scalars]]
        results = self._evaluate(
            [*map(_Scalar, scalars), *[None] * self._num_blocks],
            on_scalars=lambda equation, _: [shape_of(out.aval) for out in equation.outvars],
            on_blocks=note,
            use=lambda scalar: used.append(scalar.value),
        )
        kinds = [isinstance(result, _Scalar) for result in results]
        return (
            kinds == [index >= self.num_new_blocks for index in range(len(kinds))]
            and all(of.ndim == 0 and of.dtype in ("float32", "int32") for of in used)
            and names <= operations
        )

    def scalars_from(self, scalars: Sequence[Array]) -> tuple[list[Array], list[Array]]:
        """Computes what depends on scalars only.

        Returns:
          The scalars that the operations on blocks use, in the order of their use; and the new
          scalars.
        """
        used: list[Array] = []
        results = self._evaluate(
            [*map(_Scalar, scalars), *[None] * self._num_blocks],
            on_scalars=_bind,
            on_blocks=lambda equation, _: [None] * len(equation.outvars),
            use=lambda scalar: used.append(scalar.value),
        )
        return used, [result.value for result in results[self.num_new_blocks :]]

    def blocks_from(self, blocks: Sequence[Array], used: Sequence[Any]) -> list[Array]:
        """Computes the new blocks from blocks, and the scalars that `scalars_from` returned."""
        rest = iter(used)
        results = self._evaluate(
            [*[_Scalar()] * self.num_scalars, *blocks],
            on_scalars=lambda equation, _: [None] * len(equation.outvars),
            on_blocks=_bind,
            use=lambda _: next(rest),
        )
        return results[: self.num_new_blocks]

    @property
    def _num_blocks(self) -> int:
        return len(self.closed.in_avals) - self.num_scalars

    def _evaluate(self, inputs: Sequence[Any], **how: Any) -> list[Any]:
        shape = self.closed.in_avals[-1].shape
        return _evaluate(self.closed, inputs, block_shape=shape, **how)


def shape_of(value: Any) -> jax.ShapeDtypeStruct:
    """The shape and dtype of an array, or of JAX's description of one."""
    return jax.ShapeDtypeStruct(value.shape, value.dtype)


def _evaluate(
    closed: Any,
    inputs: Sequence[Any],
    *,
    block_shape: tuple[int, ...],
    on_scalars: Callable[[Any, list[Any]], Sequence[Any]],
    on_blocks: Callable[[Any, list[Any]], Sequence[Any]],
    use: Callable[[_Scalar], Any],
) -> list[Any]:
    """Follows a traced function, and those that it calls.

    Args:
      closed: the function.
      inputs: a `_Scalar`, or what stands for a block, for each argument.
      block_shape: the shape of the blocks.
      on_scalars: computes an operation on scalars from their values; returns values.
      on_blocks: computes an operation on blocks, or whose result is one.
      use: what an operation on blocks gets for a scalar that is no literal.

    Returns:
      A `_Scalar` or a block for each result.
    """
    jaxpr = closed.jaxpr
    values = dict(zip(jaxpr.constvars, map(_Scalar, closed.consts), strict=True))
    values.update(zip(jaxpr.invars, inputs, strict=True))

    def read(variable: Any) -> Any:
        if isinstance(variable, Literal):
            return _Scalar(variable.val, is_literal=True)
        return values[variable]

    def operand(value: Any) -> Any:
        if not isinstance(value, _Scalar):
            return value
        return value.value if value.is_literal else use(value)

    for equation in jaxpr.eqns:
        read_in = [read(variable) for variable in equation.invars]
        scalars = [value for value in read_in if isinstance(value, _Scalar)]
        makes_block = any(out.aval.shape == block_shape for out in equation.outvars)
        if called := _CALLS.get(equation.primitive.name):
            results: Sequence[Any] = _evaluate(
                equation.params[called],
                read_in,
                block_shape=block_shape,
                on_scalars=on_scalars,
                on_blocks=on_blocks,
                use=use,
            )
        elif len(scalars) == len(read_in) and not makes_block:
            found = on_scalars(equation, [scalar.value for scalar in scalars])
            results = [_Scalar(value) for value in found]
        else:
            results = on_blocks(equation, [operand(value) for value in read_in])
        values.update(zip(equation.outvars, results, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _bind(equation: Any, operands: Sequence[Any]) -> Sequence[Any]:
    """Computes an operation."""
    results = equation.primitive.bind(*operands, **equation.params)
    return results if equation.primitive.multiple_results else [results]
