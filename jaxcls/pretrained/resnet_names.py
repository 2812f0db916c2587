"""The names of ResNet's variables in PyTorch: timm 1.0 and torchvision 0.29 use the same ones."""

from collections.abc import Collection

from jaxcls.models.resnet import ResNetSpec, block_names
from jaxcls.models.weights_info import WeightsInfo, info_of_spec
from jaxcls.pretrained.torch_names import Layers, names_by_layer


def resnet_names(spec: ResNetSpec, tensors: Collection[str]) -> dict[str, str]:
    """Names of `resnet18`, `resnet34`, `resnet50`, `resnet101` and `resnet152`."""
    del tensors
    return names_by_layer(spec, _layers(spec))


def resnet_info(spec: ResNetSpec) -> WeightsInfo:
    """Info of torchvision's IMAGENET1K_V1 weights, which are timm's `tv_in1k`.

    Other weights have the same names and shapes, but want another evaluation: torchvision's
    IMAGENET1K_V2 (timm's `tv2_in1k`) crops 224 of 232 pixels; timm's own are bicubic, `a1_in1k`
    and `a2_in1k` at 288 pixels without a crop.
    """
    return info_of_spec(spec, crop_fraction=224 / 256, interpolation="bilinear")


def _layers(spec: ResNetSpec) -> Layers:
    yield "stem_conv", "conv1"
    yield "stem_bn", "bn1"
    ours = (name for name, _, _ in block_names(spec))
    for stage, repeats in enumerate(spec.repeats, start=1):
        for repeat in range(repeats):
            block, theirs = next(ours), f"layer{stage}.{repeat}"
            for layer in ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3"):
                yield f"{block}/{layer}", f"{theirs}.{layer}"
            yield f"{block}/downsample_conv", f"{theirs}.downsample.0"
            yield f"{block}/downsample_bn", f"{theirs}.downsample.1"
    yield "classifier", "fc"
