"""What a fault is."""

import dataclasses
from collections.abc import Callable

from trial import ONE, Shape, Trial


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fault:
    """A kind of fault.

    Attributes:
      inject: what happens to a training, and what must hold afterwards; raises TrialFailed.
      trials: how often the whole storm tries it.
      shape: on what the training runs.
      options: more options of the training's command.
      needs: what a machine must have: "compiler", "root" to mount file systems, or "gcsfs".
    """

    inject: Callable[[Trial], None]
    trials: int
    shape: Shape = ONE
    options: tuple[str, ...] = ()
    needs: str = ""
