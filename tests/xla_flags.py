"""How the tests compile for the CPU: two to seven times faster, to slower programs.

LLVM optimizes nothing, and fused operations are emitted by XLA's older code, which computes what
several elements share, such as the draws of an image, anew for each element.
"""

QUICK = (
    "--xla_backend_optimization_level=0 "
    "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters=true"
)


def xla_flags(*, devices: int) -> str:
    """The XLA_FLAGS of a process with that many devices of the CPU."""
    return f"--xla_force_host_platform_device_count={devices} {QUICK}"
