"""A function of numbers and blocks of arrays, taken apart: what concerns numbers only, and more.

A kernel does the rest for each block. The numbers are computed once, outside of it, where every
operation is allowed.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import Array
from jax.extend.core import Literal

_CALLED = ("jaxpr", "call_jaxpr")  # in the parameters of operations that call a traced function


@dataclasses.dataclass(frozen=True)
class _Number:
    """A value that depends on no block; in a kernel, its value is unknown."""

    value: Any = None
    is_literal: bool = False


@dataclasses.dataclass(frozen=True)
class BlockProgram:
    """A traced function `(*numbers, *blocks) -> blocks`, all blocks of one shape.

    Attributes:
      closed: the function, as JAX traced it.
      num_numbers: the number of its arguments that are numbers.
    """

    closed: Any
    num_numbers: int

    @classmethod
    def trace(
        cls, function: Callable[..., Any], numbers: Sequence[Any], blocks: Sequence[Any]
    ) -> "BlockProgram":
        """Traces a function for arguments, or for their shapes and dtypes."""
        return cls(jax.make_jaxpr(function)(*numbers, *blocks), len(numbers))

    def operations(self) -> set[str]:
        """The names of the operations on blocks; and "array" if they need more than numbers."""
        names: set[str] = set()

        def note(equation: Any, operands: Sequence[Any]) -> list[None]:
            names.add(equation.primitive.name)
            if any(getattr(of, "ndim", 0) for of in operands if of is not None):
                names.add("array")
            return [None] * len(equation.outvars)

        numbers = [aval_of(value) for value in self.closed.in_avals[: self.num_numbers]]
        results = self._evaluate(
            [*map(_Number, numbers), *[None] * self._num_blocks],
            on_numbers=lambda equation, _: [aval_of(out.aval) for out in equation.outvars],
            on_blocks=note,
            use=lambda number: number.value,
        )
        if any(isinstance(result, _Number) for result in results):
            names.add("array")
        return names

    def derived_numbers(self, numbers: Sequence[Array]) -> list[Array]:
        """Computes the numbers that the operations on blocks use, in the order of their use."""
        derived: list[Array] = []
        self._evaluate(
            [*map(_Number, numbers), *[None] * self._num_blocks],
            on_numbers=_bind,
            on_blocks=lambda equation, _: [None] * len(equation.outvars),
            use=lambda number: derived.append(number.value),
        )
        return derived

    def apply(self, blocks: Sequence[Array], derived: Sequence[Any]) -> list[Array]:
        """Computes the results for some blocks, with the derived numbers."""
        rest = iter(derived)
        return self._evaluate(
            [*[_Number()] * self.num_numbers, *blocks],
            on_numbers=lambda equation, _: [None] * len(equation.outvars),
            on_blocks=_bind,
            use=lambda _: next(rest),
        )

    @property
    def _num_blocks(self) -> int:
        return len(self.closed.in_avals) - self.num_numbers

    def _evaluate(self, inputs: Sequence[Any], **how: Any) -> list[Any]:
        shape = self.closed.in_avals[-1].shape
        return _evaluate(self.closed, inputs, block_shape=shape, **how)


def aval_of(value: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(value.shape, value.dtype)


def _evaluate(
    closed: Any,
    inputs: Sequence[Any],
    *,
    block_shape: tuple[int, ...],
    on_numbers: Callable[[Any, list[Any]], Sequence[Any]],
    on_blocks: Callable[[Any, list[Any]], Sequence[Any]],
    use: Callable[[_Number], Any],
) -> list[Any]:
    """Follows a traced function.

    Args:
      closed: the function.
      inputs: a `_Number`, or what stands for a block, for each argument.
      block_shape: the shape of the blocks.
      on_numbers: computes an operation on numbers from their values; returns values.
      on_blocks: computes an operation on blocks, or whose result is one.
      use: what an operation on blocks gets for a number that is no literal.

    Returns:
      A `_Number` or a block for each result.
    """
    jaxpr = closed.jaxpr
    values = dict(zip(jaxpr.constvars, map(_Number, closed.consts), strict=True))
    values.update(zip(jaxpr.invars, inputs, strict=True))

    def read(variable: Any) -> Any:
        if isinstance(variable, Literal):
            return _Number(variable.val, is_literal=True)
        return values[variable]

    def operand(value: Any) -> Any:
        if not isinstance(value, _Number):
            return value
        return value.value if value.is_literal else use(value)

    for equation in jaxpr.eqns:
        read_in = [read(variable) for variable in equation.invars]
        numbers = [value for value in read_in if isinstance(value, _Number)]
        called = next((equation.params[name] for name in _CALLED if name in equation.params), None)
        if called is not None:
            results: Sequence[Any] = _evaluate(
                called,
                read_in,
                block_shape=block_shape,
                on_numbers=on_numbers,
                on_blocks=on_blocks,
                use=use,
            )
        elif len(numbers) == len(read_in) and all(
            out.aval.shape != block_shape for out in equation.outvars
        ):
            found = on_numbers(equation, [number.value for number in numbers])
            results = [_Number(value) for value in found]
        else:
            results = on_blocks(equation, [operand(value) for value in read_in])
        values.update(zip(equation.outvars, results, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _bind(equation: Any, operands: Sequence[Any]) -> Sequence[Any]:
    """Computes an operation."""
    results = equation.primitive.bind(*operands, **equation.params)
    return results if equation.primitive.multiple_results else [results]
