"""The mesh of devices, and how arrays are laid out on it.

Batches are split by example over all axes of the mesh: `data`, or with fully sharded parameters
`data` and `fsdp`. The state is replicated, or split along one axis (`state_shardings`).
"""

import contextlib
import functools
import glob
import logging
import math
import os
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax import Array
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from jaxcls.config import ParallelConfig
from jaxcls.config.decoding import ConfigError
from jaxcls.distributed.agree import num_processes
from jaxcls.system.errors import UserError

DATA_AXIS, FSDP_AXIS = "data", "fsdp"
MAX_FSDP_DEVICES = 16  # few dimensions of the networks are divisible by more

# Device files of accelerators, by the extra of jaxcls with which JAX uses them.
ACCELERATOR_FILES = {
    "cuda": ("/dev/nvidia[0-9]*",),
    "tpu": ("/dev/accel[0-9]*", "/dev/vfio/[0-9]*"),
}

logger = logging.getLogger("jaxcls")


def make_mesh(
    devices: Sequence[Any] | None = None, *, parallel: ParallelConfig | None = None
) -> Mesh:
    """Makes a mesh over `devices` (default: all): [data], or [data, fsdp] for state "fsdp".

    Raises:
      ConfigError: parallel.fsdp_devices does not divide the devices, or is given without fsdp.
      UserError: as `all_devices`.
    """
    parallel = parallel or ParallelConfig()
    if devices is None:
        devices = all_devices()
        warn_of_idle_accelerator()
    shape = {DATA_AXIS: len(devices)}
    if parallel.state == "fsdp":
        shards = parallel.fsdp_devices or largest_divisor(len(devices), MAX_FSDP_DEVICES)
        if shards > MAX_FSDP_DEVICES or len(devices) % shards:
            raise ConfigError(
                f"parallel.fsdp_devices: expected a divisor of the {len(devices)} devices that is "
                f"at most {MAX_FSDP_DEVICES}, got {shards}"
            )
        shape = {DATA_AXIS: len(devices) // shards, FSDP_AXIS: shards}
    elif parallel.fsdp_devices is not None:
        raise ConfigError('parallel.fsdp_devices: has no meaning unless parallel.state is "fsdp"')
    return jax.make_mesh(
        tuple(shape.values()),
        tuple(shape),
        axis_types=(AxisType.Auto,) * len(shape),
        devices=devices,
    )


def all_devices() -> list[Any]:
    """The devices of all processes. The first call starts them.

    Raises:
      UserError: JAX_PLATFORMS names devices that this machine does not have, or a driver fails. In
        a job of several processes, a driver that fails raises JAX's own error.
    """
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:
        chosen, said = jax.config.jax_platforms, str(error).partition("\n")[0]
        # JAX raises AssertionError if CUDA is asked for and there is no GPU.
        absent = isinstance(error, AssertionError) or "list of known backends" in said
        if num_processes() > 1 and not absent:
            raise
        if chosen:
            raise UserError(
                f"JAX_PLATFORMS: JAX finds no devices for {chosen!r}"
                f"{f' ({said})' if said else ''}; unset it to use the devices of this machine, set "
                f"it to cpu, or install the extra that the devices need: "
                f"{' or '.join(ACCELERATOR_FILES)}"
            ) from error
        raise UserError(
            f"JAX cannot start the devices ({said}); correct this, or set JAX_PLATFORMS=cpu to use "
            f"the CPU only"
        ) from error


def largest_divisor(number: int, at_most: int) -> int:
    """The largest divisor of `number` that is at most `at_most`."""
    return max(divisor for divisor in range(1, at_most + 1) if number % divisor == 0)


@functools.cache  # warns only once
def warn_of_idle_accelerator() -> None:
    """Warns if this machine has a GPU or TPU but JAX uses the CPU without being told to."""
    if jax.default_backend() != "cpu" or os.environ.get("JAX_PLATFORMS"):
        return
    for extra, patterns in ACCELERATOR_FILES.items():
        if any(glob.glob(pattern) for pattern in patterns):
            logger.warning(
                "this machine has an accelerator that JAX does not use; install jaxcls with the "
                "extra %r, or set JAX_PLATFORMS=cpu if you want to use the CPU",
                extra,
            )


def has_gpus(mesh: Mesh) -> bool:
    """Whether the devices are GPUs, which may be those of a topology that is only compiled for."""
    return mesh.devices.flat[0].platform in ("gpu", "cuda", "rocm")


def has_tpus(mesh: Mesh) -> bool:
    """Whether the devices are TPUs, which may be those of a topology that is only compiled for."""
    return mesh.devices.flat[0].platform == "tpu"


def supports_triton(mesh: Mesh) -> bool:
    """Whether XLA compiles our kernels of Triton for the devices.

    It does for NVIDIA's GPUs with compute capability 8.0 or newer. (JAX knows the capability of
    virtual GPUs whose name does not begin with NVIDIA, but Pallas does not.)
    """
    device = mesh.devices.flat[0]
    capability = re.fullmatch(r"(\d+)\.\d+", str(getattr(device, "compute_capability", "")))
    is_nvidia = has_gpus(mesh) and device.device_kind.startswith("NVIDIA")
    return is_nvidia and capability is not None and int(capability[1]) >= 8


def kernels_on(mesh: Mesh) -> contextlib.AbstractContextManager[Any]:
    """While a step is traced: the network's operations may use kernels of Triton on these devices.

    A kernel must be told how the batch is split; `triton_mesh` tells it. Where devices do not
    support them, and outside of a step, operations of XLA compute the same.
    """
    if supports_triton(mesh):
        return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)
    return contextlib.nullcontext()


