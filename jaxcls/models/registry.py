"""The models by name: the block tables, and what belongs to each one's weights."""

import math
from typing import Literal

import jax.numpy as jnp

from jaxcls.decoding import nearest
from jaxcls.errors import UserError
from jaxcls.models.efficientnet import EfficientNet, ModelSpec, StageSpec

# Repeats, filters, expansion, stride of every stage. Sources: the paper (Tan and Le 2021,
# https://arxiv.org/abs/2104.00298, table 4) and its reference code; the tests import
# `keras.applications` weights to prove them.
_EXPANSIONS = (1, 4, 4, 4, 6, 6, 6)
_STRIDES = (1, 2, 2, 2, 1, 2, 1)
_NUM_FUSED_STAGES = 3

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
# (x - 128) / 128 on 0..255 images, written for images in [0, 1].
_HALF = (128 / 255, 128 / 255, 128 / 255)


def _stages(repeats: tuple[int, ...], filters: tuple[int, ...]) -> tuple[StageSpec, ...]:
    return tuple(
        StageSpec(
            fused=index < _NUM_FUSED_STAGES,
            repeats=repeats[index],
            filters=filters[index],
            expansion=_EXPANSIONS[index],
            stride=_STRIDES[index],
            se_ratio=0.0 if index < _NUM_FUSED_STAGES else 0.25,
        )
        for index in range(len(repeats))
    )


def _round_filters(filters: int, width: float) -> int:
    """`filters` times `width`, to the nearest multiple of 8."""
    return max(8, int(filters * width + 4) // 8 * 8)


def _b_variant(name: str, *, width: float, depth: float, image_size: int) -> ModelSpec:
    repeats = tuple(math.ceil(depth * r) for r in (1, 2, 2, 3, 5, 8))
    filters = tuple(_round_filters(f, width) for f in (16, 32, 48, 96, 112, 192))
    return ModelSpec(
        name=name,
        stem_filters=_round_filters(32, width),
        stages=_stages(repeats, filters),
        head_filters=_round_filters(1280, width),
        image_size=image_size,
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
    )


def _large_variant(
    name: str, *, stem: int, repeats: tuple[int, ...], filters: tuple[int, ...], image_size: int
) -> ModelSpec:
    return ModelSpec(
        name=name,
        stem_filters=stem,
        stages=_stages(repeats, filters),
        head_filters=1280,
        image_size=image_size,
        mean=_HALF,
        std=_HALF,
    )


_SPECS = {
    spec.name: spec
    for spec in (
        _b_variant("efficientnetv2_b0", width=1.0, depth=1.0, image_size=224),
        _b_variant("efficientnetv2_b1", width=1.0, depth=1.1, image_size=240),
        _b_variant("efficientnetv2_b2", width=1.1, depth=1.2, image_size=260),
        _b_variant("efficientnetv2_b3", width=1.2, depth=1.4, image_size=300),
        _large_variant(
            "efficientnetv2_s",
            stem=24,
            repeats=(2, 4, 4, 6, 9, 15),
            filters=(24, 48, 64, 128, 160, 256),
            image_size=384,
        ),
        _large_variant(
            "efficientnetv2_m",
            stem=24,
            repeats=(3, 5, 5, 7, 14, 18, 5),
            filters=(24, 48, 80, 160, 176, 304, 512),
            image_size=480,
        ),
        _large_variant(
            "efficientnetv2_l",
            stem=32,
            repeats=(4, 7, 7, 10, 19, 25, 7),
            filters=(32, 64, 96, 192, 224, 384, 640),
            image_size=480,
        ),
        _large_variant(
            "efficientnetv2_xl",
            stem=32,
            repeats=(4, 8, 8, 16, 24, 32, 8),
            filters=(32, 64, 96, 192, 256, 512, 640),
            image_size=512,
        ),
    )
}


def model_names() -> tuple[str, ...]:
    """Every name that `create_model` knows, smallest model first."""
    return tuple(_SPECS)


def model_spec(name: str) -> ModelSpec:
    """The block table and the input convention of the model called `name`.

    Raises:
      UserError: no such model; the message names the nearest one.
    """
    if name in _SPECS:
        return _SPECS[name]
    raise UserError(
        f"model.name: unknown model {name!r}{nearest(name, _SPECS)}; known: {', '.join(_SPECS)}"
    )


def create_model(
    name: str,
    *,
    num_classes: int,
    dropout: float = 0.2,
    drop_path: float = 0.2,
    batch_norm: int | Literal["global"] = "global",
    batch_norm_momentum: float = 0.9,
    batch_norm_epsilon: float = 1e-3,
    compute_dtype: str = "float32",
    remat: bool = False,
) -> EfficientNet:
    """The model called `name`, as a Linen module (see `EfficientNet` for the arguments).

    Example:
      >>> model = create_model("efficientnetv2_b0", num_classes=10)
      >>> model.spec.image_size
      224
    """
    return EfficientNet(
        spec=model_spec(name),
        num_classes=num_classes,
        dropout=dropout,
        drop_path=drop_path,
        batch_norm=batch_norm,
        batch_norm_momentum=batch_norm_momentum,
        batch_norm_epsilon=batch_norm_epsilon,
        compute_dtype=jnp.dtype(compute_dtype),
        remat=remat,
    )
