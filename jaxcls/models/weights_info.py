"""What must be known to use weights: the network and its preprocessing."""

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

from jaxcls.config.schema import Size
from jaxcls.system.errors import UserError

if TYPE_CHECKING:  # `jaxcls presets` does without JAX, which takes seconds to import
    from jaxcls.models.interface import NetworkSpec

Triple = tuple[float, float, float]


class WeightsError(UserError):
    """Weights cannot be found, read or used; the message names the file or preset."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightsInfo:
    """The network that weights belong to, and the preprocessing that they were evaluated with.

    Attributes:
      model: the network's name for `create_model`.
      options: the keyword arguments of the factory, for a module of the user's.
      code: identifies the code of that module (`own_code.source_code`); None if unknown.
      mean: a number for each channel (red, green, blue); subtracted from images in [0, 1].
      std: a number for each channel; the difference is divided by it.
      padding: the padding of convolutions: "same" as in TensorFlow, or "symmetric" as in PyTorch.
      batch_norm_epsilon: added to the variances.
      pooling: how the last features are pooled.
      activation: "softmax" over the logits of all classes, or "sigmoid" of each logit.
      image_size: of images in pixels.
      crop_fraction: the share of the resized image's height and width that the crop keeps.
      interpolation: the kernel of the resize.
      value_range: the numbers of images of more than 8 bits that become 0 and 255; None for none.
      labels: whether an image has one class, or any number of them.
      class_names: in the order of the logits; None if unknown.
      revision: the commit of a repository on the Hugging Face Hub that they are from; None for
        other weights.
    """

    model: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    padding: Literal["same", "symmetric"] = "same"
    batch_norm_epsilon: float = 1e-3
    pooling: Literal["average", "max"] = "average"
    activation: Literal["softmax", "sigmoid"] = "softmax"
    image_size: Size
    crop_fraction: float = 0.875
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    class_names: tuple[str, ...] | None = None
    options: dict[str, bool | int | float | str] = dataclasses.field(default_factory=dict)
    code: str | None = None
    revision: str | None = None
    value_range: tuple[float, float] | None = None
    labels: Literal["single", "multiple"] = "single"

    @property
    def channels(self) -> int:
        """The channels of the images."""
        return len(self.mean)


def info_of_spec(spec: "NetworkSpec", **changes: Any) -> WeightsInfo:
    """Returns the info of a network with the values of its spec, with some fields changed."""
    fields = {
        "model": spec.name,
        "mean": spec.mean,
        "std": spec.std,
        "padding": spec.padding,
        "batch_norm_epsilon": spec.batch_norm_epsilon,
        "image_size": spec.image_size,
    }
    return WeightsInfo(**fields | changes)
