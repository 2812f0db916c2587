"""EfficientNet, V1, V2 and Lite: one Linen module that reads its block table from a `ModelSpec`."""

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any, Self

from flax import linen as nn
from jax import Array

from jaxcls.models import layers
from jaxcls.models.image_network import BlockNetworkSpec, ImageNetwork, MakeNorm, block_name
from jaxcls.models.interface import CLASSIFIER


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockSpec:
    """One row of the block table: equal blocks, one after another.

    Attributes:
      fused: Fused-MBConv blocks (one 3x3 convolution) instead of MBConv (1x1, then depthwise).
      repeats: the number of blocks.
      filters: the output channels.
      expansion: the channels inside a block, as a multiple of its input channels; with 1, there is
        no expansion convolution.
      stride: the stride of the first block; the others have 1.
      se_ratio: the squeeze-and-excite bottleneck as a share of the input channels; 0 for none.
      kernel_size: height and width of the spatial convolution.
      inner_filters: the channels inside a block in place of `expansion`; such blocks always have an
        expansion convolution, even if it does not widen.
      residual: whether a block adds its input to its output where their shapes are the same.
    """

    fused: bool
    repeats: int
    filters: int
    expansion: int
    stride: int
    se_ratio: float
    kernel_size: int = 3
    inner_filters: int | None = None
    residual: bool = True

    @property
    def expands(self) -> bool:
        """Whether the blocks have an expansion convolution."""
        return self.inner_filters is not None or self.expansion != 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSpec(BlockNetworkSpec):
    """The spec of an EfficientNet, with its block table.

    Attributes:
      stem_filters: the channels of the first convolution.
      blocks: the rows of the block table, in order.
      head_filters: the channels of the last 1x1 convolution, which are the features.
      activation: the activation after batch norms and inside squeeze-and-excite.
    """

    stem_filters: int
    blocks: tuple[BlockSpec, ...]
    head_filters: int
    activation: layers.ActivationName = "silu"

    @property
    def repeats_by_stage(self) -> tuple[int, ...]:
        return tuple(row.repeats for row in self.blocks)

    def with_repeats(self, repeats: tuple[int, ...]) -> Self:
        rows = zip(self.blocks, repeats, strict=True)
        blocks = tuple(dataclasses.replace(row, repeats=count) for row, count in rows)
        return dataclasses.replace(self, blocks=blocks)

    def with_least_widths(self) -> Self:
        blocks = tuple(
            dataclasses.replace(
                row, filters=1, expansion=2 if row.expands else 1, inner_filters=None
            )
            for row in self.blocks
        )
        return dataclasses.replace(self, stem_filters=1, blocks=blocks, head_filters=1)

    @property
    def num_features(self) -> int:
        return self.head_filters

    def build(self, *, num_classes: int, **settings: Any) -> "EfficientNet":
        return EfficientNet(spec=self, num_classes=num_classes, **settings)


def block_names(spec: ModelSpec) -> Iterator[tuple[str, BlockSpec, int]]:
    """Yields every block's name ("block1a", "block1b", …), row of the table and stride."""
    for number, row in enumerate(spec.blocks, start=1):
        for repeat in range(row.repeats):
            yield block_name(number, repeat), row, row.stride if repeat == 0 else 1


class Block(nn.Module):
    """An inverted residual block, MBConv or Fused-MBConv.

    Attributes:
      spec: the model's spec.
      row: the row of the block table.
      stride: the stride of this block.
      norm: makes the batch norms.
    """

    spec: ModelSpec
    row: BlockSpec
    stride: int
    norm: MakeNorm

    @nn.compact
    def __call__(self, x: Array, drop_path: Array | None, train: bool) -> Array:
        """Maps x [batch, height, width, in] to [batch, height/stride, width/stride, filters].

        Args:
          x: the features.
          drop_path: [batch], multiplies each example's residual branch; None for 1.
          train: whether to use batch statistics.
        """
        row, inputs, features = self.row, x, x.shape[-1]
        assert not (row.fused and row.se_ratio), "no network has both"
        activation = layers.ACTIVATIONS[self.spec.activation]
        window = {
            "kernel_size": row.kernel_size,
            "stride": self.stride,
            "padding": self.spec.padding,
        }
        spatial = partial(layers.Conv, **window)
        # A fused block's spatial convolution is its expansion, or else its projection.
        single = row.fused and not row.expands
        if row.expands:
            conv = spatial if row.fused else layers.Conv
            x = conv(row.inner_filters or features * row.expansion, name="expand_conv")(x)
            x = self.norm("expand_bn", activation)(x, train=train)
        if not row.fused:
            x = layers.DepthwiseConv(**window, name="depthwise_conv")(x)
            gate_params = None
            if row.se_ratio:
                bottleneck = max(1, int(features * row.se_ratio))
                gate_params = layers.SqueezeExcite(bottleneck, x.shape[-1], name="se")(x.dtype)
            x = self.norm("depthwise_bn", activation)(x, train=train, gate_params=gate_params)
        conv = spatial if single else layers.Conv
        x = conv(row.filters, name="project_conv")(x)
        is_residual = row.residual and self.stride == 1 and features == row.filters
        norm = self.norm("project_bn", activation if single else layers.identity)
        x = norm(x, train=train, multipliers=drop_path if is_residual else None)
        return x + inputs if is_residual else x


class EfficientNet(ImageNetwork):
    """EfficientNet (Tan and Le 2019, https://arxiv.org/abs/1905.11946), its Lite form and V2.

    V2 is Tan and Le 2021, https://arxiv.org/abs/2104.00298. The settings are those of
    `ImageNetwork`.
    """

    spec: ModelSpec  # pyright: ignore[reportIncompatibleVariableOverride]

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
        spec, activation = self.spec, layers.ACTIVATIONS[self.spec.activation]
        norm = self.make_norm()
        uniforms = self.uniforms(images.shape[0], positions) if train else None
        factors = self.drop_path_factors(uniforms, progress)
        block_type = nn.remat(Block, static_argnums=(3,)) if self.remat else Block

        x = images.astype(self.compute_dtype)
        x = layers.Conv(
            spec.stem_filters, kernel_size=3, stride=2, padding=spec.padding, name="stem_conv"
        )(x)
        x = norm("stem_bn", activation)(x, train=train)
        for index, (name, row, stride) in enumerate(block_names(spec)):
            x = block_type(spec, row, stride, norm, name=name)(x, factors[index], train)
        x = layers.Conv(spec.head_filters, name="head_conv")(x)
        x = norm("head_bn", activation)(x, train=train)
        return self.classify(x, uniforms, progress=progress, features=features)

    def layers(self) -> list[tuple[str, ...]]:
        """The modules of the params by layer, from the stem to the classifier."""
        blocks = [(name,) for name, _, _ in block_names(self.spec)]
        return [("stem_conv", "stem_bn"), *blocks, ("head_conv", "head_bn"), (CLASSIFIER,)]
