"""The mesh of devices and how arrays lie on it.

One axis, `data`: batches are split over it by example, everything else is a copy on every device.
"""

import functools
import glob
import logging
import os
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxcls.augment_config import mix_of
from jaxcls.config import Config
from jaxcls.decoding import ConfigError

DATA_AXIS = "data"

# By the extra that makes JAX use what stands behind these device files.
ACCELERATOR_FILES = {
    "cuda": ("/dev/nvidia[0-9]*",),
    "tpu": ("/dev/accel[0-9]*", "/dev/vfio/[0-9]*"),
}

logger = logging.getLogger("jaxcls")


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A one-dimensional mesh over `devices` (default: all of them)."""
    if devices is None:
        devices = jax.devices()
        warn_of_idle_accelerator()
    return jax.make_mesh(
        (len(devices),), (DATA_AXIS,), axis_types=(AxisType.Auto,), devices=devices
    )


@functools.cache  # one warning is enough
def warn_of_idle_accelerator() -> None:
    """Warns if there is a GPU or TPU, and JAX computes on the CPU without having been told to."""
    if jax.default_backend() != "cpu" or os.environ.get("JAX_PLATFORMS"):
        return
    for extra, patterns in ACCELERATOR_FILES.items():
        if any(glob.glob(pattern) for pattern in patterns):
            logger.warning(
                "this machine has an accelerator that JAX does not use; install jaxcls with the "
                "extra %r, or set JAX_PLATFORMS=cpu if the CPU is meant",
                extra,
            )


def split_by_example(mesh: Mesh) -> NamedSharding:
    """For arrays whose first axis is the batch."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def replicated(mesh: Mesh) -> NamedSharding:
    """For arrays of which every device holds a copy."""
    return NamedSharding(mesh, PartitionSpec())


def check_divisible(config: Config, num_devices: int) -> None:
    """Checks what the batch must be a multiple of on this many devices.

    Raises:
      ConfigError: names the field and the nearest sizes that work.
    """
    batch_size, micro_batches = config.data.batch_size, config.optimizer.micro_batches
    parts = num_devices * micro_batches
    if batch_size % parts:
        smaller, larger = batch_size // parts * parts, -(-batch_size // parts) * parts
        sizes = f"{smaller} or {larger}" if smaller else str(larger)
        raise ConfigError(
            f"data.batch_size: {batch_size} does not split evenly over {num_devices} devices"
            + (f" x {micro_batches} micro-batches" if micro_batches > 1 else "")
            + f"; use {sizes}"
        )
    mix = mix_of(config.augment)
    if mix and (batch_size // parts) % mix.group_size:
        raise ConfigError(
            f"augment.{len(config.augment) - 1}.group_size: groups of {mix.group_size} do not "
            f"divide the {batch_size // parts} examples that a device has in a micro-batch"
        )
    group = config.model.batch_norm
    if group != "global" and (batch_size // parts) % group:
        raise ConfigError(
            f"model.batch_norm: groups of {group} do not divide the {batch_size // parts} examples "
            f"that a device has in a micro-batch; use a divisor of {batch_size // parts}"
        )