def triton_mesh(batch: int) -> AbstractMesh | None:
    """The devices of `kernels_on`; None if there are none, or they do not share a batch evenly."""
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else mesh.abstract_device
    on_gpus = device is not None and device.platform == "gpu"
    return mesh if on_gpus and batch % mesh.size == 0 else None


def row_major(array: Array) -> Array:
    """The array with its last axis contiguous in memory, as arrays of the state are."""
    return with_layout_constraint(array, Layout(tuple(range(array.ndim))))


def split_by_example(mesh: Mesh) -> NamedSharding:
    """The sharding of arrays whose first axis is the batch."""
    return NamedSharding(mesh, batch_spec(mesh))


def batch_spec(mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """The partition of a first axis over all devices, in the mesh's order."""
    return PartitionSpec(mesh.axis_names if len(mesh.axis_names) > 1 else DATA_AXIS)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of arrays of which every device holds a copy."""
    return NamedSharding(mesh, PartitionSpec())


def split_leaves(tree: Any, mesh: Mesh, axis: str) -> Any:
    """Shardings that split each array along its largest dimension that the size of `axis` divides.

    An array without such a dimension is replicated.
    """

    def split(leaf: Any) -> NamedSharding:
        sizes = [(size, dim) for dim, size in enumerate(leaf.shape) if size % mesh.shape[axis] == 0]
        if not sizes or mesh.shape[axis] == 1:
            return replicated(mesh)
        _, dim = max(sizes)
        return NamedSharding(mesh, PartitionSpec(*[None] * dim, axis))

    return jax.tree.map(split, tree)


def bytes_per_device(tree: Any) -> int:
    """Bytes that a tree of arrays, or of shapes with shardings, takes on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def replicated_bytes(tree: Any) -> int:
    """The part of `bytes_per_device` that belongs to replicated arrays."""
    return bytes_per_device(
        [leaf for leaf in jax.tree.leaves(tree) if leaf.sharding.is_fully_replicated]
    )


def copy_to_all(tree: Any, mesh: Mesh) -> Any:
    """Copies arrays, which each process holds completely, to every device of a mesh."""
    return jax.device_put(jax.device_get(tree), replicated(mesh))
