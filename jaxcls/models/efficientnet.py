"""EfficientNet, V1, V2 and Lite: one Linen module that reads its block table from a `ModelSpec`."""

import dataclasses
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from jaxcls.config.progressive import at_progress
from jaxcls.models import layers
from jaxcls.models.batch_norm import BatchNorm, BatchNormGroups
from jaxcls.models.padding import Padding
from jaxcls.models.random_values import initial_batch_stats, initial_params


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockSpec:
    """One row of the block table: equal blocks, one after another.

    Attributes:
      fused: Fused-MBConv blocks (one 3x3 convolution) instead of MBConv (1x1, then depthwise).
      repeats: the number of blocks.
      filters: the output channels.
      expansion: the channels inside a block, as a multiple of its input channels.
      stride: the stride of the first block; the others have 1.
      se_ratio: the squeeze-and-excite bottleneck as a share of the input channels; 0 for none.
      kernel_size: height and width of the spatial convolution.
    """

    fused: bool
    repeats: int
    filters: int
    expansion: int
    stride: int
    se_ratio: float
    kernel_size: int = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A model's block table, and the input that its published weights expect.

    Attributes:
      name: the model's name for `create_model`.
      stem_filters: the channels of the first convolution.
      blocks: the rows of the block table, in order.
      head_filters: the channels of the last 1x1 convolution, which are the features.
      image_size: the native height and width in pixels.
      mean: red, green, blue; subtracted from images in [0, 1].
      std: red, green, blue; the difference is divided by it.
      padding: the padding of convolutions: "same" as in TensorFlow, or "symmetric" as in PyTorch.
      batch_norm_epsilon: added to the variances.
      activation: the activation after batch norms and inside squeeze-and-excite.
    """

    name: str
    stem_filters: int
    blocks: tuple[BlockSpec, ...]
    head_filters: int
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    padding: Padding = "same"
    batch_norm_epsilon: float = 1e-3
    activation: layers.ActivationName = "silu"

    @property
    def num_blocks(self) -> int:
        return sum(row.repeats for row in self.blocks)


def block_names(spec: ModelSpec) -> Iterator[tuple[str, BlockSpec, int]]:
    """Yields every block's name ("block1a", "block1b", …), row of the table and stride."""
    for number, row in enumerate(spec.blocks, start=1):
        for repeat in range(row.repeats):
            name = f"block{number}{_letters(repeat)}"
            yield name, row, row.stride if repeat == 0 else 1


def _above_zero(rate: float | tuple[float, ...]) -> bool:
    """Returns whether a rate is above 0 in any stage."""
    return any(rate) if isinstance(rate, tuple) else rate > 0


