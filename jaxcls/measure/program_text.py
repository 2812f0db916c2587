"""Reads the text of a compiled program: its instructions, how often each runs, what each moves.

Of XLA's compilers, that for GPUs reports no costs, and that for TPUs does not tell which of the
bytes are in which memory. The text repeats exactly, so programs can be compared by it.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping

WIDTHS = {"pred": 1, "bf16": 2, "f16": 2, "c64": 8, "c128": 16} | {
    f"{kind}{bits}": bits // 8 for kind in "suf" for bits in (8, 16, 32, 64)
}
# They name arrays, or wait for what was started, and move nothing.
FREE = {
    "add-dependency",
    "after-all",
    "bitcast",
    "constant",
    "get-tuple-element",
    "opt-barrier",
    "parameter",
    "partition-id",
    "replica-id",
    "tuple",
}
_SHAPE = re.compile(rf"\b({'|'.join(WIDTHS)})\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"\s*(ROOT )?(%[\w.\-]+) = (\([^=]*?\)|\S+) ([\w\-]+)\((.*)$")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """What a program does when it runs once on one device.

    Attributes:
      moved: bytes of the operands and results in the device's memory (of a TPU: in HBM): an upper
        bound of what is read and written there, without caches.
      flops: of matrix products and convolutions; 0 for TPUs, whose compiler reports them itself.
      kernels: the number of kernels, library calls and copies that are started; 0 for TPUs.
      cycles: the compiler's estimate of the time, in cycles of the device; 0 where it makes none.
      unknown_loops: the number of loops whose length the program decides as it runs; their bodies
        count once.
    """

    moved: int = 0
    flops: int = 0
    kernels: int = 0
    cycles: int = 0
    unknown_loops: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            moved=self.moved + other.moved,
            flops=self.flops + other.flops,
            kernels=self.kernels + other.kernels,
            cycles=self.cycles + other.cycles,
            unknown_loops=self.unknown_loops + other.unknown_loops,
        )

    def times(self, trips: int) -> "Cost":
        """The cost of a loop's body that runs so often."""
        return Cost(
            moved=self.moved * trips,
            flops=self.flops * trips,
            kernels=self.kernels * trips,
            cycles=self.cycles * trips,
            unknown_loops=self.unknown_loops,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instruction:
    """A line of a program.

    Attributes:
      shape: the text of the shape of its result, with its layout.
      kind: what it does, such as "fusion" or "copy-start".
      operands: the names of its operands.
      rest: the text after the opening bracket of the operands.
      is_root: whether its result is that of its computation.
    """

    name: str
    shape: str
    kind: str
    operands: tuple[str, ...]
    rest: str
    is_root: bool


type Computation = Mapping[str, Instruction]  # by name, in the order of the text

# (a computation, one of its instructions, the computation that this fuses or None) -> the cost
type CostOf = Callable[[Computation, Instruction, Computation | None], Cost]


def sum_of_costs(text: str, cost_of: CostOf) -> Cost:
    """Adds the costs of a program's instructions.

    Called computations count where they are called, a loop's body as often as the compiler knows
    that it runs, and of the branches of a conditional the one that moves most.

    Args:
      text: the program's text, `Compiled.as_text()`.
      cost_of: gives the cost of an instruction that calls no others.
    """
    computations, entry = _parse(text)

    @functools.cache
    def of_computation(name: str) -> Cost:
        found = computations[name]
        return sum((cost_with_calls(found, instruction) for instruction in found.values()), Cost())

    def cost_with_calls(within: Computation, instruction: Instruction) -> Cost:
        kind, called = instruction.kind, _called(instruction)
        if kind in FREE or kind.endswith(("-done", "-update")):
            return Cost()
        if kind == "while":
            body = of_computation(called["body"]) + of_computation(called["condition"])
            trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', instruction.rest)
            return body.times(int(trips[1])) if trips else body + Cost(unknown_loops=1)
        if kind == "conditional":
            branches = re.search(r"branch_computations=\{([^}]*)\}", instruction.rest)
            names = (
                branches[1].split(", ")
                if branches
                else [
                    called["true_computation"],
                    called["false_computation"],
                ]
            )
            return max((of_computation(name) for name in names), key=lambda cost: cost.moved)
        if kind == "call" or (kind == "async-start" and "calls" in called):
            return of_computation(called.get("to_apply") or called["calls"])
        inside = computations[called["calls"]] if kind == "fusion" else None
        return cost_of(within, instruction, inside)

    return of_computation(entry)


def _parse(text: str) -> tuple[dict[str, Computation], str]:
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = "", {}
    for line in re.sub(r"/\*.*?\*/", "", text).splitlines():  # without comments such as /*index=5*/
        if header := re.match(r"(ENTRY )?(%[\w.\-]+) .*\{$", line):
            computations[header[2]] = current = {}
            entry = header[2] if header[1] else entry
        elif found := _INSTRUCTION.match(line):
            root, name, shape, kind, rest = found.groups()
            operands = tuple(re.findall(r"%[\w.\-]+", rest.partition(")")[0]))
            current[name] = Instruction(
                name=name, shape=shape, kind=kind, operands=operands, rest=rest, is_root=bool(root)
            )
    return dict(computations), entry


def _called(instruction: Instruction) -> dict[str, str]:
    return dict(re.findall(r"\b(\w+)=(%[\w.\-]+)", instruction.rest))


def sizes_of(shape: str) -> list[tuple[str, list[int]]]:
    """The type and the sizes of an array, or of a tuple of arrays, from the text of its shape."""
    return [
        (kind, [int(size) for size in sizes.split(",") if size])
        for kind, sizes in _SHAPE.findall(shape)
    ]


def shape_bytes(shape: str) -> int:
    """Bytes of an array, or of a tuple of arrays, from the text of its shape."""
    return sum(WIDTHS[kind] * math.prod(sizes) for kind, sizes in sizes_of(shape))


def moved_bytes(
    within: Computation,
    instruction: Instruction,
    inside: Computation | None,
    *,
    bytes_of: Callable[[str], int] = shape_bytes,
) -> int:
    """Bytes of operands and results. Of an array that is only sliced, the slice counts.

    Args:
      bytes_of: bytes of an array, or of a tuple of arrays, from the text of its shape.
    """
    if inside is None:
        if instruction.kind in ("slice", "dynamic-slice"):
            return 2 * bytes_of(instruction.shape)
        if instruction.kind == "dynamic-update-slice":
            return 2 * bytes_of(within[instruction.operands[1]].shape)
        repeats_operands = instruction.kind.endswith("-start") and "reduce" not in instruction.kind
        if repeats_operands:  # in its result
            return bytes_of(instruction.shape)
        result = instruction.shape
        if '"__cu' in instruction.rest:  # of cuBLAS or cuDNN, whose working memory is the last
            result = re.sub(r", [su]8\[\d+\]\S*\)$", ")", result)
        return bytes_of(result) + sum(
            bytes_of(within[operand].shape) for operand in instruction.operands
        )
    read = sum(
        _read_bytes(inside, each, bytes_of) for each in inside.values() if each.kind == "parameter"
    )
    (root,) = (each for each in inside.values() if each.is_root)
    results = [inside[name] for name in root.operands] if root.kind == "tuple" else [root]
    return read + sum(_written_bytes(inside, result, bytes_of) for result in results)


def _read_bytes(inside: Computation, parameter: Instruction, bytes_of: Callable[[str], int]) -> int:
    """Bytes of a fusion's operand that it reads."""
    users = [each for each in inside.values() if parameter.name in each.operands]
    partly = ("slice", "dynamic-slice", "dynamic-update-slice")
    if users and all(each.kind in partly and each.operands[0] == parameter.name for each in users):
        return sum(bytes_of(each.shape) for each in users if each.kind != "dynamic-update-slice")
    return bytes_of(parameter.shape)


def _written_bytes(inside: Computation, result: Instruction, bytes_of: Callable[[str], int]) -> int:
    if result.kind == "dynamic-update-slice":  # in place
        return bytes_of(inside[result.operands[1]].shape)
    return bytes_of(result.shape)
