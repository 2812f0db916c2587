"""Accuracy as counts, which add up to the same result however examples are split in batches."""

import jax.numpy as jnp
from jax import Array


def count_hits(logits: Array, labels: Array, mask: Array | None = None) -> dict[str, Array]:
    """Counts the examples whose label is the best guess, or among the best five.

    Args:
      logits: [batch, classes]; with fewer than five classes every example is in the top five.
      labels: as for `label_ranks`.
      mask: bool [batch], False for padding.

    Returns:
      Sums `top1`, `top5` and `num_examples`, float32 scalars (exact up to 2**24).
    """
    mask = jnp.ones(labels.shape[:1], bool) if mask is None else mask
    ranks = label_ranks(logits, labels)
    return {
        "top1": jnp.sum((ranks < 1) & mask, dtype=jnp.float32),
        "top5": jnp.sum((ranks < 5) & mask, dtype=jnp.float32),
        "num_examples": jnp.sum(mask, dtype=jnp.float32),
    }


def count_hits_of_classes(logits: Array, labels: Array, mask: Array) -> dict[str, Array]:
    """Counts the examples of each class, and those whose label is the best guess.

    Args:
      logits: [batch, classes].
      labels: class numbers, int [batch].
      mask: bool [batch], False for padding.

    Returns:
      Sums `class_top1` and `class_examples`, float32 [classes].
    """
    zeros = jnp.zeros(logits.shape[-1], jnp.float32)
    hits = (label_ranks(logits, labels) < 1) & mask
    return {"class_top1": zeros.at[labels].add(hits), "class_examples": zeros.at[labels].add(mask)}


def label_ranks(logits: Array, labels: Array) -> Array:
    """How many classes rank before the label of each example, int32 [batch].

    Equal logits rank by class number, so that a network with constant output does not score, and
    NaN ranks last. Comparisons keep each example on its device; a sort would gather the logits of
    all devices.

    If an image has several classes, the one with the highest logit counts; an image without any
    ranks behind all of them.

    Args:
      logits: [batch, classes].
      labels: class numbers, int [batch], or which classes an image has, bool [batch, classes].
    """
    if labels.ndim == 2:
        usable = labels & ~jnp.isnan(logits)
        best = jnp.argmax(jnp.where(usable, logits, -jnp.inf), axis=-1)
        return jnp.where(jnp.any(usable, axis=-1), label_ranks(logits, best), logits.shape[-1] + 5)
    classes = jnp.arange(logits.shape[-1])
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    tied_before = (logits == own) & (classes < labels[:, None])
    return jnp.sum((logits > own) | tied_before | jnp.isnan(own), axis=-1)
