"""The names and layout of EfficientNet's variables in HDF5 files of Keras and its libraries.

Taken from keras.applications of Keras 2.15 and 3.15, KerasCV 0.8 and 0.9, and KerasHub 0.32. A file
names its layers in one of two ways. Files by name (from Keras 2 and `model.save("x.h5")`) have the
layers' own names, "block4a_dwconv2/…/kernel:0". Files by count (`.weights.h5`) have a layer's class
and its number among the layers of that class, "layers/depthwise_conv2d_3/vars/0"; which layer that
is follows from the order of the network.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

import numpy as np

from jaxcls.config.sizes import longer_side
from jaxcls.models.efficientnet import BlockSpec, ModelSpec, block_names
from jaxcls.models.interface import CLASSIFIER
from jaxcls.models.normalisation import IMAGENET_MEAN, IMAGENET_STD
from jaxcls.models.weights_info import Triple, WeightsInfo, info_of_spec
from jaxcls.pretrained.variables import layer_of, variable_names

type Layers = Iterator[tuple[str, str]]  # ours, theirs

# Every file of a family has a tensor that matches the family's expression. KerasCV's blocks, and
# KerasHub's of V2 and EdgeTPU, are layers that contain layers; keras.applications and KerasHub's V1
# have all layers side by side.
KERAS = (
    r"(?!.*(?:efficient_net(?:_v1)?_backbone(?:_\d+)?|block1a_)/)(?:.+/)?"
    r"(?:block1a_(?:project_conv|dwconv)/(?:depthwise_)?kernel(?::0)?|layers/conv2d_\d\d+/vars/0)"
)
KERAS_CV = (
    r"(?:.+/)?"
    r"(?:block1a_/(?:.+/)?block1a_project_conv/kernel(?::0)?|fused_mb_conv_block/bn3/vars/0)"
)
_KERAS_HUB_BLOCK = r"(?:.+/)?fused_mb_conv_block/bn2/vars/0"
KERAS_HUB = (
    rf"(?:.*/)?efficient_net_backbone(?:_\d+)?/layers/conv2d_\d\d+/vars/0|{_KERAS_HUB_BLOCK}"
)

# The state of optimizers, metrics, random draws, and layers that preprocess images.
IGNORED = (
    r"(?:optimizer|optimizer_weights|metrics|top_level_model_weights)/.*"
    r"|(?:.*/)?(?:seed_generator(?:_\d+)?/.*|seed_generator_state(?::0)?)"
    r"|(?:.*/)?normalization(?:_\d+)?/(?:vars/\d|(?:mean|variance|count)(?::0)?)"
)

# Any other layer of a model may belong to its head.
HEAD = r".*"


def convert(path: str, tensor: np.ndarray) -> np.ndarray:
    """Returns a view in jaxcls's layout: Keras' depthwise kernels are [h, w, channels, 1]."""
    if path.endswith("depthwise_conv/kernel") and tensor.ndim == 4:
        return tensor.transpose(0, 1, 3, 2)
    return tensor


def keras_names(spec: ModelSpec, tensors: Collection[str]) -> dict[str, str]:
    """Names of keras.applications' EfficientNet and EfficientNetV2, alone or in another model."""
    if _is_counted(tensors):
        return _counted_names(spec, tensors, _counted_layers(spec))
    return _given_names(spec, tensors)


def keras_cv_names(spec: ModelSpec, tensors: Collection[str]) -> dict[str, str]:
    """Names of KerasCV's EfficientNetV2Backbone, alone or in its ImageClassifier."""
    if _is_counted(tensors):
        return _counted_names(spec, tensors, _keras_cv_layers(spec))
    return _given_names(spec, tensors)


def keras_hub_names(spec: ModelSpec, tensors: Collection[str]) -> dict[str, str]:
    """Names of KerasHub's EfficientNetBackbone, alone or in its EfficientNetImageClassifier."""
    if any(re.fullmatch(_KERAS_HUB_BLOCK, name) for name in tensors):
        return _counted_names(spec, tensors, _keras_hub_layers(spec))
    return keras_names(spec, tensors)


def keras_info(spec: ModelSpec, tensors: Mapping[str, np.ndarray]) -> WeightsInfo:
    """Info of Google's weights; the networks normalise images themselves.

    V1 has variables for that in the file. If they are missing, the file is KerasHub's.
    """
    if not _is_v2(spec) and _is_counted(tensors) and not _normalisation(tensors):
        return keras_hub_info(spec, tensors)
    side = longer_side(spec.image_size)
    large = re.fullmatch(r"efficientnetv2_(?!b\d).*", spec.name)
    return info_of_spec(
        spec,
        crop_fraction=1.0 if large else side / (side + 32),
        interpolation="bicubic",
        **_normalisation(tensors),
    )


