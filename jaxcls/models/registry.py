"""Makes models by name or from a config, and the templates of their variables."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxcls.config import Config, ModelConfig, is_own_network
from jaxcls.config.decoding import ConfigError, nearest
from jaxcls.config.schema import OF_ANY_NETWORK
from jaxcls.config.sizes import ImageSize, height_and_width
from jaxcls.distributed.random_keys import random_key
from jaxcls.models.interface import Network, NetworkSpec, PyTree
from jaxcls.models.normalisation import for_channels
from jaxcls.models.own_module import own_spec
from jaxcls.models.specs import SPECS
from jaxcls.system.errors import UserError

PREPROCESSING = ("mean", "std")  # the fields of `ModelConfig` that change any network
SPEC_FIELDS = (*PREPROCESSING, "batch_norm_epsilon", "padding")  # they change the spec


def model_names() -> tuple[str, ...]:
    """Returns every name that `create_model` knows, by family, with the smallest model first."""
    return tuple(SPECS)


def model_spec(
    name: str,
    options: Mapping[str, Any] | None = None,
    *,
    image_size: ImageSize = 0,
    channels: int = 3,
) -> NetworkSpec:
    """Returns the layers and preprocessing of the model `name`.

    Args:
      name: one of `model_names`, or "package.module:factory" for a module of the user's.
      options: the keyword arguments of that factory.
      image_size: the size of the images of that module in pixels, on which the shapes of its
        variables may depend; 0 for its own.
      channels: of the images; for another number than the network's own, mean and std are
        `for_channels`.

    Raises:
      UserError: there is no such model; the message names the nearest one.
      ConfigError: the user's module cannot be used (`own_module.own_spec`).
    """
    if is_own_network(name):
        return own_spec(name, json.dumps(options or {}, sort_keys=True), image_size, channels)
    if name in SPECS:
        spec = SPECS[name]
        numbers = {field: for_channels(getattr(spec, field), channels) for field in PREPROCESSING}
        return dataclasses.replace(spec, **numbers)
    module, dot, factory = name.rpartition(".")
    own = f"{module}:{factory}" if dot and module else "package.module:factory"
    raise UserError(
        f"model.name: unknown model {name!r}{nearest(name, SPECS)}; known: {', '.join(SPECS)} "
        f"(a model that a config file adds is known only if that file is given as CONFIG; a "
        f"network of your own is {own})"
    )


def create_model(
    name: str,
    *,
    num_classes: int,
    compute_dtype: str = "float32",
    options: Mapping[str, Any] | None = None,
    image_size: ImageSize = 0,
    channels: int = 3,
    **settings: Any,
) -> Network:
    """Makes the model `name` as a Linen module.

    Args:
      name: as for `model_spec`.
      num_classes: the width of the classifier; 0 for none.
      compute_dtype: the dtype of activations.
      options: as for `model_spec`.
      image_size: as for `model_spec`.
      channels: as for `model_spec`.
      settings: attributes of `ImageNetwork`; and `batch_norm_epsilon`, `padding`, `mean` and `std`,
        which replace those of the model's spec if they are not None, so the `spec` of the result
        always has the values in use.

    Raises:
      UserError: there is no such model; the message names the nearest one.

    Example:
      >>> model = create_model("efficientnetv2_b0", num_classes=10)
      >>> model.spec.image_size
      224
    """
    given = {field: settings.pop(field, None) for field in SPEC_FIELDS}
    changes = {field: value for field, value in given.items() if value is not None}
    own = model_spec(name, options, image_size=image_size, channels=channels)
    spec = dataclasses.replace(own, **changes)
    return spec.build(num_classes=num_classes, compute_dtype=jnp.dtype(compute_dtype), **settings)


def model_from_config(config: Config, *, num_classes: int) -> Network:
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
    taken = set(PREPROCESSING)
    if not is_own_network(model.name):
        taken |= {field.name for field in dataclasses.fields(ModelConfig)} - OF_ANY_NETWORK
    given = {field: getattr(model, field) for field in taken}
    return create_model(
        model.name,
        num_classes=num_classes,
        compute_dtype=config.compute_dtype,
        options=model.options,
        image_size=config.data.image_size,
        channels=config.data.channels,
        **{field: value for field, value in given.items() if value is not None},
    )


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


def eval_variables_template(model: Network, *, image_size: ImageSize, use_ema: bool) -> PyTree:
    """Returns shapes and dtypes of the part of a `TrainState` that `eval_variables` needs.

    Its paths are those of the whole state, so a part of a checkpoint can be read with it.
    """
    kept = variables_template(model, image_size=image_size)
    return {"ema": kept} if use_ema else kept


def variables_template(model: Network, *, image_size: ImageSize) -> PyTree:
    """Returns shapes and dtypes of a model's variables."""
    shape = (1, *height_and_width(image_size), model.spec.channels)
    return jax.eval_shape(model.init, random_key(0), jax.ShapeDtypeStruct(shape, jnp.float32))