def _letters(index: int) -> str:
    """Returns "a" for 0, "z" for 25, "aa" for 26."""
    return (_letters(index // 26 - 1) if index >= 26 else "") + chr(ord("a") + index % 26)


@dataclasses.dataclass(frozen=True)
class _Norm:
    """Makes a model's batch norms, which differ only in their activation."""

    groups: BatchNormGroups
    momentum: float
    epsilon: float
    frozen: bool

    def __call__(self, name: str, activation: layers.Activation) -> nn.Module:
        return BatchNorm(
            groups=self.groups,
            momentum=self.momentum,
            epsilon=self.epsilon,
            activation=activation,
            frozen=self.frozen,
            name=name,
        )


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
    norm: _Norm

    @nn.compact
    def __call__(
        self, x: Array, uniforms: Array | None, drop_path: Array | None, train: bool
    ) -> Array:
        """Maps x [batch, height, width, in] to [batch, height/stride, width/stride, filters].

        Args:
          x: the features.
          uniforms: [batch], decides which examples drop the residual branch; None keeps all.
          drop_path: [], the probability to drop the branch; given together with `uniforms`.
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
        single = row.fused and row.expansion == 1
        if row.expansion != 1:
            conv = spatial if row.fused else layers.Conv
            x = conv(features * row.expansion, name="expand_conv")(x)
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
        x = self.norm("project_bn", activation if single else layers.identity)(x, train=train)
        if self.stride == 1 and features == row.filters:
            if uniforms is not None and drop_path is not None:
                x = layers.drop_path(x, uniforms, rate=drop_path)
            x = x + inputs
        return x


class EfficientNet(nn.Module):
    """EfficientNet (Tan and Le 2019, https://arxiv.org/abs/1905.11946), its Lite form and V2.

    V2 is Tan and Le 2021, https://arxiv.org/abs/2104.00298.

    Dropout and drop-path depend only on the "dropout" key, the layer and the example's place in the
    global batch, and not on how the batch is split over devices or micro-batches.

    Attributes:
      spec: the block table and the input's preprocessing.
      num_classes: the width of the classifier; 0 for none.
      dropout: the dropout rate before the classifier: one number, or one for each training stage.
      drop_path: the stochastic-depth rate, which rises linearly from 0 at the first block (block i
        of n has i / n of it): one number, or one for each training stage.
      batch_norm: "global", or the number of consecutive examples that are normalised together.
      batch_norm_momentum: the share of the moving statistics that a training step keeps.
      freeze_batch_norm: normalise by the moving statistics in training too, and do not update them.
      pooling: how the last features are pooled over height and width.
      head_scale: a factor for the classifier's initial kernel; 0 makes it zeros.
      compute_dtype: the dtype of activations. Parameters, statistics and results are float32, or
        float64 if this is float64.
      remat: compute each block again in the backward pass, to save memory.
    """

    spec: ModelSpec
    num_classes: int
    dropout: float | tuple[float, ...] = 0.2
    drop_path: float | tuple[float, ...] = 0.2
    batch_norm: BatchNormGroups = "global"
    batch_norm_momentum: float = 0.9
    freeze_batch_norm: bool = False
    pooling: Literal["average", "max"] = "average"
    head_scale: float = 1.0
    compute_dtype: jnp.dtype = jnp.dtype("float32")
    remat: bool = False

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
        """Returns logits [batch, num_classes], or pooled features [batch, spec.head_filters].

        Args:
          images: [batch, height, width, 3], normalised with the mean and std of `spec`.
          train: whether to use batch statistics, dropout and drop-path; needs the "dropout" rng if
            a rate is above 0, and mutable "batch_stats".
          positions: int32 [batch], each example's place in the global batch; default 0, 1, ….
          progress: the completed share of the training (`jaxcls.config.progressive.progress`),
            which selects the rates if there is one for each stage.
          features: whether to return the features; always so for a model without classes.
        """
        spec, activation = self.spec, layers.ACTIVATIONS[self.spec.activation]
        norm = _Norm(
            groups=self.batch_norm,
            momentum=self.batch_norm_momentum,
            epsilon=spec.batch_norm_epsilon,
            frozen=self.freeze_batch_norm,
        )
        uniforms = self._uniforms(images.shape[0], positions) if train else None
        highest = at_progress(self.drop_path, progress) if _above_zero(self.drop_path) else None
        block_type = nn.remat(Block, static_argnums=(4,)) if self.remat else Block

        x = images.astype(self.compute_dtype)
        x = layers.Conv(
            spec.stem_filters, kernel_size=3, stride=2, padding=spec.padding, name="stem_conv"
        )(x)
        x = norm("stem_bn", activation)(x, train=train)
        for index, (name, row, stride) in enumerate(block_names(spec)):
            draws, rate = None, None
            if uniforms is not None and highest is not None and index:
                draws, rate = uniforms[:, index], highest * (index / spec.num_blocks)
            x = block_type(spec, row, stride, norm, name=name)(x, draws, rate, train)
        x = layers.Conv(spec.head_filters, name="head_conv")(x)
        x = norm("head_bn", activation)(x, train=train)

        dtype = jnp.promote_types(self.compute_dtype, jnp.float32)
        if self.pooling == "max":
            # Not jnp.max: its gradient compares x with the maximum. If the compiler computes x
            # again with other rounding, nothing is equal, and the gradient divides by 0.
            x = nn.max_pool(x, x.shape[1:3])[:, 0, 0].astype(dtype)
        else:
            x = jnp.mean(x, axis=(1, 2), dtype=dtype)
        if features or not self.num_classes:
            return x
        if uniforms is not None and _above_zero(self.dropout):
            rate = at_progress(self.dropout, progress)
            x = layers.dropout(x, uniforms[:, spec.num_blocks :], rate=rate)
        return nn.Dense(
            self.num_classes,
            dtype=dtype,
            param_dtype=dtype,
            kernel_init=nn.initializers.zeros,
            name="classifier",
        )(x)

    def init(self, rngs: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Returns the initial variables, with random kernels; arguments as of `nn.Module.init`.

        All kernels come from one draw, which compiles in 2 s on a CPU; one draw for each layer
        takes 13 s.
        """
        shapes = jax.eval_shape(
            lambda key: super(EfficientNet, self).init(key, *args, **kwargs), rngs
        )
        key = rngs["params"] if isinstance(rngs, Mapping) else rngs
        return {
            "params": initial_params(key, shapes["params"], head_scale=self.head_scale),
            "batch_stats": initial_batch_stats(shapes["batch_stats"]),
        }

    def _uniforms(self, batch: int, positions: Array | None) -> Array | None:
        """Draws all numbers of the step at once, [batch, num_blocks + head_filters] in [0, 1).

        One draw for each example compiles much faster than one for each layer.
        """
        if not _above_zero(self.drop_path) and not _above_zero(self.dropout):
            return None
        if positions is None:
            positions = jnp.arange(batch)
        key = self.make_rng("dropout")
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, positions)
        count = self.spec.num_blocks + self.spec.head_filters
        dtype = layers.statistics_dtype(self.compute_dtype)
        return jax.vmap(lambda k: jax.random.uniform(k, (count,), dtype))(keys)
