"""Optimizers by name, with decay that spares biases and norms."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import optax

from jaxcls.config import OptimizerConfig
from jaxcls.decoding import ConfigError, nearest

# These need more at each update than gradients and parameters.
UNSUITED = ("lbfgs", "noisy_sgd")


def make_optimizer(
    optimizer: OptimizerConfig, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """Chains clipping, weight decay and the optax optimizer that the config names.

    Raises:
      ConfigError: optax has no such optimizer, or it does not take one of the options.
    """
    factory = _factory(optimizer.name)
    parameters = inspect.signature(factory).parameters
    for option in optimizer.options:
        if option not in parameters or option == "learning_rate":
            raise ConfigError(
                f"optimizer.options: {optimizer.name} takes no {option!r}"
                f"{nearest(option, parameters)}"
            )
    arguments: dict[str, Any] = dict(optimizer.options)
    before = []
    if optimizer.clip_norm is not None:
        before.append(optax.clip_by_global_norm(optimizer.clip_norm))
    mask = next((name for name in ("mask", "weight_decay_mask") if name in parameters), None)
    if mask and "weight_decay" in parameters:
        arguments |= {"weight_decay": optimizer.weight_decay, mask: kernels_only}
    elif optimizer.weight_decay:
        before.append(optax.add_decayed_weights(optimizer.weight_decay, mask=kernels_only))
    return optax.chain(*before, factory(learning_rate=schedule, **arguments))


def kernels_only(params: Any) -> Any:
    """True for the kernels of convolutions and dense layers: all that has two axes or more."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def _factory(name: str) -> Callable[..., optax.GradientTransformation]:
    names = (name for name in dir(optax) if not name.startswith("_") and name not in UNSUITED)
    known = [name for name in names if _takes_learning_rate(getattr(optax, name))]
    if name not in known:
        raise ConfigError(
            f"optimizer.name: optax has no optimizer {name!r}{nearest(name, known)}; "
            f"known: {', '.join(known)}"
        )
    return getattr(optax, name)


def _takes_learning_rate(value: Any) -> bool:
    """Whether it is one of optax's optimizers, which start from (learning_rate, …)."""
    if not inspect.isfunction(value) or value.__name__.startswith("scale_by"):
        return False
    return next(iter(inspect.signature(value).parameters), None) == "learning_rate"
