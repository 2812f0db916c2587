"""Costs of a program for a GPU, from its text."""

import math
import re

from jaxcls.measure.program_text import (
    Computation,
    Cost,
    Instruction,
    moved_bytes,
    sizes_of,
    sum_of_costs,
)


def gpu_cost(text: str) -> Cost:
    """Counts what a program moves, computes and starts, from its text (`Compiled.as_text()`).

    Kernels of Triton count no FLOPs: ours compute little.
    """
    return sum_of_costs(text, _cost_of)


def _cost_of(within: Computation, instruction: Instruction, inside: Computation | None) -> Cost:
    flops = _flops(within, instruction)
    if inside is not None:
        flops = sum(_flops(inside, each) for each in inside.values())
    return Cost(moved=moved_bytes(within, instruction, inside), flops=flops, kernels=1)


def _flops(within: Computation, instruction: Instruction) -> int:
    if instruction.kind == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.rest)
        assert contracted is not None
        return _product_flops(within, instruction, re.findall(r"\d+", contracted[1]))
    if '"__cublas$' in instruction.rest:
        contracted = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', instruction.rest)
        assert contracted is not None
        return _product_flops(within, instruction, re.findall(r"\d+", contracted[1]))
    if "dim_labels=" in instruction.rest and len(instruction.operands) > 1:
        return _convolution_flops(within, instruction)
    return 0


def _product_flops(within: Computation, instruction: Instruction, contracted: list[str]) -> int:
    """FLOPs of a matrix product that sums over the given axes of its first operand."""
    (_, left), (_, result) = (
        sizes_of(shape)[0] for shape in (within[instruction.operands[0]].shape, instruction.shape)
    )
    return 2 * math.prod(result) * math.prod(left[int(axis)] for axis in contracted)


def _convolution_flops(within: Computation, instruction: Instruction) -> int:
    """FLOPs of a convolution, or of one of its gradients: they are the same.

    A kernel of k entries for each output channel and group needs 2 k products and sums at each
    pixel of the smaller of the two images.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.rest)
    assert labels is not None
    arrays = [
        sizes_of(within[instruction.operands[0]].shape)[0][1],
        sizes_of(within[instruction.operands[1]].shape)[0][1],
        sizes_of(instruction.shape)[0][1],
    ]
    target = re.search(r'custom_call_target="__cudnn\$conv(\w+)"', instruction.rest)
    gradient = target[1] if target else "Forward"
    order = {"Forward": (0, 1, 2), "BackwardInput": (2, 1, 0), "BackwardFilter": (0, 2, 1)}
    _, kernel, output = (arrays[place] for place in order.get(gradient, (0, 1, 2)))
    entries = math.prod(size for size, label in zip(kernel, labels[2], strict=True) if label != "o")
    return 2 * math.prod(output) * entries
