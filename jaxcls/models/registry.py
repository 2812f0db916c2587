"""The models by name."""

import dataclasses
from typing import Literal

import jax.numpy as jnp

from jaxcls.decoding import nearest
from jaxcls.errors import UserError
from jaxcls.models.efficientnet import EfficientNet, ModelSpec
from jaxcls.models.padding import Padding
from jaxcls.models.specs import SPECS


def model_names() -> tuple[str, ...]:
    """Every name that `create_model` knows, family by family, smallest model first."""
    return tuple(SPECS)


def model_spec(name: str) -> ModelSpec:
    """The block table and the input convention of the model called `name`.

    Raises:
      UserError: no such model; the message names the nearest one.
    """
    if name in SPECS:
        return SPECS[name]
    raise UserError(
        f"model.name: unknown model {name!r}{nearest(name, SPECS)}; known: {', '.join(SPECS)} "
        f"(one that a config file adds is known where that file is given as CONFIG)"
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
    """The model called `name`, as a Linen module (see `EfficientNet` for the arguments).

    `batch_norm_epsilon`, `padding`, `mean` and `std` replace those of the model's spec where they
    are given, so that `spec` of what is returned always holds what is used.

    Raises:
      UserError: no such model; the message names the nearest one.

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
