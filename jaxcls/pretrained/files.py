"""Files of weights as plain arrays."""

import dataclasses
from pathlib import Path

import numpy as np


@dataclasses.dataclass(frozen=True)
class WeightsFile:
    """The arrays of a file of weights by name, and what else it says."""

    path: Path
    tensors: dict[str, np.ndarray]
    metadata: dict[str, str]
