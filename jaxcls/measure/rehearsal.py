"""Compiles a training step without running it, and reports what it would need."""

import dataclasses
import math
import os
import re
import time
from collections.abc import Sequence
from typing import Any

import jax

from jaxcls.config import Config
from jaxcls.config.augment import mix_of
from jaxcls.config.sizes import describe_size
from jaxcls.data.sources import open_source
from jaxcls.distributed.mesh import (
    bytes_per_device,
    has_gpus,
    has_tpus,
    make_mesh,
    replicated_bytes,
)
from jaxcls.measure.benchmark import (
    IMAGENET_CLASSES,
    IMAGENET_EXAMPLES,
    cost_from_part,
    program_of_micro_batch,
)
from jaxcls.measure.chips import Chip
from jaxcls.measure.collectives import collectives
from jaxcls.measure.gpu_program import gpu_cost
from jaxcls.measure.tpu_program import tpu_cost
from jaxcls.system.errors import DataError, UserError
from jaxcls.training.build import Training, build_training

MAX_SEARCH_COMPILES = 6

type Rehearsal = dict[str, Any]


def rehearse(
    config: Config,
    *,
    devices: Sequence[Any] | None = None,
    chip: Chip | None = None,
    num_classes: int | None = None,
    search: bool = False,
) -> Rehearsal:
    """Compiles the training step and reports memory, traffic and collectives of one device.

    Bytes of memory are those of a device, bytes and FLOPs are those of an image, cycles and kernels
    those of a step. What is not known is None.

    If the image size grows by stage, the step of the last stage is used, which needs most memory.

    Args:
      config: the resolved config.
      devices: the devices to compile for (None: this machine's).
      chip: the kind of the devices, if known; needed to estimate the time.
      num_classes: the number of classes (None: the data's, or ImageNet's if the data is missing).
      search: also find the largest batch for each device that fits, by compiling a few more times.

    Raises:
      UserError: the config does not fit the devices, the number of classes is unknown, or `search`
        is set and the size of the devices' memory is unknown.
    """
    mesh = make_mesh(devices, parallel=config.parallel)
    limit = _limit_of(chip) if chip else _local_limit(mesh.devices.flat[0])
    if search and limit is None:
        raise UserError("--search: the memory size of these devices is unknown; give --topology")
    classes, examples = _sizes_of_data(config, num_classes)

    def make(batch_size: int) -> Training:
        data = dataclasses.replace(config.data, batch_size=batch_size)
        resized = dataclasses.replace(config, data=data)
        return build_training(resized, num_classes=classes, num_examples=examples, mesh=mesh)

    training = make(config.data.batch_size)
    state = training.abstract_state()
    report: Rehearsal = {
        "num_devices": mesh.size,
        "device_kind": mesh.devices.flat[0].device_kind,
        "image_size": config.data.image_size,
        "batch_per_device": config.data.batch_size // mesh.size,
        "parameter_bytes_per_device": bytes_per_device(state.params),
        "optimizer_bytes_per_device": bytes_per_device([state.opt_state, state.ema]),
        "batch_bytes_per_device": bytes_per_device(training.abstract_batch()),
        "replicated_bytes_per_device": replicated_bytes(state),
        **_try(training, limit),
        "memory_limit_bytes": limit,
    }
    report["remedies"] = [] if report["fits"] else _remedies(config)
    if chip and report["bytes_per_image"] is not None:
        seconds = _estimated_seconds(report, chip)
        report["estimated_images_per_second"] = config.data.batch_size / seconds
        report["estimated_step_seconds"] = seconds
        report["cycles_per_second"] = chip.cycles_per_second
    report["largest_batch_per_device"] = None
    if search and limit is not None:
        group = config.model.batch_norm
        mix = mix_of(config.augment)
        unit = config.optimizer.micro_batches * math.lcm(
            mix.group_size if mix else 1, 1 if group == "global" else group, config.data.repeats
        )
        report["largest_batch_per_device"] = largest_batch(
            lambda batch: _try(make(batch * mesh.size), limit),
            unit=unit,
            limit=limit,
            first=(report["batch_per_device"], report),
        )
    return report


