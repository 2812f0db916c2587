"""Costs of a program for a TPU, from its text."""

import re

from jaxcls.measure.program_text import (
    Computation,
    Cost,
    Instruction,
    moved_bytes,
    shape_bytes,
    sum_of_costs,
)

# An array in another memory than the device's large one (HBM) names it in its layout: S(1) is the
# fast memory of a core (VMEM).
_ELSEWHERE = re.compile(r"\w+\[[\d,]*\]\{[^}]*S\([1-9]\d*\)\}")


def tpu_cost(text: str) -> Cost:
    """Counts what a program moves from and to HBM, and the compiler's estimate of its cycles.

    The compiler's own figure, "bytes accessed", counts every memory, and an array twice more if it
    is brought to the fast memory before it is used.

    Args:
      text: the program's text (`Compiled.as_text()`).
    """
    return sum_of_costs(text, _cost_of)


def _cost_of(within: Computation, instruction: Instruction, inside: Computation | None) -> Cost:
    if instruction.kind == "slice-start":  # ((whole), slice, context): the slice is copied
        whole, _, rest = instruction.shape.partition("), ")
        part = rest.partition("}")[0] + "}"
        moved = (shape_bytes(part) if _hbm_bytes(whole) else 0) + _hbm_bytes(part)
    else:
        moved = moved_bytes(within, instruction, inside, bytes_of=_hbm_bytes)
    cycles = re.search(r'"estimated_cycles":"(\d+)"', instruction.rest)
    return Cost(moved=moved, cycles=int(cycles[1]) if cycles else 0)


def _hbm_bytes(shape: str) -> int:
    return shape_bytes(_ELSEWHERE.sub("", shape))
