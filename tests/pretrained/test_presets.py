import dataclasses
import re

import pytest

from jaxcls.config.sizes import longer_side
from jaxcls.models.registry import model_names, model_spec
from jaxcls.models.weights_info import WeightsError, info_of_spec
from jaxcls.pretrained.imagenet import imagenet_class_names
from jaxcls.pretrained.presets import Preset, find_preset, preset, preset_names

PRESETS = [preset(name) for name in preset_names()]
each_preset = pytest.mark.parametrize("weights", PRESETS, ids=lambda weights: weights.name)


def test_names() -> None:
    v2 = {f"efficientnetv2_{v}_imagenet" for v in ("b0", "b1", "b2", "b3", "s", "m", "l")}
    v2_21k = {f"efficientnetv2_{v}_imagenet21k" for v in ("b3", "s", "m", "l", "xl")}
    v1 = {f"efficientnet_b{number}_imagenet" for number in range(8)}
    lite = {f"efficientnet_lite{number}_imagenet" for number in range(3)}
    tuned = {f"{name}_ft1k" for name in v2_21k}
    resnets = {f"resnet{number}_imagenet" for number in (18, 34, 50, 101, 152)}
    assert len(preset_names()) == len(set(preset_names()))
    assert set(preset_names()) == v2 | v2_21k | tuned | v1 | lite | resnets


@each_preset
def test_the_network_exists_and_the_size_is_its_own(weights: Preset) -> None:
    info = weights.info
    assert info.model in model_names()
    assert weights.name.startswith(f"{info.model}_imagenet")
    assert info.image_size == model_spec(info.model).image_size


@each_preset
def test_preprocessing(weights: Preset) -> None:
    info = weights.info
    if info.model.startswith("resnet"):
        assert info == dataclasses.replace(
            info_of_spec(model_spec(info.model)), class_names=imagenet_class_names()
        )
        return
    assert info.padding == "same"  # all others are TensorFlow's
    assert info.batch_norm_epsilon == 1e-3
    assert info.interpolation == "bicubic"
    assert 0.87 <= info.crop_fraction <= 1
    if "efficientnet_" in weights.name:  # the first generation cuts 32 pixels off
        side = longer_side(info.image_size)
        assert side / info.crop_fraction == pytest.approx(side + 32, abs=1)
    if "b3_imagenet21k" not in weights.name:  # whose preprocessing is that of the large ones
        # timm writes 127.5 where TensorFlow has 127 or 128.
        assert info.mean == pytest.approx(model_spec(info.model).mean, abs=0.003)
        assert info.std == pytest.approx(model_spec(info.model).std, abs=0.003)


@each_preset
def test_classes(weights: Preset) -> None:
    if weights.name.endswith("_imagenet21k"):
        assert weights.num_classes == 21843
        assert weights.info.class_names is None
        assert weights.top1 is None
    else:
        assert weights.num_classes == 1000
        assert weights.info.class_names == imagenet_class_names()
        assert weights.top1 is not None
        assert 0.69 <= weights.top1 <= 0.87


@each_preset
def test_source(weights: Preset) -> None:
    resnet = weights.info.model.startswith("resnet")
    assert (weights.repository is None) != (weights.package is None)
    if weights.repository is not None:
        prefix = "" if resnet else "tf_"
        assert re.fullmatch(rf"timm/{prefix}{weights.info.model}\.[a-z0-9_]+", weights.repository)
        assert weights.file == "model.safetensors"
        assert weights.url == f"https://huggingface.co/{weights.repository}"
    else:
        assert weights.sha256 is not None
        # PyTorch's files carry the beginning of their digest in their name.
        assert re.search(rf"-{weights.sha256[:8]}\.pth$", weights.file)
    assert weights.sha256 is None or re.fullmatch("[0-9a-f]{64}", weights.sha256)
    assert weights.licence == ("BSD-3-Clause" if resnet else "Apache-2.0")
    assert (weights.top1 is None) == (weights.top1_source is None)


@pytest.mark.parametrize(
    ("name", "repository"),
    [
        ("efficientnetv2_b0_imagenet", "timm/tf_efficientnetv2_b0.in1k"),
        ("efficientnetv2_s_imagenet21k", "timm/tf_efficientnetv2_s.in21k"),
        ("efficientnetv2_xl_imagenet21k_ft1k", "timm/tf_efficientnetv2_xl.in21k_ft_in1k"),
        ("efficientnet_b7_imagenet", "timm/tf_efficientnet_b7.aa_in1k"),
        ("resnet50_imagenet", "timm/resnet50.tv_in1k"),
    ],
)
def test_repositories(name: str, repository: str) -> None:
    assert preset(name).repository == repository


@pytest.mark.parametrize("variant", ["b0", "b1", "b2", "s"])
def test_the_names_of_kerascv_work(variant: str) -> None:
    name = f"efficientnetv2_{variant}_imagenet"
    assert find_preset(f"{name}_classifier") is preset(name)
    assert f"{name}_classifier" not in preset_names()


def test_an_unknown_name_gets_the_nearest() -> None:
    assert find_preset("efficientnetv2_b0_imagnet") is None
    with pytest.raises(WeightsError, match="did you mean 'efficientnetv2_b0_imagenet'"):
        preset("efficientnetv2_b0_imagnet")
    with pytest.raises(WeightsError, match="known: efficientnetv2_b0_imagenet, "):
        preset("resnet")


@pytest.mark.parametrize(
    ("name", "size", "crop", "mean"),
    [
        ("efficientnetv2_b3_imagenet", 300, 0.904, 0.485),
        ("efficientnetv2_b3_imagenet21k", 300, 0.904, 0.5),
        ("efficientnetv2_b3_imagenet21k_ft1k", 300, 0.9, 0.5),
        ("efficientnetv2_s_imagenet", 384, 1.0, 0.5),
        ("efficientnet_b0_imagenet", 224, 0.875, 0.485),
        ("efficientnet_lite2_imagenet", 260, 260 / 292, 127 / 255),
    ],
)
def test_preprocessing_is_that_of_the_publisher(
    name: str, size: int, crop: float, mean: float
) -> None:
    info = preset(name).info
    assert (info.image_size, info.crop_fraction, info.mean[0]) == (size, crop, mean)