def keras_cv_info(spec: ModelSpec, tensors: Mapping[str, np.ndarray]) -> WeightsInfo:
    """Info of KerasCV's weights; the networks only divide images by 255."""
    del tensors
    return info_of_spec(spec, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), crop_fraction=1.0)


def keras_hub_info(spec: ModelSpec, tensors: Mapping[str, np.ndarray]) -> WeightsInfo:
    """Info of KerasHub's weights, converted from timm's, which were trained in PyTorch.

    KerasHub itself pads the depthwise convolutions of V2 and EdgeTPU as TensorFlow does, so its
    predictions are not quite timm's. Here they are.
    """
    del tensors
    return info_of_spec(
        spec,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        padding="symmetric",
        batch_norm_epsilon=1e-5,
        crop_fraction=1.0 if spec.name.startswith("efficientnetv2") else 0.875,
        interpolation="bicubic",
    )


def _normalisation(tensors: Mapping[str, np.ndarray]) -> dict[str, Triple]:
    """Returns mean and std from the variables of a normalising layer, if there is one.

    Networks with ImageNet's weights have standard deviations in place of variances, and correct
    that in a layer without variables.
    """
    found = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(
            r"(?:.*/)?normalization(?:_\d+)?/(vars/[01]|mean|variance)(?::0)?", name
        )
        if match and tensor.size == 3:
            found[match[1].removeprefix("vars/")] = tensor.reshape(3).astype(np.float64)
    mean, variance = (found.get(a, found.get(b)) for a, b in (("mean", "0"), ("variance", "1")))
    if mean is None or variance is None:
        return {}
    std = variance if np.allclose(variance, IMAGENET_STD) else np.sqrt(variance)
    return {"mean": _triple(mean), "std": _triple(std)}


def _triple(values: np.ndarray) -> Triple:
    """Rounds away the error of float32: 0.485 and not 0.48500001430511475."""
    red, green, blue = (round(float(value), 6) for value in values)
    return red, green, blue


def _is_v2(spec: ModelSpec) -> bool:
    return any(row.fused for row in spec.blocks)


# --- files by name -------------------------------------------------------------------------------

_BLOCK_LAYERS = {
    "expand_conv": "expand_conv",
    "expand_bn": "expand_bn",
    "depthwise_bn": "bn",
    "se/reduce": "se_reduce",
    "se/expand": "se_expand",
    "project_conv": "project_conv",
    "project_bn": "project_bn",
}
_OUTER_LAYERS = {
    "stem_conv": "stem_conv",
    "stem_bn": "stem_bn",
    "head_conv": "top_conv",
    "head_bn": "top_bn",
}


def _given_names(spec: ModelSpec, tensors: Collection[str]) -> dict[str, str]:
    """Names by the last layer in a tensor's path; the groups around it depend on the model."""
    weights = (name for name in tensors if not re.fullmatch(IGNORED, name))
    found = {_layer_and_leaf(name): name for name in weights}
    layers = dict(_named_layers(spec))
    layers["classifier"] = _first(
        (layer for layer, _ in found if re.fullmatch(r"predictions|dense(?:_\d+)?", layer)),
        default="predictions",
    )
    names = {}
    for path in variable_names(spec):
        layer, (leaf, _) = layers[layer_of(path)], _leaf(path)
        names[path] = found.get((layer, leaf), f"{layer}/{layer}/{leaf}:0")
    return names


def _named_layers(spec: ModelSpec) -> Layers:
    yield from _OUTER_LAYERS.items()
    # V1 calls its depthwise convolutions dwconv, V2 dwconv2.
    depthwise = "dwconv2" if _is_v2(spec) else "dwconv"
    for block, _, _ in block_names(spec):
        yield f"{block}/depthwise_conv", f"{block}_{depthwise}"
        for ours, theirs in _BLOCK_LAYERS.items():
            yield f"{block}/{ours}", f"{block}_{theirs}"


def _layer_and_leaf(name: str) -> tuple[str, str]:
    """Returns ("block4a_dwconv2", "kernel") for "a/block4a_dwconv2/depthwise_kernel:0"."""
    parts = name.removesuffix(":0").split("/")
    return parts[-2] if len(parts) > 1 else "", parts[-1].removeprefix("depthwise_")


# --- files by count ------------------------------------------------------------------------------


def _is_counted(tensors: Collection[str]) -> bool:
    return any(re.fullmatch(r"(?:.+/)?layers/conv2d/vars/0", name) for name in tensors)


