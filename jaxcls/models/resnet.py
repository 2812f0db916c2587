"""ResNet v1.5: 18, 34, 50, 101 and 152 layers."""

import dataclasses
from collections.abc import Iterator
from typing import Any, Self

import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax

from jaxcls.models import layers
from jaxcls.models.image_network import BlockNetworkSpec, ImageNetwork, MakeNorm, block_name
from jaxcls.models.interface import CLASSIFIER
from jaxcls.models.normalisation import IMAGENET_MEAN, IMAGENET_STD
from jaxcls.models.padding import Padding, explicit_padding

_STEM_FILTERS = 64
_EXPANSION = 4  # the output channels of a bottleneck block, as a multiple of its inner ones


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResNetSpec(BlockNetworkSpec):
    """The spec of a ResNet.

    Attributes:
      repeats: the number of blocks in each stage.
      bottleneck: blocks of three convolutions (1x1, 3x3, 1x1) instead of two (3x3, 3x3).
    """

    image_size: int = 224
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    padding: Padding = "symmetric"
    batch_norm_epsilon: float = 1e-5
    repeats: tuple[int, ...]
    bottleneck: bool

    @property
    def repeats_by_stage(self) -> tuple[int, ...]:
        return self.repeats

    def with_repeats(self, repeats: tuple[int, ...]) -> Self:
        return dataclasses.replace(self, repeats=repeats)

    def with_least_widths(self) -> Self:
        return self  # all have the same widths

    @property
    def num_features(self) -> int:
        filters = _STEM_FILTERS * 2 ** (len(self.repeats) - 1)
        return filters * _EXPANSION if self.bottleneck else filters

    def build(self, *, num_classes: int, **settings: Any) -> "ResNet":
        return ResNet(spec=self, num_classes=num_classes, **settings)


RESNETS = (
    ResNetSpec(name="resnet18", repeats=(2, 2, 2, 2), bottleneck=False),
    ResNetSpec(name="resnet34", repeats=(3, 4, 6, 3), bottleneck=False),
    ResNetSpec(name="resnet50", repeats=(3, 4, 6, 3), bottleneck=True),
    ResNetSpec(name="resnet101", repeats=(3, 4, 23, 3), bottleneck=True),
    ResNetSpec(name="resnet152", repeats=(3, 8, 36, 3), bottleneck=True),
)


def block_names(spec: ResNetSpec) -> Iterator[tuple[str, int, int]]:
    """Yields every block's name ("block1a", "block1b", …), inner channels and stride."""
    for stage, repeats in enumerate(spec.repeats):
        for repeat in range(repeats):
            stride = 2 if stage and not repeat else 1
            yield block_name(stage + 1, repeat), _STEM_FILTERS * 2**stage, stride


class Block(nn.Module):
    """A residual block, with or without a bottleneck.

    Attributes:
      spec: the network's spec.
      filters: the channels of the 3x3 convolutions.
      stride: the stride of the first 3x3 convolution.
      norm: makes the batch norms.
    """

    spec: ResNetSpec
    filters: int
    stride: int
    norm: MakeNorm

    @nn.compact
    def __call__(self, x: Array, drop_path: Array | None, train: bool) -> Array:
        """Maps x [batch, height, width, in] to [batch, height/stride, width/stride, out].

        Args:
          x: the features.
          drop_path: [batch], multiplies each example's residual branch; None for 1.
          train: whether to use batch statistics.
        """
        # Channels, kernel size and stride of each convolution.
        if self.spec.bottleneck:
            convs = (
                (self.filters, 1, 1),
                (self.filters, 3, self.stride),
                (self.filters * _EXPANSION, 1, 1),
            )
        else:
            convs = ((self.filters, 3, self.stride), (self.filters, 3, 1))
        shortcut, padding = x, self.spec.padding
        for number, (filters, kernel_size, stride) in enumerate(convs, start=1):
            x = layers.Conv(filters, kernel_size, stride, padding, name=f"conv{number}")(x)
            last = number == len(convs)
            norm = self.norm(f"bn{number}", layers.identity if last else nn.relu)
            x = norm(x, train=train, multipliers=drop_path if last else None)
        if shortcut.shape != x.shape:
            conv = layers.Conv(x.shape[-1], 1, self.stride, padding, name="downsample_conv")
            shortcut = self.norm("downsample_bn", layers.identity)(conv(shortcut), train=train)
        return nn.relu(x + shortcut)


class ResNet(ImageNetwork):
    """ResNet (He et al. 2015, https://arxiv.org/abs/1512.03385), version 1.5.

    Version 1.5 has the stride of a bottleneck block in its 3x3 convolution, and not in the first
    1x1: so do torchvision, timm and MLPerf. The settings are those of `ImageNetwork`.
    """

    spec: ResNetSpec  # pyright: ignore[reportIncompatibleVariableOverride]

    @nn.compact
    def __call__(
        self,
        images: Array,
        *,
        train: bool = False,
        positions: Array | None = None,
        progress: Array | float = 0.0,
        features: bool = False,
    ) -> Array:
        """Returns logits or features; see `interface.Network.apply`."""
        spec, norm = self.spec, self.make_norm()
        uniforms = self.uniforms(images.shape[0], positions) if train else None
        factors = self.drop_path_factors(uniforms, progress)
        block_type = nn.remat(Block, static_argnums=(3,)) if self.remat else Block

        x = images.astype(self.compute_dtype)
        x = layers.Conv(_STEM_FILTERS, 7, 2, spec.padding, name="stem_conv")(x)
        x = norm("stem_bn", nn.relu)(x, train=train)
        around = [
            explicit_padding(size, kernel_size=3, stride=2, padding=spec.padding)
            for size in x.shape[1:3]
        ]
        x = nn.pool(x, -jnp.inf, lax.max, (3, 3), (2, 2), around)
        for index, (name, filters, stride) in enumerate(block_names(spec)):
            x = block_type(spec, filters, stride, norm, name=name)(x, factors[index], train)
        return self.classify(x, uniforms, progress=progress, features=features)

    def init(self, rngs: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Returns the initial variables, in which each block passes on its shortcut alone.

        For that, the scales of the last batch norms are 0 (Goyal et al. 2017,
        https://arxiv.org/abs/1706.02677), as in MLPerf and timm.
        """
        variables = super().init(rngs, *args, **kwargs)
        last = "bn3" if self.spec.bottleneck else "bn2"
        for name, *_ in block_names(self.spec):
            norm = variables["params"][name][last]
            norm["scale"] = jnp.zeros_like(norm["scale"])
        return variables

    def layers(self) -> list[tuple[str, ...]]:
        """The modules of the params by layer, from the stem to the classifier."""
        blocks = [(name,) for name, _, _ in block_names(self.spec)]
        return [("stem_conv", "stem_bn"), *blocks, (CLASSIFIER,)]
