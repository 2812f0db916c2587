"""What the name of a network in timm says about it."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class TimmNetwork:
    """A network of timm.

    Attributes:
      model: the network's name in jaxcls, if jaxcls has it.
      padding: the padding of its convolutions.
      batch_norm_epsilon: added to the variances.
    """

    model: str
    padding: Literal["same", "symmetric"]
    batch_norm_epsilon: float


def timm_network(architecture: str) -> TimmNetwork:
    """Returns what timm's name says: "tf_efficientnet_b0" is efficientnet_b0 as in TensorFlow.

    Weights that were trained in TensorFlow have names with `tf_`, and its padding and epsilon. All
    others have PyTorch's (timm 1.0.31, models/efficientnet.py: `bn_eps` and `pad_type`).
    """
    model = architecture.removeprefix("tf_")
    if model != architecture:
        return TimmNetwork(model, "same", 1e-3)
    return TimmNetwork(model, "symmetric", 1e-5)
