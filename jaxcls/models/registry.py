"""Makes models by name or from a config, and the templates of their variables."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxcls.config import Config
from jaxcls.config.decoding import ConfigError, nearest
from jaxcls.distributed.random_keys import random_key
from jaxcls.models.efficientnet import EfficientNet, ModelSpec
from jaxcls.models.padding import Padding
from jaxcls.models.specs import SPECS
from jaxcls.system.errors import UserError


def model_names() -> tuple[str, ...]:
    """Returns every name that `create_model` knows, by family, with the smallest model first."""
    return tuple(SPECS)


def model_spec(name: str) -> ModelSpec:
    """Returns the block table and preprocessing of the model `name`.

    Raises:
      UserError: there is no such model; the message names the nearest one.
    """
    if name in SPECS:
        return SPECS[name]
    raise UserError(
        f"model.name: unknown model {name!r}{nearest(name, SPECS)}; known: {', '.join(SPECS)} "
        f"(a model that a config file adds is known only if that file is given as CONFIG)"
    )


def create_model(
    name: str,
    *,
    num_classes: int,
    dropout: float | tuple[float, ...] = 0.2,
    drop_path: float | tuple[float, ...] = 0.2,
    batch_norm: int | Literal["global"] = "global",
    batch_norm_momentum: float = 0.9,
    batch_norm_epsilon: float | None = None,
    padding: Padding | None = None,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    pooling: Literal["average", "max"] = "average",
    freeze_batch_norm: bool = False,
    head_scale: float = 1.0,
    compute_dtype: str = "float32",
    remat: bool = False,
) -> EfficientNet:
    """Makes the model `name` as a Linen module (see `EfficientNet` for the arguments).

    `batch_norm_epsilon`, `padding`, `mean` and `std` replace those of the model's spec if they are
    given, so the `spec` of the result always has the values in use.

    Raises:
      UserError: there is no such model; the message names the nearest one.

    Example:
      >>> model = create_model("efficientnetv2_b0", num_classes=10)
      >>> model.spec.image_size
      224
    """
    changes = {
        "batch_norm_epsilon": batch_norm_epsilon,
        "padding": padding,
        "mean": mean,
        "std": std,
    }
    given = {field: value for field, value in changes.items() if value is not None}
    return EfficientNet(
        spec=dataclasses.replace(model_spec(name), **given),
        num_classes=num_classes,
        dropout=dropout,
        drop_path=drop_path,
        batch_norm=batch_norm,
        batch_norm_momentum=batch_norm_momentum,
        freeze_batch_norm=freeze_batch_norm,
        pooling=pooling,
        head_scale=head_scale,
        compute_dtype=jnp.dtype(compute_dtype),
        remat=remat,
    )


def model_from_config(config: Config, *, num_classes: int) -> EfficientNet:
    """Makes the network that the config describes.

    Raises:
      UserError: there is no model of this name.
      ConfigError: compute_dtype is float64, but it is not enabled in JAX.
    """
    if config.compute_dtype == "float64" and not jax.config.read("jax_enable_x64"):
        raise ConfigError(
            "compute_dtype: JAX would silently compute float64 as float32; "
            "set the environment variable JAX_ENABLE_X64=1"
        )
    model = config.model
    return create_model(
        model.name,
        num_classes=num_classes,
        dropout=model.dropout,
        drop_path=model.drop_path,
        batch_norm=model.batch_norm,
        batch_norm_momentum=model.batch_norm_momentum,
        batch_norm_epsilon=model.batch_norm_epsilon,
        padding=model.padding,
        mean=model.mean,
        std=model.std,
        pooling=model.pooling or "average",
        freeze_batch_norm=model.freeze_batch_norm,
        head_scale=model.head_scale,
        compute_dtype=config.compute_dtype,
        remat=model.remat,
    )


PyTree = Any
Variables = dict[str, PyTree]


def overlay(variables: PyTree, given: PyTree) -> PyTree:
    """Returns the variables (nested dicts) with the values in `given` replaced."""
    if not isinstance(variables, dict):
        assert given.shape == variables.shape, "weights are checked when they are read"
        return given.astype(variables.dtype)
    assert given.keys() <= variables.keys(), "weights are checked when they are read"
    return {
        name: overlay(child, given[name]) if name in given else child
        for name, child in variables.items()
    }


def eval_variables_template(model: nn.Module, *, image_size: int, use_ema: bool) -> PyTree:
    """Returns shapes and dtypes of the part of a `TrainState` that `eval_variables` needs.

    Its paths are those of the whole state, so a part of a checkpoint can be read with it.
    """
    kept = variables_template(model, image_size=image_size)
    return {"ema": kept} if use_ema else kept


def variables_template(model: nn.Module, *, image_size: int) -> PyTree:
    """Returns shapes and dtypes of a model's {"params", "batch_stats"}."""
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    variables = jax.eval_shape(model.init, random_key(0), images)
    return {"params": variables["params"], "batch_stats": variables["batch_stats"]}
