"""Which parameters train, from when on, and how fast: freezing, layer-wise decay, rates by pattern.

A parameter is named by its path, such as "block1a/project_conv/kernel". Trees of floats have the
structure of the parameters.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from jaxcls.config import OptimizerConfig
from jaxcls.decoding import ConfigError, nearest
from jaxcls.models.efficientnet import ModelSpec, block_names

PyTree = Any


def frozen_shares(optimizer: OptimizerConfig, params: PyTree) -> PyTree:
    """The share of the training for which each parameter is frozen: 0 for never, 1 for always.

    Args:
      optimizer: `freeze` is used.
      params: parameters, or their shapes.

    Raises:
      ConfigError: a pattern that matches no parameter.
    """
    return _first_match(optimizer.freeze, params, field="optimizer.freeze", otherwise=0.0)


def rate_factors(optimizer: OptimizerConfig, params: PyTree, spec: ModelSpec) -> PyTree:
    """The factor on each parameter's learning rate, from `rates` and `layer_decay`.

    The classifier is the last layer, with decay 1; before it come the head convolution, the blocks
    in their order, and the stem (as in BEiT, https://arxiv.org/abs/2106.08254).

    Args:
      optimizer: `rates` and `layer_decay` are used.
      params: parameters, or their shapes.
      spec: of the network that they belong to.

    Raises:
      ConfigError: a pattern that matches no parameter.
    """
    rates = _first_match(optimizer.rates, params, field="optimizer.rates", otherwise=1.0)
    blocks = [name for name, _, _ in block_names(spec)]
    layers = {name: layer for layer, name in enumerate(["stem", *blocks, "head", "classifier"])}

    def decayed(path: tuple[Any, ...], rate: float) -> float:
        module = path[0].key
        layer = layers[module if module in layers else module.split("_")[0]]
        return rate * optimizer.layer_decay ** (layers["classifier"] - layer)

    return jax.tree_util.tree_map_with_path(decayed, rates)


def adapt(
    optimizer: optax.GradientTransformation, *, frozen: PyTree, factors: PyTree
) -> optax.GradientTransformation:
    """The optimizer with `rate_factors`, and without state for what is always frozen.

    A factor on the update is one on the learning rate, weight decay included, because every optax
    optimizer multiplies by its learning rate last.
    """
    if any(share == 1 for share in jax.tree.leaves(frozen)):
        optimizer = optax.masked(optimizer, jax.tree.map(lambda share: share < 1, frozen))
    if any(factor != 1 for factor in jax.tree.leaves(factors)):
        scale = optax.stateless(
            lambda updates, _: jax.tree.map(
                lambda update, factor: update * jnp.asarray(factor, update.dtype), updates, factors
            )
        )
        optimizer = optax.chain(optimizer, scale)
    return optimizer


def stop_frozen(params: PyTree, frozen: PyTree) -> PyTree:
    """The parameters, those that are always frozen as constants that need no gradient."""
    return jax.tree.map(
        lambda leaf, share: lax.stop_gradient(leaf) if share == 1 else leaf, params, frozen
    )


def zero_frozen(updates: PyTree, frozen: PyTree, done: Array) -> PyTree:
    """A tree like the parameters, with zeros for what is frozen when `done` of all is over."""
    return jax.tree.map(
        lambda leaf, share: leaf if share in (0, 1) else jnp.where(done >= share, leaf, 0),
        updates,
        frozen,
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
                f"{field}: {pattern!r} matches no parameter that an earlier pattern has not taken"
                f"{nearest(pattern, modules)}; parts of the network: {', '.join(params)}"
            )
    return values
