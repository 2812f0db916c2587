"""TPUs to compile for; this machine does not need to have them. Imports no JAX."""

import dataclasses
import importlib.util
import os

from jaxcls.measure.chips import Chip
from jaxcls.system.errors import UserError

GIB = 1 << 30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tpu(Chip):
    """A device of a TPU: a whole chip, but for tpu7x one of its two halves.

    Attributes:
      shapes: the available topologies, in chips.
      chip_config: how libtpu divides a chip into devices. Both cores of a v4 chip are one device
        for JAX, but not by libtpu's default.
    """

    shapes: tuple[str, ...]
    chip_config: str = "default"


TOPOLOGIES_2D = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
TOPOLOGIES_3D = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")

# Figures: cloud.google.com/tpu/docs. The clock is the rate of bfloat16 products by what the matrix
# units of 128 x 128 do in a cycle: v4 and v5p have eight of them, v5e has four. For the newer ones,
# what is published of the matrix units does not agree with the rate.
TPUS = {
    "v4": Tpu(
        memory_bytes=32 * GIB,
        bandwidth=1228e9,
        bfloat16_rate=275e12,
        cycles_per_second=1.05e9,
        shapes=TOPOLOGIES_3D,
        chip_config="megacore",
    ),
    "v5e": Tpu(
        memory_bytes=16 * GIB,
        bandwidth=819e9,
        bfloat16_rate=197e12,
        cycles_per_second=1.5e9,
        shapes=TOPOLOGIES_2D,
    ),
    "v5p": Tpu(
        memory_bytes=95 * GIB,
        bandwidth=2765e9,
        bfloat16_rate=459e12,
        cycles_per_second=1.75e9,
        shapes=TOPOLOGIES_3D,
    ),
    "v6e": Tpu(memory_bytes=32 * GIB, bandwidth=1640e9, bfloat16_rate=918e12, shapes=TOPOLOGIES_2D),
    "tpu7x": Tpu(
        memory_bytes=192 * GIB // 2,
        bandwidth=7380e9 / 2,
        bfloat16_rate=2307e12 / 2,
        shapes=(*TOPOLOGIES_3D, "8x8x16", "8x16x16"),
    ),
}


def prepare_tpu_compiler() -> None:
    """Lets the TPU's compiler run without a TPU; must be called before JAX has devices.

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
