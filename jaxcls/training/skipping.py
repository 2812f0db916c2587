"""Steps that are skipped because their loss or gradients are not finite (`on_non_finite` "skip").

A skipped step changes nothing but the count of steps, so that the next one has the data, the random
draws and the learning rate that it would have had. Whether a step is skipped follows from the loss
and the gradients of the whole batch, so it is the same on all devices.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxcls.models.interface import PyTree


def count_skipped(before: Array, *, loss: Array, grad_norm: Array) -> Array:
    """The number of steps in a row that were skipped, int32 scalar; 0 if this one is taken.

    Args:
      before: the number up to the step before.
      loss: the loss of the whole batch.
      grad_norm: the norm of all gradients.
    """
    return jnp.where(jnp.isfinite(loss) & jnp.isfinite(grad_norm), 0, before + 1)


def unless_skipped(new: PyTree, old: PyTree, *, skipped: Array | None) -> PyTree:
    """The new tree if the step is taken, and else the old one.

    Args:
      new: arrays after the step.
      old: the same arrays before it.
      skipped: the result of `count_skipped`; None if no step is ever skipped.
    """
    if skipped is None:
        return new

    def choose(new: Array, old: Array) -> Array:
        # Compared for each element, because a kernel (`FusedUpdate`) takes no scalar of booleans.
        return jnp.where(jnp.broadcast_to(skipped, new.shape) == 0, new, old)

    return jax.tree.map(choose, new, old)


def optimizer_unless_skipped(new: PyTree, old: PyTree, *, skipped: Array | None) -> PyTree:
    """As `unless_skipped`, for the state of an optimizer, whose schedules advance in any case.

    The counts of schedules, and of the steps that frozen parameters wait for, are places in the
    plan of the training. Other counts, such as Adam's for its bias correction, say how many
    gradients the moments have seen, so they stay as the moments do.
    """
    if skipped is None:
        return new

    def choose(new: Any, old: Any) -> Any:
        if _is_schedule(new):
            return new
        if isinstance(new, optax.ConditionallyMaskState):
            inner = optimizer_unless_skipped(new.inner_state, old.inner_state, skipped=skipped)
            return new._replace(inner_state=inner)
        return unless_skipped(new, old, skipped=skipped)

    return jax.tree.map(
        choose,
        new,
        old,
        is_leaf=lambda node: _is_schedule(node) or isinstance(node, optax.ConditionallyMaskState),
    )


def _is_schedule(state: Any) -> bool:
    """Whether a part of an optimizer's state is that of a schedule: a count, and nothing else."""
    return getattr(state, "_fields", ()) == ("count",)