def _counted_names(spec: ModelSpec, tensors: Collection[str], layers: Layers) -> dict[str, str]:
    """Names by the layers' numbers in the group that has the convolution of the stem."""
    stem = r"(.+/)?layers/conv2d/vars/0"
    group = _first((m[1] or "" for name in tensors if (m := re.fullmatch(stem, name))), default="")
    theirs = {ours: f"{group}layers/{layer}" for ours, layer in layers}
    dense = r"(.*/)?((?:output_)?dense(?:_\d+)?)/vars/0"
    theirs["classifier"] = _first(
        ((m[1] or "") + m[2] for name in tensors if (m := re.fullmatch(dense, name))),
        default=f"{group}layers/dense",
    )
    return {
        path: f"{theirs[layer_of(path)]}/vars/{_leaf(path)[1]}" for path in variable_names(spec)
    }


def _counted_layers(spec: ModelSpec) -> Layers:
    """Yields the layers of networks with all layers side by side."""
    count = _Counter()
    for layer in dict.fromkeys(layer_of(path) for path in variable_names(spec)):
        if layer != CLASSIFIER:
            yield layer, count(_class_of(layer))


def _class_of(layer: str) -> str:
    if layer.endswith("_bn"):
        return "batch_normalization"
    return "depthwise_conv2d" if layer.endswith("/depthwise_conv") else "conv2d"


# What a block's layers are called inside it.
_KERAS_CV_LAYERS = {
    "expand_conv": "conv1",
    "expand_bn": "bn1",
    "depthwise_conv": "depthwise",
    "depthwise_bn": "bn2",
    "se/reduce": "se_conv1",
    "se/expand": "se_conv2",
    "project_conv": "output_conv",
    "project_bn": "bn3",
}


_KERAS_HUB_FUSED_LAYERS = _KERAS_CV_LAYERS | {"project_bn": "bn2"}
_KERAS_HUB_SINGLE_LAYERS = {"project_conv": "conv1", "project_bn": "bn1"}


def _keras_cv_layers(spec: ModelSpec) -> Layers:
    """Yields the layers of KerasCV's networks."""
    return _layers_in_blocks(
        spec,
        lambda row: ("fused_mb_conv_block" if row.fused else "mb_conv_block", _KERAS_CV_LAYERS),
    )


def _keras_hub_layers(spec: ModelSpec) -> Layers:
    """Yields the layers of KerasHub's V2 and EdgeTPU."""

    def block(row: BlockSpec) -> tuple[str, dict[str, str]]:
        if not row.fused:
            return "mb_conv_block", _KERAS_CV_LAYERS
        if not row.expands:
            return "cba_block", _KERAS_HUB_SINGLE_LAYERS
        return "fused_mb_conv_block", _KERAS_HUB_FUSED_LAYERS

    return _layers_in_blocks(spec, block)


def _layers_in_blocks(
    spec: ModelSpec, block: Callable[[BlockSpec], tuple[str, dict[str, str]]]
) -> Layers:
    """Yields the layers of networks whose blocks are layers.

    Args:
      spec: the network.
      block: the row of a block -> its class, and its layers in jaxcls and in the block.
    """
    count = _Counter()
    yield "stem_conv", count("conv2d")
    yield "stem_bn", count("batch_normalization")
    for name, row, _ in block_names(spec):
        kind, layers = block(row)
        theirs = count(kind)
        for ours, inside in layers.items():
            yield f"{name}/{ours}", f"{theirs}/{inside}"
    yield "head_conv", count("conv2d")
    yield "head_bn", count("batch_normalization")


class _Counter:
    """Numbers the layers of each class: conv2d, conv2d_1, conv2d_2, …."""

    def __init__(self):
        self._counts: dict[str, int] = {}

    def __call__(self, name: str) -> str:
        number = self._counts.get(name, 0)
        self._counts[name] = number + 1
        return f"{name}_{number}" if number else name


# -------------------------------------------------------------------------------------------------


def _leaf(path: str) -> tuple[str, int]:
    """Returns Keras' name of a variable, and its number in its layer."""
    layer, _, leaf = path.rpartition("/")
    normalises = layer.endswith("_bn")
    return {
        "kernel": ("kernel", 0),
        "scale": ("gamma", 0),
        "bias": ("beta" if normalises else "bias", 1),
        "mean": ("moving_mean", 2),
        "var": ("moving_variance", 3),
    }[leaf]


def _first(items: Iterable[str], *, default: str) -> str:
    return next(iter(items), default)