def largest_batch(attempt: Any, *, unit: int, limit: int, first: tuple[int, Rehearsal]) -> int:
    """Finds the largest multiple of `unit` for which `attempt(batch)` fits, with few attempts.

    Memory grows nearly linearly with the batch: two attempts give a line, and the next attempt is
    where the line reaches the limit, or in the middle of the open range.

    Args:
      attempt: batch -> report with "fits" and "memory_bytes_per_device".
      unit: the batch must be a multiple of this.
      limit: the bytes of a device's memory.
      first: a batch that was tried, and its report.

    Returns:
      The largest batch that fitted within `MAX_SEARCH_COMPILES` attempts; 0 if not even `unit` did.
    """
    tried = {first[0] // unit: first[1]}
    for _ in range(MAX_SEARCH_COMPILES):
        good = max((size for size, report in tried.items() if report["fits"]), default=0)
        bad = min((size for size, report in tried.items() if not report["fits"]), default=None)
        if bad == good + 1:
            break
        guess = max(1, min(tried) // 2) if len(tried) == 1 and bad else 2 * good
        points = sorted(
            (size, report["memory_bytes_per_device"])
            for size, report in tried.items()
            if report["memory_bytes_per_device"] is not None  # the compiler may not report it
        )
        if len(points) > 1:
            (low, low_bytes), (high, high_bytes) = points[0], points[-1]
            slope = max((high_bytes - low_bytes) / (high - low), 1)
            guess = int(low + (limit - low_bytes) / slope)
        if not good < guess < (bad or math.inf):
            guess = (good + bad) // 2 if bad else good + 1
        tried[guess] = attempt(guess * unit)
    return max((size for size, report in tried.items() if report["fits"]), default=0) * unit


def _try(training: Training, limit: int | None) -> Rehearsal:
    """Compiles the step and returns what the compiler reports, also if memory is too small."""
    start = time.perf_counter()
    try:
        program = training.compile_step().program
    except jax.errors.JaxRuntimeError as error:
        # A kernel that needs too much of a processor's shared memory is our fault.
        if "RESOURCE_EXHAUSTED" not in str(error) or "Shared memory" in str(error):
            raise
        return {
            "fits": False,
            "memory_bytes_per_device": bytes_wanted(str(error)),
            "activation_bytes_per_device": None,
            "code_bytes_per_device": None,
            "bytes_per_image": None,
            "hbm_bytes_per_image": None,
            "flops_per_image": None,
            "cycles": None,
            "kernels": None,
            "unknown_loops": None,
            "collectives": {},
            "collective_bytes": {},
            "compile_seconds": time.perf_counter() - start,
        }
    seconds = time.perf_counter() - start
    memory, text = program.memory_analysis(), program.as_text()
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    temporary, code = memory.temp_size_in_bytes, memory.generated_code_size_in_bytes
    total = memory.argument_size_in_bytes + outputs + temporary + code
    counts, sizes = collectives(text)
    return {
        "fits": limit is None or total <= limit,
        "memory_bytes_per_device": total,
        "activation_bytes_per_device": temporary,
        "code_bytes_per_device": code,
        **_costs(training, program, text),
        "collectives": counts,
        "collective_bytes": sizes,
        "compile_seconds": seconds,
    }


def _costs(training: Training, program: Any, text: str) -> Rehearsal:
    """What an image costs, and what only the text of a program for a GPU or a TPU tells."""
    gpu = gpu_cost(text) if has_gpus(training.mesh) else None
    part = program_of_micro_batch(training, program)  # compiled once more if it is not `program`
    flops, traffic = cost_from_part(training, part)
    costs = {
        "bytes_per_image": traffic,
        "hbm_bytes_per_image": None,
        "flops_per_image": flops,
        "cycles": None,
        "kernels": gpu and gpu.kernels,
        "unknown_loops": gpu and gpu.unknown_loops,
    }
    if has_tpus(training.mesh):  # whose programs do not tell how often a loop runs
        micro_batches = training.config.optimizer.micro_batches
        images = training.config.data.batch_size / training.mesh.size / micro_batches
        tpu = tpu_cost(part.as_text())
        costs["hbm_bytes_per_image"] = tpu.moved / images
        costs["cycles"] = tpu.cycles * micro_batches
        costs["unknown_loops"] = tpu.unknown_loops
    return costs


def _estimated_seconds(report: Rehearsal, chip: Chip) -> float:
    """What a step takes by the compiler's estimate, but no less than the published figures allow.

    Where the compiler makes no estimate, or the clock is unknown, they alone are the estimate.
    """
    traffic = report["hbm_bytes_per_image"] or report["bytes_per_image"]
    work = max(traffic / chip.bandwidth, report["flops_per_image"] / chip.bfloat16_rate)
    starts = (report["kernels"] or 0) * chip.kernel_seconds
    cycles = (
        report["cycles"] / chip.cycles_per_second
        if report["cycles"] and chip.cycles_per_second
        else 0
    )
    return max(work * report["batch_per_device"] + starts, cycles)


def bytes_wanted(message: str) -> int | None:
    """Returns the memory that the compiler's error message says it needs, or None."""
    found = re.search(r"[Uu]sed ([\d.]+)([KMGT]?) of", message)
    found = found or re.search(r"allocate ([\d.]+) ?([KMGT]?)(?:i?B|bytes)", message)
    return found and int(float(found[1]) * 1024 ** " KMGT".index(found[2] or " "))


def _sizes_of_data(config: Config, num_classes: int | None) -> tuple[int, int]:
    """Returns the numbers of classes and examples; works without the data for ImageNet."""
    if num_classes is not None:
        return num_classes, IMAGENET_EXAMPLES
    try:
        source = open_source(config.data, config.data.train_split)
    except DataError as error:
        if config.data.source.startswith("tfds:imagenet2012"):
            return IMAGENET_CLASSES, IMAGENET_EXAMPLES
        raise UserError(f"{error}\nor give --num-classes, without the data") from error
    return source.num_classes, len(source)


def _limit_of(chip: Chip) -> int:
    """Returns the bytes of a device's memory that JAX reserves."""
    if chip.reserved_share == 1:
        return chip.memory_bytes
    share = os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", chip.reserved_share)
    return int(chip.memory_bytes * float(share))


def _local_limit(device: Any) -> int | None:
    """Returns the bytes of a local device's memory, or None if it does not report them."""
    statistics = device.memory_stats()
    return statistics.get("bytes_limit") if statistics else None


def _remedies(config: Config) -> list[str]:
    """Returns ways to need less memory, by fields of the config."""
    remedies = ["a smaller data.batch_size (--search finds the largest that fits)"]
    if not config.model.remat:
        remedies.append("--model.remat True: keeps only each block's input")
    remedies.append(
        f"--optimizer.micro-batches {2 * config.optimizer.micro_batches}: half the activations"
    )
    if config.parallel.state != "fsdp":
        remedies.append("--parallel.state fsdp: splits parameters and optimizer over the devices")
    return remedies


def describe_rehearsal(report: Rehearsal) -> str:
    """Formats the results for the user."""

    def megabytes(name: str) -> str:
        value = report[name]
        return "unknown" if value is None else f"{value / 1e6:,.1f} MB"

    limit = report["memory_limit_bytes"]
    lines = [
        f"{report['num_devices']} x {report['device_kind']}, {report['batch_per_device']} images "
        f"of {describe_size(report['image_size'])} px each: "
        + ("fits" if report["fits"] else "DOES NOT FIT"),
        f"memory a device  {megabytes('memory_bytes_per_device')}"
        + (f" of {limit / 1e6:,.1f} MB" if limit else ""),
        f"  parameters     {megabytes('parameter_bytes_per_device')}",
        f"  optimizer, EMA {megabytes('optimizer_bytes_per_device')}",
        f"  batch          {megabytes('batch_bytes_per_device')}",
        f"  activations    {megabytes('activation_bytes_per_device')}",
        f"  code           {megabytes('code_bytes_per_device')}",
        f"  of the state, {megabytes('replicated_bytes_per_device')} are a copy on every device",
    ]
    if report["bytes_per_image"] is not None:
        hbm = report["hbm_bytes_per_image"]
        lines.append(
            f"an image         {report['flops_per_image'] / 1e9:.3f} GFLOP and "
            f"{report['bytes_per_image'] / 1e6:.1f} MB"
            + ("" if hbm is None else f", {hbm / 1e6:.1f} MB of them from or to HBM")
        )
    if report["cycles"] is not None:
        lines.append(
            f"cycles           {report['cycles'] / 1e6:,.2f} million a step, XLA estimates"
        )
    if report["kernels"] is not None:
        lines.append(f"kernels          {report['kernels']:,} a step")
    if loops := report["unknown_loops"]:
        lines.append(f"loops            {loops} of unknown length: their bodies are counted once")
    for kind, count in report["collectives"].items():
        size = report["collective_bytes"][kind] / 1e6
        lines.append(f"collectives      {count} {kind}, {size:,.2f} MB (in a loop: counted once)")
    if "estimated_step_seconds" in report:
        clocked = report["cycles"] and report["cycles_per_second"]
        source = " and the cycles" if clocked else ""
        lines.append(
            f"estimate         {report['estimated_step_seconds'] * 1e3:.1f} ms a step, "
            f"{report['estimated_images_per_second']:,.0f} img/s: a bound from the device's "
            f"published figures{source}; a real step is slower"
        )
    if report["largest_batch_per_device"] is not None:
        lines.append(f"largest batch    {report['largest_batch_per_device']} images a device")
    lines.append(f"compiling        {report['compile_seconds']:.1f} s")
    lines += [f"to make it fit   {remedy}" for remedy in report["remedies"]]
    return "\n".join(lines)
