"""What a rehearsal must know of a kind of device."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """A kind of device, with its published figures.

    Attributes:
      memory_bytes: the size of its memory.
      bandwidth: the bandwidth of its memory, in bytes per second.
      bfloat16_rate: its speed in dense bfloat16 products, in FLOP per second.
      cycles_per_second: its clock; 0 if it is not published.
      reserved_share: the share of the memory that JAX reserves, unless
        XLA_PYTHON_CLIENT_MEM_FRACTION is set.
      kernel_seconds: the time to start a kernel; 0 where a step is one program.
    """

    memory_bytes: int
    bandwidth: float
    bfloat16_rate: float
    cycles_per_second: float = 0
    kernel_seconds: float = 0
    reserved_share: float = 1
