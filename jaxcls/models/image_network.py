"""What EfficientNet and ResNet share: settings, draws, the classifier, and initial values."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, Self

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from jaxcls.config.progressive import at_progress
from jaxcls.distributed.mesh import row_major, triton_mesh
from jaxcls.models import layers
from jaxcls.models.batch_norm import BatchNorm, BatchNormGroups
from jaxcls.models.interface import CLASSIFIER, NetworkSpec
from jaxcls.models.random_values import initial_batch_stats, initial_params

Rate = float | tuple[float, ...]


class BlockNetworkSpec(NetworkSpec):
    """The spec of a network of residual blocks, in stages whose blocks but the first are equal."""

    @property
    def repeats_by_stage(self) -> tuple[int, ...]:
        """The number of residual blocks in each stage."""
        raise NotImplementedError

    def with_repeats(self, repeats: tuple[int, ...]) -> Self:
        """Returns the network with another number of blocks in each stage."""
        raise NotImplementedError

    def with_least_widths(self) -> Self:
        """Returns a network with the same modules, of as few channels as possible."""
        raise NotImplementedError

    @property
    def num_blocks(self) -> int:
        """The number of residual blocks."""
        return sum(self.repeats_by_stage)


def block_name(stage: int, index: int) -> str:
    """Returns "block1a", "block1b", …, "block1z", "block1aa", … for the blocks of stage 1."""
    return f"block{stage}{_letters(index)}"


def _letters(index: int) -> str:
    return (_letters(index // 26 - 1) if index >= 26 else "") + chr(ord("a") + index % 26)


@dataclasses.dataclass(frozen=True)
class MakeNorm:
    """Makes a network's batch norms, which differ only in their activation."""

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


class ImageNetwork(nn.Module):
    """A network of residual blocks; subclasses define `__call__` and `layers`.

    Dropout and drop-path depend only on the "dropout" key, the layer and the example's place in the
    global batch, and not on how the batch is split over devices or micro-batches.

    Attributes:
      spec: the layers, and the input's preprocessing.
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

    spec: BlockNetworkSpec
    num_classes: int
    dropout: Rate = 0.2
    drop_path: Rate = 0.2
    batch_norm: BatchNormGroups = "global"
    batch_norm_momentum: float = 0.9
    freeze_batch_norm: bool = False
    pooling: Literal["average", "max"] = "average"
    head_scale: float = 1.0
    compute_dtype: jnp.dtype = jnp.dtype("float32")
    remat: bool = False

    def init(self, rngs: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Returns the initial variables, with random kernels; arguments as of `nn.Module.init`.

        The images' height and width change nothing. All kernels come from one draw, which compiles
        in 2 s on a CPU; one draw for each layer takes 13 s.
        """
        images, *others = args
        pixels = jnp.zeros((len(images), 1, 1, images.shape[-1]))  # tracing takes less time so
        shapes = jax.eval_shape(
            lambda key: nn.Module.init(self, key, pixels, *others, **kwargs), rngs
        )
        key = rngs["params"] if isinstance(rngs, Mapping) else rngs
        return {
            "params": initial_params(key, shapes["params"], head_scale=self.head_scale),
            "batch_stats": initial_batch_stats(shapes["batch_stats"]),
        }

    def make_norm(self) -> MakeNorm:
        """Returns the function that makes this network's batch norms."""
        return MakeNorm(
            groups=self.batch_norm,
            momentum=self.batch_norm_momentum,
            epsilon=self.spec.batch_norm_epsilon,
            frozen=self.freeze_batch_norm,
        )

    def uniforms(self, batch: int, positions: Array | None) -> Array | None:
        """Draws all numbers of the step at once, [batch, num_blocks + num_features] in [0, 1).

        One draw for each example compiles much faster than one for each layer. None if no rate is
        above 0.
        """
        if not _above_zero(self.drop_path) and not _above_zero(self.dropout):
            return None
        if positions is None:
            positions = jnp.arange(batch)
        key = self.make_rng("dropout")
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, positions)
        count = self.spec.num_blocks + self.spec.num_features
        dtype = layers.statistics_dtype(self.compute_dtype)
        return jax.vmap(lambda k: jax.random.uniform(k, (count,), dtype))(keys)

    def drop_path_factors(
        self, uniforms: Array | None, progress: Array | float
    ) -> list[Array | None]:
        """What each block multiplies its branch with, for each example [batch]; None for 1."""
        count = self.spec.num_blocks
        if uniforms is None or not _above_zero(self.drop_path):
            return [None] * count
        rates = at_progress(self.drop_path, progress) * (jnp.arange(count) / count)
        factors = jnp.where(uniforms[:, :count] >= rates, 1 / (1 - rates), 0.0)
        factors = factors.astype(self.compute_dtype)
        return [None, *(factors[:, index] for index in range(1, count))]

    def classify(
        self, x: Array, uniforms: Array | None, *, progress: Array | float, features: bool
    ) -> Array:
        """Pools the last features x [batch, height, width, num_features], and makes logits of them.

        Args:
          x: the last features.
          uniforms: the draws of the step in training.
          progress: the completed share of the training, for rates that change by stage.
          features: whether to return the pooled features; always so without classes.
        """
        dtype = jnp.promote_types(self.compute_dtype, jnp.float32)
        if self.pooling == "max":
            # Not jnp.max: its gradient compares x with the maximum. If the compiler computes x
            # again with other rounding, nothing is equal, and the gradient divides by 0.
            x = nn.max_pool(x, x.shape[1:3])[:, 0, 0].astype(dtype)
        else:
            if triton_mesh(x.shape[0]) is not None:
                # Or the compiler may put channels first for the mean, and transpose x and its
                # gradient.
                x = row_major(x)
            x = jnp.mean(x, axis=(1, 2), dtype=dtype)
        if features or not self.num_classes:
            return x
        if uniforms is not None and _above_zero(self.dropout):
            rate = at_progress(self.dropout, progress)
            x = layers.dropout(x, uniforms[:, self.spec.num_blocks :], rate=rate)
        return nn.Dense(
            self.num_classes,
            dtype=dtype,
            param_dtype=dtype,
            kernel_init=nn.initializers.zeros,
            name=CLASSIFIER,
        )(x)


def _above_zero(rate: Rate) -> bool:
    """Returns whether a rate is above 0 in any stage."""
    return any(rate) if isinstance(rate, tuple) else rate > 0
