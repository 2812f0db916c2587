"""Measures the speed of a training's parts: data, augmentation, step, and all together."""

import dataclasses
import functools
import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcls.augment.pipeline import make_augment
from jaxcls.config import Config
from jaxcls.data.device import device_batches
from jaxcls.data.sources import Source, open_source
from jaxcls.distributed.mesh import has_gpus, make_mesh
from jaxcls.distributed.random_keys import random_key
from jaxcls.measure.gpu_program import gpu_cost
from jaxcls.training.build import Training, build_training
from jaxcls.training.losses import soft_labels

IMAGENET_CLASSES, IMAGENET_EXAMPLES = 1000, 1_281_167  # of the training split
COPY_BYTES = 1 << 28

type Benchmark = dict[str, Any]


def benchmark(config: Config, *, synthetic: bool = False, seconds: float = 5.0) -> Benchmark:
    """Measures each part for at least `seconds`, and all parts together.

    If the image size grows by stage, the last and largest size is measured.

    Args:
      config: the training to measure.
      synthetic: use random images of 1,000 classes; the speeds of the data are then None.
      seconds: the time for each part.

    Returns:
      Images per second of data, augment, step and end_to_end; trace and compile seconds; FLOPs and
      bytes for each image (`cost_per_image`), and those of the augmentation alone (on a CPU it
      loops over images, and the compiler counts a loop once); and the step's bytes as a share of
      the device's measured memory bandwidth.

    Raises:
      UserError: the config does not fit the devices or the data.
    """
    source = None if synthetic else open_source(config.data, config.data.train_split)
    training = build_training(
        config,
        num_classes=source.num_classes if source else IMAGENET_CLASSES,
        num_examples=len(source) if source else IMAGENET_EXAMPLES,
        mesh=make_mesh(parallel=config.parallel),
    )
    compiled = training.compile_step()
    batch = synthetic_batch(training)
    augment, augment_compile_seconds = compile_augment(training)
    rates = _rates(training, compiled.program, augment, batch, source, seconds)
    flops, traffic = cost_per_image(training, compiled.program)
    augment_cost = augment.cost_analysis()
    images = config.data.batch_size / training.mesh.size  # of one device
    step_bytes = rates["step_images_per_second"] * traffic / training.mesh.size
    return {
        **rates,
        "trace_seconds": compiled.trace_seconds,
        "compile_seconds": compiled.compile_seconds,
        "augment_compile_seconds": augment_compile_seconds,
        "flops_per_image": flops,
        "bytes_per_image": traffic,
        "augment_flops_per_image": augment_cost["flops"] / images,
        "augment_bytes_per_image": augment_cost["bytes accessed"] / images,
        "memory_bandwidth_share": step_bytes / copy_bandwidth(seconds / 5),
        "num_devices": training.mesh.size,
        "device_kind": training.mesh.devices.flat[0].device_kind,
    }


def cost_per_image(training: Training, program: Any) -> tuple[float, float]:
    """Returns the FLOPs and bytes of a training step for each image, as the compiler counts them.

    On a GPU they are read out of the program's text (`gpu_program.gpu_cost`).

    The compiler counts the body of a loop once. So with several micro-batches, a step on a single
    one is compiled and counted. On a CPU the loop over rows in the depthwise kernel gradient is
    still counted once, which hides 0.4 % of the FLOPs and 17 % of the bytes of B0 at 224.

    Args:
      training: the training.
      program: its compiled step.
    """
    return cost_from_part(training, program_of_micro_batch(training, program))


def cost_from_part(training: Training, part: Any) -> tuple[float, float]:
    """Returns what `cost_per_image` does, from the program of `program_of_micro_batch`."""
    data, micro_batches = training.config.data, training.config.optimizer.micro_batches
    if has_gpus(training.mesh):  # whose compiler does not know the costs of our kernels
        gpu, images = gpu_cost(part.as_text()), data.batch_size / training.mesh.size
        return gpu.flops / images, gpu.moved / images
    cost = part.cost_analysis()
    images = data.batch_size / micro_batches / training.mesh.size  # of one device
    return cost["flops"] / images, cost["bytes accessed"] / images


def program_of_micro_batch(training: Training, program: Any) -> Any:
    """Returns the compiled step on one micro-batch.

    That is `program` itself if the batch is one, or on a GPU, whose programs tell how often their
    loops run.
    """
    config = training.config
    if config.optimizer.micro_batches == 1 or has_gpus(training.mesh):
        return program
    batch_size = config.data.batch_size // config.optimizer.micro_batches
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, batch_size=batch_size),
        optimizer=dataclasses.replace(config.optimizer, micro_batches=1),
    )
    single = build_training(
        config,
        num_classes=training.model.num_classes,
        num_examples=batch_size,
        mesh=training.mesh,
    )
    return single.compile_step().program


