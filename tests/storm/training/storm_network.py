"""The network of the storm: two layers with batch norm and dropout, so that a start is quick."""

import flax.linen as nn
import jax
import jax.numpy as jnp

_DARK = -0.46  # mean of the pixels, below which are a quarter of the batches


class Network(nn.Module):
    """A convolution and a classifier."""

    num_classes: int
    width: int = 8
    image_size = 8

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = nn.Conv(self.width, (3, 3), strides=2, name="conv")(images)
        x = nn.relu(nn.BatchNorm(not train, momentum=0.9, name="norm")(x))
        x = nn.Dropout(0.2, deterministic=not train)(x.mean((1, 2)))
        return nn.Dense(self.num_classes, name="classifier")(x)


class Spoiled(Network):
    """As `Network`, but for some batches its logits are no numbers."""

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        logits = super().__call__(images, train=train)
        spoiled = train & (images.mean() < _DARK)
        return jnp.where(spoiled, jnp.nan, logits)
