"""TPU topologies to compile for; this machine does not need to have them. Imports no JAX."""

import dataclasses
import importlib.util
import os
from typing import Any

from jaxcls.system.errors import UserError

GIB = 1 << 30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """A TPU chip, with its published numbers.

    Attributes:
      hbm_bytes: the size of its memory.
      bandwidth: the bandwidth of its memory, in bytes per second.
      bfloat16_rate: its speed in bfloat16, in FLOP per second.
      shapes: the available topologies.
    """

    hbm_bytes: int
    bandwidth: float
    bfloat16_rate: float
    shapes: tuple[str, ...]


FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")

CHIPS = {
    "v4": Chip(hbm_bytes=32 * GIB, bandwidth=1228e9, bfloat16_rate=275e12, shapes=CUBES),
    "v5e": Chip(hbm_bytes=16 * GIB, bandwidth=819e9, bfloat16_rate=197e12, shapes=FLAT),
    "v5p": Chip(hbm_bytes=95 * GIB, bandwidth=2765e9, bfloat16_rate=459e12, shapes=CUBES),
    "v6e": Chip(hbm_bytes=32 * GIB, bandwidth=1640e9, bfloat16_rate=918e12, shapes=FLAT),
}


def chip_of(topology: str) -> Chip:
    """Returns the chip of a topology such as "v5e:4x4".

    Raises:
      UserError: the topology is unknown; the message lists the known ones.
    """
    name, _, shape = topology.partition(":")
    if name not in CHIPS or shape not in CHIPS[name].shapes:
        known = "\n".join(f"  {name}:{{{','.join(chip.shapes)}}}" for name, chip in CHIPS.items())
        raise UserError(f"--topology: unknown topology {topology!r}; the known ones are\n{known}")
    return CHIPS[name]


def prepare_environment() -> None:
    """Prepares the TPU's compiler to run without a TPU; must be called before JAX is imported.

    Raises:
      UserError: the compiler is not installed.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "--topology: the TPU's compiler is not installed; install the extra tpu-compiler: "
            "uv run --isolated --extra tpu-compiler jaxcls compile CONFIG --topology …"
        )
    os.environ.update(
        JAX_PLATFORMS="cpu",
        TPU_SKIP_MDS_QUERY="1",
        TPU_WORKER_HOSTNAMES="localhost",
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",
    )


def devices_of(topology: str) -> list[Any]:
    """Returns the devices of a topology, to compile for."""
    from jax.experimental import topologies

    return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