def _rates(
    training: Training,
    program: Callable,
    augment: Callable,
    batch: Any,
    source: Source | None,
    seconds: float,
) -> Benchmark:
    batch_size = training.config.data.batch_size
    state = training.init()

    def train_step(batch: Any) -> jax.Array:
        nonlocal state
        state, metrics = program(state, batch)
        return metrics["loss"]

    keys = map(random_key, itertools.count())  # new draws each time
    seconds_a_step = {
        "augment": _seconds_per_call(lambda: augment(next(keys), batch), seconds),
        "step": _seconds_per_call(lambda: train_step(batch), seconds),
    }
    if source is not None:
        config = training.config
        read = functools.partial(
            device_batches, source, config.data, seed=config.seed, mesh=training.mesh
        )
        with read() as batches:
            seconds_a_step["data"] = _seconds_per_call(lambda: next(batches), seconds, mean=True)
        with read() as batches:
            seconds_a_step["end_to_end"] = _seconds_per_call(
                lambda: train_step(next(batches)), seconds, mean=True
            )
    return {
        f"{part}_images_per_second": batch_size / seconds_a_step[part]
        if part in seconds_a_step
        else None
        for part in ("data", "augment", "step", "end_to_end")
    }


def synthetic_batch(training: Training) -> Any:
    """Makes a batch of random pixels that fill the canvases, and random labels, on the devices."""
    generator = np.random.default_rng(0)
    data = training.config.data
    limits = {"images": 256, "labels": training.model.num_classes}

    def make(name: str, shape: jax.ShapeDtypeStruct) -> jax.Array:
        if name == "sizes":
            values = np.full(shape.shape, data.canvas_size, shape.dtype)
        else:
            values = generator.integers(limits[name], size=shape.shape, dtype=shape.dtype)
        return jax.device_put(values, shape.sharding)

    return {name: make(name, shape) for name, shape in training.abstract_batch().items()}


def compile_augment(training: Training) -> tuple[Any, float]:
    """Compiles the augmentation as (key, batch) -> (images, labels); also returns the seconds."""
    config = training.config
    augment = make_augment(
        config.augment,
        image_size=config.data.image_size,
        crop_fraction=config.data.crop_fraction,
        mesh=training.mesh,
    )

    @jax.jit
    def run(key: jax.Array, batch: Any) -> Any:
        labels = soft_labels(batch["labels"], training.model.num_classes)
        positions = jnp.arange(config.data.batch_size, dtype=jnp.int32)
        return augment(key, jnp.float32(0), batch["images"], batch["sizes"], labels, positions)

    lowered = run.lower(random_key(0), training.abstract_batch())
    start = time.perf_counter()
    return lowered.compile(), time.perf_counter() - start


def _seconds_per_call(run: Callable[[], Any], seconds: float, *, mean: bool = False) -> float:
    """Measures the seconds of a call after two warm-up calls: the median, or the mean."""
    for _ in range(2):
        jax.block_until_ready(run())
    times = []
    while sum(times) < seconds or len(times) < 3:
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return statistics.fmean(times) if mean else statistics.median(times)


def copy_bandwidth(seconds: float = 1.0) -> float:
    """Measures the bytes per second that a device reads and writes when it adds 1 to an array."""
    array = jnp.zeros(COPY_BYTES // 4, jnp.float32)
    add = jax.jit(lambda x: x + 1)
    return 2 * COPY_BYTES / _seconds_per_call(lambda: add(array), seconds)


def describe_benchmark(report: Benchmark) -> str:
    """Formats the results for the user."""

    def rate(part: str) -> str:
        value = report[f"{part}_images_per_second"]
        return "not measured (synthetic)" if value is None else f"{value:,.1f} img/s"

    return "\n".join(
        [
            f"on {report['num_devices']} x {report['device_kind']}",
            f"data         {rate('data')}",
            f"augment      {rate('augment')}",
            f"step         {rate('step')} (augmentation included)",
            f"end to end   {rate('end_to_end')}",
            f"compiling    {report['compile_seconds']:.1f} s after "
            f"{report['trace_seconds']:.1f} s of tracing",
            f"             {report['augment_compile_seconds']:.1f} s of the augmentation alone",
            f"augment      {report['augment_flops_per_image'] / 1e9:.3f} GFLOP and "
            f"{report['augment_bytes_per_image'] / 1e6:.1f} MB an image",
            f"step         {report['flops_per_image'] / 1e9:.3f} GFLOP and "
            f"{report['bytes_per_image'] / 1e6:.1f} MB an image, which is "
            f"{report['memory_bandwidth_share']:.0%} of the measured memory bandwidth",
        ]
    )
