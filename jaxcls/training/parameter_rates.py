"""When each parameter starts to train, and at which rate: freezing, layer-wise decay, patterns.

A parameter is named by its path, such as "block1a/project_conv/kernel". The trees of numbers here
have the structure of the parameters.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from jaxcls.config import OptimizerConfig
from jaxcls.config.decoding import ConfigError, nearest
from jaxcls.models.interface import PyTree
from jaxcls.training.optimizers import make_optimizer


def unfreeze_steps(optimizer: OptimizerConfig, params: PyTree, *, num_steps: int) -> PyTree:
    """The step, counted from 0, at which each parameter starts to train; `num_steps` for never.

    Args:
      optimizer: its field `freeze` decides.
      params: the parameters, or their shapes.
      num_steps: the length of the training.

    Raises:
      ConfigError: a pattern matches no parameter, or nothing is left to train.
    """
    shares = _first_match(optimizer.freeze, params, field="optimizer.freeze", otherwise=0.0)
    if min(jax.tree.leaves(shares)) == 1:
        raise ConfigError("optimizer.freeze: freezes every parameter for all of the training")
    return jax.tree.map(lambda share: round(share * num_steps), shares)


def rate_factors(
    optimizer: OptimizerConfig, params: PyTree, layers: Sequence[Sequence[str]]
) -> PyTree:
    """The factor on each parameter's learning rate, from `rates` and `layer_decay`.

    The classifier is the last layer and has factor 1. Each layer before it has `layer_decay` times
    the factor of the next one, as in BEiT (https://arxiv.org/abs/2106.08254).

    Args:
      optimizer: its fields `rates` and `layer_decay` decide.
      params: the parameters, or their shapes.
      layers: the modules of the params by layer, the classifier last (`Network.layers`).

    Raises:
      ConfigError: a pattern matches no parameter, or the network does not order its layers.
    """
    rates = _first_match(optimizer.rates, params, field="optimizer.rates", otherwise=1.0)
    if optimizer.layer_decay == 1:
        return rates
    depth = {name: number for number, names in enumerate(reversed(layers)) for name in names}
    if not depth:
        raise ConfigError(
            f"optimizer.layer_decay: the network does not say in which order its layers are; give "
            f"its module the attribute `layers`, from the first to the last of {', '.join(params)}"
        )

    def decayed(path: tuple[Any, ...], rate: float) -> float:
        return rate * optimizer.layer_decay ** depth[path[0].key]

    return jax.tree_util.tree_map_with_path(decayed, rates)


def trains_alike(unfreeze_at: PyTree, factors: PyTree) -> bool:
    """Whether all parameters train from the first step on, and at the same rate.

    Then the optimizer does not depend on which parameters it updates.
    """
    return set(jax.tree.leaves(unfreeze_at)) == {0} and set(jax.tree.leaves(factors)) == {1}


def make_training_optimizer(
    optimizer: OptimizerConfig,
    schedule: optax.Schedule,
    *,
    unfreeze_at: PyTree,
    factors: PyTree,
    num_steps: int,
) -> optax.GradientTransformation:
    """The optimizer of a config, for parameters that start to train at different steps.

    Parameters that start together have an optimizer of their own, which does nothing until then. If
    all shared one step count, Adam would not correct the averages of parameters that start late,
    and their first update would be too large. Parameters that never train have no optimizer.

    Args:
      optimizer: the config of the optimizer.
      schedule: from the step of the training to the learning rate.
      unfreeze_at: the step at which each parameter starts to train (`unfreeze_steps`).
      factors: the factor on each learning rate (`rate_factors`). It multiplies the update, weight
        decay included, because every optax optimizer multiplies by the learning rate last.
      num_steps: the length of the training.

    Raises:
      ConfigError: the optimizer is unknown, or does not take an option.
    """
    begins = set(jax.tree.leaves(unfreeze_at))
    if begins == {0}:
        whole = make_optimizer(optimizer, schedule)
    else:
        unclipped = dataclasses.replace(optimizer, clip_norm=None)
        parts = {
            begin: optax.set_to_zero()
            if begin == num_steps
            else _resting_until(begin, unclipped, schedule)
            for begin in begins
        }
        whole = optax.partition(parts, unfreeze_at)
        if optimizer.clip_norm is not None:
            whole = optax.chain(optax.clip_by_global_norm(optimizer.clip_norm), whole)
    if any(factor != 1 for factor in jax.tree.leaves(factors)):
        scale = optax.stateless(
            lambda updates, _: jax.tree.map(
                lambda update, factor: update * jnp.asarray(factor, update.dtype), updates, factors
            )
        )
        whole = optax.chain(whole, scale)
    return whole


def _resting_until(
    begin: int, optimizer: OptimizerConfig, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """The optimizer, which changes neither its state nor the parameters before step `begin`."""
    if not begin:
        return make_optimizer(optimizer, schedule)
    late = make_optimizer(optimizer, lambda count: schedule(count + begin))
    return optax.conditionally_mask(late, lambda step, **_: jnp.greater_equal(step, begin))


def stop_frozen(params: PyTree, unfreeze_at: PyTree, *, num_steps: int) -> PyTree:
    """The parameters; those that never train are constants, so that no gradient is computed."""
    return jax.tree.map(
        lambda leaf, begin: lax.stop_gradient(leaf) if begin == num_steps else leaf,
        params,
        unfreeze_at,
    )


def zero_frozen(grads: PyTree, unfreeze_at: PyTree, step: Array) -> PyTree:
    """The gradients, with zeros for parameters that do not train yet, so no norm counts them."""
    return jax.tree.map(
        lambda leaf, begin: jnp.where(step >= begin, leaf, 0) if begin else leaf, grads, unfreeze_at
    )


def _first_match(
    patterns: Mapping[str, float], params: PyTree, *, field: str, otherwise: float
) -> PyTree:
    """The value of the first pattern that matches each parameter's whole name."""
    matched: set[str] = set()

    def value_of(path: tuple[Any, ...], _: Any) -> float:
        name = "/".join(part.key for part in path)
        for pattern, value in patterns.items():
            if re.fullmatch(pattern, name):
                matched.add(pattern)
                return float(value)
        return otherwise

    values = jax.tree_util.tree_map_with_path(value_of, params)
    for pattern in patterns:
        if pattern not in matched:
            modules = [f"{name}.*" for name in params]
            raise ConfigError(
                f"{field}: {pattern!r} matches no parameter, or only those of earlier patterns"
                f"{nearest(pattern, modules)}; parts of the network: {', '.join(params)}"
            )
    return values
