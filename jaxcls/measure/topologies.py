"""Topologies of TPUs and GPUs to compile for."""

import dataclasses
import re
from typing import Any, Literal

from jaxcls.config.decoding import nearest
from jaxcls.measure.gpus import GPUS, OLDEST, TOO_OLD, Gpu, prepare_gpu_compiler, target_config
from jaxcls.measure.tpus import TPUS, Tpu, prepare_tpu_compiler
from jaxcls.system.errors import UserError

MAX_GPUS = 4096


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topology:
    """Devices that this machine need not have.

    Attributes:
      platform: whose compiler it is.
      chip: their kind.
      shape: their arrangement, as the compiler of the platform names it: "v5e:4x4", or for GPUs
        "1x2x8" for one group of two hosts with eight GPUs each.
    """

    platform: Literal["tpu", "cuda"]
    chip: Tpu | Gpu
    shape: str

    def prepare_compiler(self) -> None:
        """Must be called before JAX has devices.

        Raises:
          UserError: the compiler is not installed, or is not of the version of JAX.
        """
        prepare_tpu_compiler() if self.platform == "tpu" else prepare_gpu_compiler()
        import jax

        # A config file may have imported JAX before, which has read JAX_PLATFORMS then.
        jax.config.update("jax_platforms", "cpu")

    def devices(self) -> list[Any]:
        """Returns the devices, to compile for."""
        from jax.experimental import topologies

        if isinstance(self.chip, Tpu):
            return topologies.get_topology_desc(
                platform="tpu", topology_name=self.shape, chip_config_name=self.chip.chip_config
            ).devices
        try:
            return topologies.get_topology_desc(
                platform="cuda",
                topology_name="",
                target_config=target_config(self.chip),
                topology=self.shape,
            ).devices
        except NotImplementedError as error:
            raise UserError(
                "--topology: the config file starts JAX's devices when it is imported (for example "
                "by jax.devices() or jnp.zeros), before the GPU's compiler is loaded; move that "
                "into a function that the config does not call"
            ) from error


def find_topology(text: str) -> Topology:
    """Finds a topology such as "v5e:4x4" (TPUs), "h200:8" (GPUs) or "h200:2x8" (of two hosts).

    Raises:
      UserError: it is unknown; the message lists the known ones.
    """
    name, _, shape = text.lower().partition(":")
    if name in TPUS and shape in TPUS[name].shapes:
        return Topology(platform="tpu", chip=TPUS[name], shape=f"{name}:{shape}")
    if name in TOO_OLD:
        raise UserError(
            f"--topology: {name} has compute capability {_version(TOO_OLD[name])}, and XLA's "
            f"compiler needs {_version(OLDEST)} or newer; choose one of {', '.join(GPUS)}"
        )
    sizes = re.fullmatch(r"(?:([1-9]\d*)x)?([1-9]\d*)", shape or "1")
    if name in GPUS and sizes:
        hosts, gpus = int(sizes[1] or 1), int(sizes[2])
        if hosts * gpus > MAX_GPUS:
            raise UserError(f"--topology: {text!r} has more than {MAX_GPUS} GPUs; give fewer")
        return Topology(platform="cuda", chip=GPUS[name], shape=f"1x{hosts}x{gpus}")
    if name in GPUS:
        raise UserError(
            f"--topology: {text!r}: give the number of GPUs, {name}:8, or of hosts and of GPUs on "
            f"each, {name}:2x8"
        )
    known = [f"{tpu}:{{{','.join(chip.shapes)}}}" for tpu, chip in TPUS.items()]
    known += [f"{gpu}:[HOSTSx]GPUS" for gpu in GPUS]
    raise UserError(
        f"--topology: unknown topology {text!r}{_nearest(name)}; the known ones "
        + "are\n"
        + "\n".join(f"  {line}" for line in known)
        + "\n(the figures of other GPUs can be added to GPUS in jaxcls/measure/gpus.py)"
    )


def _nearest(name: str) -> str:
    """Names the kinds that a user may mean."""
    longer = [repr(gpu) for gpu in GPUS if name and gpu.startswith(name)]
    return f"; did you mean {' or '.join(longer)}?" if longer else nearest(name, [*TPUS, *GPUS])


def _version(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))
