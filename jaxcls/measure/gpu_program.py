"""Reads out of the text of a program for a GPU what it moves, computes and starts.

XLA's GPU compiler reports no costs. The text repeats exactly, so programs can be compared by it.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping

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
      moved: bytes of operands and results of all kernels: an upper bound of what they read and
        write, without caches.
      flops: of matrix products and convolutions. Kernels of Triton count none: ours compute little.
      kernels: the number of kernels, library calls and copies that are started.
      unknown_loops: the number of loops whose length the program decides as it runs; their bodies
        count once.
    """

    moved: int = 0
    flops: int = 0
    kernels: int = 0
    unknown_loops: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            moved=self.moved + other.moved,
            flops=self.flops + other.flops,
            kernels=self.kernels + other.kernels,
            unknown_loops=self.unknown_loops + other.unknown_loops,
        )

    def per_image(self, images: float) -> tuple[float, float]:
        """FLOPs and bytes for each of the images of a device."""
        return self.flops / images, self.moved / images

    def times(self, trips: int) -> "Cost":
        """The cost of a loop's body that runs so often."""
        return Cost(
            moved=self.moved * trips,
            flops=self.flops * trips,
            kernels=self.kernels * trips,
            unknown_loops=self.unknown_loops,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Instruction:
    name: str
    shape: str
    kind: str
    operands: tuple[str, ...]
    rest: str  # the text after the opening bracket of the operands
    is_root: bool


type _Computation = Mapping[str, _Instruction]


def cost_of(text: str) -> Cost:
    """Counts a compiled program from its text (`Compiled.as_text()`).

    Called computations count where they are called, a loop's body as often as the compiler knows
    that it runs, and of the branches of a conditional the one that moves most.
    """
    computations, entry = _parse(text)

    @functools.cache
    def of_computation(name: str) -> Cost:
        found = computations[name]
        return sum((of(found, instruction) for instruction in found.values()), Cost())

    def of(within: _Computation, instruction: _Instruction) -> Cost:
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
        flops, inside = _flops(within, instruction), None
        if kind == "fusion":
            inside = computations[called["calls"]]
            flops = sum(_flops(inside, each) for each in inside.values())
        return Cost(moved=_moved(within, instruction, inside), flops=flops, kernels=1)

    return of_computation(entry)


def _parse(text: str) -> tuple[dict[str, _Computation], str]:
    computations: dict[str, dict[str, _Instruction]] = {}
    entry, current = "", {}
    for line in re.sub(r"/\*.*?\*/", "", text).splitlines():  # without comments such as /*index=5*/
        if header := re.match(r"(ENTRY )?(%[\w.\-]+) .*\{$", line):
            computations[header[2]] = current = {}
            entry = header[2] if header[1] else entry
        elif found := _INSTRUCTION.match(line):
            root, name, shape, kind, rest = found.groups()
            operands = tuple(re.findall(r"%[\w.\-]+", rest.partition(")")[0]))
            current[name] = _Instruction(
                name=name, shape=shape, kind=kind, operands=operands, rest=rest, is_root=bool(root)
            )
    return dict(computations), entry


def _called(instruction: _Instruction) -> dict[str, str]:
    return dict(re.findall(r"\b(\w+)=(%[\w.\-]+)", instruction.rest))


def _sizes(shape: str) -> list[tuple[str, list[int]]]:
    return [
        (kind, [int(size) for size in sizes.split(",") if size])
        for kind, sizes in _SHAPE.findall(shape)
    ]


def shape_bytes(shape: str) -> int:
    """Bytes of an array, or of a tuple of arrays, from the text of its shape."""
    return sum(WIDTHS[kind] * math.prod(sizes) for kind, sizes in _sizes(shape))


def _moved(within: _Computation, instruction: _Instruction, inside: _Computation | None) -> int:
    """Bytes of operands and results. Of an array that is only sliced, the slice counts."""
    if inside is None:
        if instruction.kind in ("slice", "dynamic-slice"):
            return 2 * shape_bytes(instruction.shape)
        if instruction.kind == "dynamic-update-slice":
            return 2 * shape_bytes(within[instruction.operands[1]].shape)
        if instruction.kind.endswith("-start"):  # its result repeats the operands
            return shape_bytes(instruction.shape)
        result = instruction.shape
        if '"__cu' in instruction.rest:  # of cuBLAS or cuDNN, whose working memory is the last
            result = re.sub(r", [su]8\[\d+\]\S*\)$", ")", result)
        return shape_bytes(result) + sum(
            shape_bytes(within[of].shape) for of in instruction.operands
        )
    read = sum(_read(inside, each) for each in inside.values() if each.kind == "parameter")
    (root,) = (each for each in inside.values() if each.is_root)
    results = [inside[of] for of in root.operands] if root.kind == "tuple" else [root]
    return read + sum(_written(inside, result) for result in results)


def _read(inside: _Computation, parameter: _Instruction) -> int:
    """Bytes of a fusion's operand that it reads."""
    users = [each for each in inside.values() if parameter.name in each.operands]
    partly = ("slice", "dynamic-slice", "dynamic-update-slice")
    if users and all(each.kind in partly and each.operands[0] == parameter.name for each in users):
        return sum(shape_bytes(each.shape) for each in users if each.kind != "dynamic-update-slice")
    return shape_bytes(parameter.shape)


def _written(inside: _Computation, result: _Instruction) -> int:
    if result.kind == "dynamic-update-slice":  # in place
        return shape_bytes(inside[result.operands[1]].shape)
    return shape_bytes(result.shape)


def _flops(within: _Computation, instruction: _Instruction) -> int:
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


def _product_flops(within: _Computation, instruction: _Instruction, contracted: list[str]) -> int:
    """FLOPs of a matrix product that sums over the given axes of its first operand."""
    (_, left), (_, result) = (
        _sizes(shape)[0] for shape in (within[instruction.operands[0]].shape, instruction.shape)
    )
    return 2 * math.prod(result) * math.prod(left[int(axis)] for axis in contracted)


def _convolution_flops(within: _Computation, instruction: _Instruction) -> int:
    """FLOPs of a convolution, or of one of its gradients: they are the same.

    A kernel of k entries for each output channel and group needs 2 k products and sums at each
    pixel of the smaller of the two images.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.rest)
    assert labels is not None
    arrays = [
        _sizes(within[instruction.operands[0]].shape)[0][1],
        _sizes(within[instruction.operands[1]].shape)[0][1],
        _sizes(instruction.shape)[0][1],
    ]
    target = re.search(r'custom_call_target="__cudnn\$conv(\w+)"', instruction.rest)
    gradient = target[1] if target else "Forward"
    order = {"Forward": (0, 1, 2), "BackwardInput": (2, 1, 0), "BackwardFilter": (0, 2, 1)}
    _, kernel, output = (arrays[place] for place in order.get(gradient, (0, 1, 2)))
    entries = math.prod(size for size, label in zip(kernel, labels[2], strict=True) if label != "o")
    return 2 * math.prod(output) * entries
