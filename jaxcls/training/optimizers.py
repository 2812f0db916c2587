"""Optimizers of optax by name; weight decay leaves out biases and norms."""

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any

import jax
import optax

from jaxcls.config import OptimizerConfig
from jaxcls.config.decoding import ConfigError, largest, nearest
from jaxcls.system.shell import join_words

# The first two need more than gradients and parameters; the others take no schedule.
UNSUITED = ("lbfgs", "noisy_sgd", "optimistic_adam", "rprop", "sm3")
OWN_FIELDS = ("learning_rate", "weight_decay")  # given as optimizer.*, never as an option
MASKS = ("mask", "weight_decay_mask")


def make_optimizer(
    optimizer: OptimizerConfig, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """Chains clipping, weight decay and the optax optimizer that the config names.

    Raises:
      ConfigError: the optimizer is unknown, or does not take an option.
    """
    factory = _factory(optimizer.name)
    parameters = inspect.signature(factory).parameters
    known = [name for name in parameters if name not in OWN_FIELDS + MASKS]
    for option in OWN_FIELDS:
        if option in optimizer.options:
            raise ConfigError(f"optimizer.options: set {option!r} as optimizer.{option}")
    if unknown := [option for option in optimizer.options if option not in known]:
        names = " and no option ".join(f"{option!r}{nearest(option, known)}" for option in unknown)
        flags = join_words(
            word for option in unknown for word in (f"--optimizer.options.{option}", "None")
        )
        raise ConfigError(
            f"optimizer.options: {optimizer.name} has no option {names}; it has "
            f"{', '.join(known) or 'none'}\n"
            f"if the config sets {'it' if len(unknown) == 1 else 'them'}, the command line removes "
            f"{'it' if len(unknown) == 1 else 'them'} with {flags}"
        )
    for option, value in optimizer.options.items():
        if isinstance(value, str) and "dtype" not in option:  # optax would fail only in the step
            raise ConfigError(f"optimizer.options: {option} takes no text, got {value!r}")
        if not isinstance(value, str) and abs(value) > (most := largest(value)):
            raise ConfigError(f"optimizer.options: {option} must be at most {most}, got {value}")
    arguments: dict[str, Any] = dict(optimizer.options)
    before = []
    if optimizer.clip_norm is not None:
        before.append(optax.clip_by_global_norm(optimizer.clip_norm))
    mask = next((name for name in MASKS if name in parameters), None)
    if mask and "weight_decay" in parameters:
        arguments |= {"weight_decay": optimizer.weight_decay, mask: kernels_only}
    elif optimizer.weight_decay:
        before.append(optax.add_decayed_weights(optimizer.weight_decay, mask=kernels_only))
    try:
        return optax.chain(*before, factory(learning_rate=schedule, **arguments))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"optimizer.options: {optimizer.name} refuses them: {error}") from error


def kernels_only(params: Any) -> Any:
    """Marks the parameters with two axes or more: kernels of convolutions and dense layers."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def optimizer_names() -> list[str]:
    """Every optax optimizer that `make_optimizer` can make."""
    excluded = ("_", "scale_by_")
    names = (name for name in dir(optax) if not name.startswith(excluded) and name not in UNSUITED)
    return [name for name in names if _takes_learning_rate(getattr(optax, name))]


def _factory(name: str) -> Callable[..., optax.GradientTransformation]:
    known = optimizer_names()
    if name not in known:
        raise ConfigError(
            f"optimizer.name: unknown optimizer {name!r}{nearest(name, known)}; "
            f"known: {', '.join(known)}"
        )
    return getattr(optax, name)


def _takes_learning_rate(value: Any) -> bool:
    """Whether it is an optimizer of optax: a function whose first argument is learning_rate."""
    if not isinstance(value, types.FunctionType | functools.partial):
        return False
    return next(iter(inspect.signature(value).parameters), None) == "learning_rate"
