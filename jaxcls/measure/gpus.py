"""NVIDIA GPUs to compile for; this machine does not need to have them. Imports no JAX."""

import dataclasses
import importlib.metadata
import os

from jaxcls.measure.chips import Chip
from jaxcls.system.errors import UserError

OLDEST = (7, 5)  # compute capability; for older ones the compiler ends the process
PLUGIN = "jax-cuda13-plugin"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gpu(Chip):
    """A GPU, with what XLA's compiler must know of it.

    The figures are those of XLA's own list (xla/backends/gpu/target_config/specs in its
    repository). The rate is that of NVIDIA's data sheets. A kernel usually takes 2 to 3
    microseconds to start.

    Attributes:
      title: NVIDIA's name. Pallas finds the compute capability by it, and must be given the name
        of a card that it knows.
      capability: the compute capability.
      multiprocessors: their number.
      clock: in GHz.
      l2_bytes: the size of the L2 cache.
      shared_bytes: the shared memory of a multiprocessor; a block can have 1024 bytes less.
      lanes: arithmetic units of a multiprocessor for float32.
      threads: the largest number of threads of a multiprocessor.
    """

    title: str
    capability: tuple[int, int]
    multiprocessors: int
    clock: float
    l2_bytes: int
    shared_bytes: int = 233472
    lanes: int = 128
    threads: int = 2048
    kernel_seconds: float = 2.5e-6
    reserved_share: float = 0.75


GPUS = {
    "a100-40": Gpu(
        title="NVIDIA A100-SXM4-40GB",
        capability=(8, 0),
        memory_bytes=42331013120,
        bandwidth=1555.2e9,
        bfloat16_rate=312e12,
        multiprocessors=108,
        clock=1.41,
        l2_bytes=41943040,
        shared_bytes=167936,
        lanes=64,
    ),
    "a100-80": Gpu(
        title="NVIDIA A100-SXM4-80GB",
        capability=(8, 0),
        memory_bytes=85100068864,
        bandwidth=2039.04e9,
        bfloat16_rate=312e12,
        multiprocessors=108,
        clock=1.41,
        l2_bytes=41943040,
        shared_bytes=167936,
        lanes=64,
    ),
    "a6000": Gpu(
        title="NVIDIA RTX A6000 (like NVIDIA A10)",
        capability=(8, 6),
        memory_bytes=51041271808,
        bandwidth=768.096e9,
        bfloat16_rate=154.8e12,
        multiprocessors=84,
        clock=1.8,
        l2_bytes=6291456,
        shared_bytes=102400,
        threads=1536,
    ),
    "h100": Gpu(
        title="NVIDIA H100 80GB HBM3",
        capability=(9, 0),
        memory_bytes=84942979072,
        bandwidth=3352.32e9,
        bfloat16_rate=989.4e12,
        multiprocessors=132,
        clock=1.98,
        l2_bytes=52428800,
    ),
    "h200": Gpu(
        title="NVIDIA H200",
        capability=(9, 0),
        memory_bytes=151397597184,
        bandwidth=4800e9,
        bfloat16_rate=989.4e12,
        multiprocessors=132,
        clock=1.98,
        l2_bytes=52428800,
    ),
    "b200": Gpu(
        title="NVIDIA B200",
        capability=(10, 0),
        memory_bytes=191514411008,
        bandwidth=7672.32e9,
        bfloat16_rate=2250e12,
        multiprocessors=148,
        clock=1.965,
        l2_bytes=132644864,
    ),
    "b300": Gpu(
        title="NVIDIA B300",
        capability=(10, 3),
        memory_bytes=297021865984,
        bandwidth=7936e9,
        bfloat16_rate=2250e12,
        multiprocessors=158,
        clock=1.965,
        l2_bytes=135528448,
    ),
    "gb200": Gpu(
        title="NVIDIA GB200",
        capability=(10, 0),
        memory_bytes=197897748480,
        bandwidth=7928.064e9,
        bfloat16_rate=2500e12,
        multiprocessors=152,
        clock=2.062,
        l2_bytes=135528448,
    ),
    "gb300": Gpu(
        title="NVIDIA GB300",
        capability=(10, 3),
        memory_bytes=297021079552,
        bandwidth=7928.064e9,
        bfloat16_rate=2500e12,
        multiprocessors=152,
        clock=2.07,
        l2_bytes=135528448,
    ),
    "rtx6000pro": Gpu(
        title="NVIDIA RTX PRO 6000 Blackwell",
        capability=(12, 0),
        memory_bytes=103079215104,
        bandwidth=1792e9,
        bfloat16_rate=503.8e12,
        multiprocessors=188,
        clock=2.6,
        l2_bytes=134217728,
        shared_bytes=131072,
        threads=1536,
    ),
}
# Whose names users know, but for which the compiler has no code.
TOO_OLD = {"k80": (3, 7), "p100": (6, 0), "v100": (7, 0)}


def prepare_gpu_compiler() -> None:
    """Lets the GPU's compiler run without a GPU; must be called before JAX has devices.

    Raises:
      UserError: the compiler is not installed, or is not of the version of JAX.
    """
    how = "uv run --isolated --extra gpu-compiler jaxcls compile CONFIG --topology …"
    try:
        plugin, jax = (importlib.metadata.version(name) for name in (PLUGIN, "jax"))
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(
            "--topology: the GPU's compiler is not installed; install the extra gpu-compiler: "
            f"{how}"
        ) from error
    if plugin != jax:
        raise UserError(
            f"--topology: the GPU's compiler ({PLUGIN} {plugin}) is not of the version of JAX "
            f"({jax}), and would not be loaded; install both together: {how}"
        )
    # With "cuda", JAX fails without a GPU. With "cpu" it still loads the plugin and its compiler.
    os.environ["JAX_PLATFORMS"] = "cpu"


def target_config(gpu: Gpu) -> str:
    """The text of a `stream_executor.GpuTargetConfigProto`, which tells XLA what a GPU is like."""
    major, minor = gpu.capability
    info = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 49152,
        "shared_memory_per_core": gpu.shared_bytes,
        "shared_memory_per_block_optin": gpu.shared_bytes - 1024,
        "threads_per_core_limit": gpu.threads,
        "core_count": gpu.multiprocessors,
        "fpus_per_core": gpu.lanes,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 65535,
        "block_dim_limit_z": 65535,
        "memory_bandwidth": int(gpu.bandwidth),
        "l2_cache_size": gpu.l2_bytes,
        "clock_rate_ghz": gpu.clock,
        "device_memory_size": gpu.memory_bytes,
        "registers_per_core_limit": 65536,
        "registers_per_block_limit": 65536,
    }
    fields = " ".join(f"{name}: {value}" for name, value in info.items())
    return (
        f"gpu_device_info {{ {fields} "
        f"cuda_compute_capability {{ major: {major} minor: {minor} }} }} "
        f'platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }} '
        f'runtime_version {{ major: 13 }} device_description_str: "{gpu.title}"'
    )
