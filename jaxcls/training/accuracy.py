"""Accuracy as counts, which add up to the same result however examples are split in batches."""

import jax.numpy as jnp
from jax import Array


def count_hits(logits: Array, labels: Array, mask: Array | None = None) -> dict[str, Array]:
    """Counts the examples whose label is the best guess, or among the best five.

    Equal logits rank by class number, so that a network with constant output does not score, and
    NaN ranks last. Comparisons keep each example on its device; a sort would gather the logits of
    all devices.

    Args:
      logits: [batch, classes]; with fewer than five classes every example is in the top five.
      labels: class numbers, int [batch].
      mask: bool [batch], False for padding.

    Returns:
      Sums `top1`, `top5` and `num_examples`, float32 scalars (exact up to 2**24).
    """
    mask = jnp.ones(labels.shape, bool) if mask is None else mask
    classes = jnp.arange(logits.shape[-1])
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    tied_before = (logits == own) & (classes < labels[:, None])
    rank = jnp.sum(
        (logits > own) | tied_before | jnp.isnan(own), axis=-1
    )  # how many classes rank before the label
    return {
        "top1": jnp.sum((rank < 1) & mask, dtype=jnp.float32),
        "top5": jnp.sum((rank < 5) & mask, dtype=jnp.float32),
        "num_examples": jnp.sum(mask, dtype=jnp.float32),
    }
