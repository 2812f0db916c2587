"""What the rest of jaxcls knows of a network.

Training, evaluation, export and pretrained weights use only this, so a new network changes none of
them.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax.numpy as jnp
from jax import Array

from jaxcls.config.sizes import ImageSize
from jaxcls.models.padding import Padding

PyTree = Any
Variables = dict[str, PyTree]  # {"params", "batch_stats"}; no batch_stats without batch norm

CLASSIFIER = "classifier"  # the module of the params that makes logits of features


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkSpec:
    """A network's name, and the input that its weights expect.

    Attributes:
      name: the name for `create_model`.
      image_size: the native size of its images.
      mean: a number for each channel (red, green, blue); subtracted from images in [0, 1].
      std: a number for each channel; the difference is divided by it.
      padding: the padding of convolutions: "same" as in TensorFlow, or "symmetric" as in PyTorch.
      batch_norm_epsilon: added to the variances.
    """

    name: str
    image_size: ImageSize
    mean: tuple[float, ...]
    std: tuple[float, ...]
    padding: Padding = "same"
    batch_norm_epsilon: float = 1e-3

    @property
    def channels(self) -> int:
        """The channels of its images."""
        return len(self.mean)

    @property
    def num_features(self) -> int:
        """The width of the pooled features, which the classifier gets."""
        raise NotImplementedError

    def build(self, *, num_classes: int, **settings: Any) -> "Network":
        """Makes the network; `settings` are those of `create_model`."""
        raise NotImplementedError


class Network(Protocol):
    """An image classifier, as a Linen module is one.

    Its variables are {"params": …, "batch_stats": …}, nested by module. A network without batch
    norm has no batch_stats.
    """

    @property
    def spec(self) -> NetworkSpec:
        """The name, the width, and the input that the weights expect."""
        ...

    @property
    def num_classes(self) -> int:
        """The width of the classifier; 0 for none."""
        ...

    @property
    def compute_dtype(self) -> jnp.dtype:
        """The dtype of activations."""
        ...

    def layers(self) -> Sequence[Sequence[str]]:
        """The modules of the params by layer, from the first layer to the classifier."""
        ...

    def init(self, rngs: Any, images: Any, /) -> Variables:
        """Returns the initial variables for images [batch, height, width, channels]."""
        ...

    def apply(
        self,
        variables: Mapping[str, PyTree],
        images: Any,
        /,
        *,
        train: bool = False,
        positions: Array | None = None,
        progress: Array | float = 0.0,
        features: bool = False,
        rngs: dict[str, Array] | None = None,
        mutable: Any = False,
    ) -> Any:
        """Returns logits [batch, num_classes]; with `mutable`, also the updated variables.

        Args:
          variables: the variables.
          images: [batch, height, width, channels], normalised with the mean and std of `spec`.
          train: whether to use batch statistics and dropout.
          positions: int32 [batch], each example's place in the global batch.
          progress: the completed share of the training, for rates that change by stage.
          features: whether to return the pooled features [batch, num_features] instead.
          rngs: {"dropout": key} in training.
          mutable: ["batch_stats"] in training.
        """
        ...
