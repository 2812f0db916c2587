import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jaxcls.config.sizes import longer_side
from jaxcls.models.registry import model_names, model_spec
from jaxcls.models.weights_info import WeightsError
from jaxcls.pretrained.hub import fetch_weights
from jaxcls.pretrained.imagenet import imagenet_class_names
from jaxcls.pretrained.preset_tables import ALIASES, NUMBERS
from jaxcls.pretrained.presets import Preset, find_preset, preset, preset_names
from jaxcls.pretrained.variables import variable_shapes

PRESETS = [preset(name) for name in preset_names()]
each_preset = pytest.mark.parametrize("weights", PRESETS, ids=lambda weights: weights.name)


def test_names() -> None:
    v2 = {f"efficientnetv2_{v}_imagenet" for v in ("b0", "b1", "b2", "b3", "s", "m", "l")}
    v2_21k = {f"efficientnetv2_{v}_imagenet21k" for v in ("b3", "s", "m", "l", "xl")}
    rw = {f"efficientnetv2_rw_{v}_imagenet" for v in "tsm"}
    v1 = {f"efficientnet_b{number}_imagenet" for number in range(9)}
    edge = {f"efficientnet_e{v}_imagenet" for v in "sml"}
    noisy = {f"efficientnet_{v}_imagenet_ns" for v in [*(f"b{n}" for n in range(8)), "l2"]}
    lite = {f"efficientnet_lite{number}_imagenet" for number in range(3)}
    tuned = {f"{name}_ft1k" for name in v2_21k}
    resnets = {f"resnet{number}_imagenet" for number in (18, 34, 50, 101, 152)}
    a1 = {f"{name}_a1" for name in resnets}
    assert len(preset_names()) == len(set(preset_names()))
    first_ones = v2 | v2_21k | tuned | rw | v1 | edge | lite | resnets
    assert {name for name in preset_names() if re.search(r"_imagenet(21k(_ft1k)?)?$", name)} == (
        first_ones
    )
    assert noisy | a1 <= set(preset_names())
    assert "efficientnet_l2_imagenet_ns_475" in preset_names()


@each_preset
def test_the_size_of_the_file(weights: Preset) -> None:
    shapes = variable_shapes(model_spec(weights.info.model), num_classes=weights.num_classes)
    assert weights.num_bytes == 4 * sum(map(math.prod, shapes.values()))
    if weights.package is not None:  # a file that is here
        size = Path(fetch_weights(weights)).stat().st_size
        assert size == pytest.approx(weights.num_bytes, rel=0.01)


def test_no_size_is_left_over() -> None:
    assert {preset(name).info.model for name in preset_names()} == set(NUMBERS)


def test_jax_is_not_needed() -> None:
    """`jaxcls presets` must be quick."""
    use = "import jaxcls.pretrained.presets as presets; presets.preset_names()"
    code = f"{use}; import sys; print('jax' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == "False\n"


@each_preset
def test_the_network_exists_and_the_size_is_its_own(weights: Preset) -> None:
    info = weights.info
    assert info.model in model_names()
    assert weights.name.startswith(f"{info.model}_imagenet")
    if "/tf_" in f"{weights.repository}" and not weights.name.endswith("_475"):
        assert info.image_size == model_spec(info.model).image_size


@each_preset
def test_preprocessing(weights: Preset) -> None:
    info = weights.info
    spec = model_spec(info.model)
    assert 0.87 <= info.crop_fraction <= 1
    if weights.repository is not None and "/tf_" not in weights.repository:  # from PyTorch
        assert (info.padding, info.batch_norm_epsilon) == ("symmetric", 1e-5)
        assert info.mean in (spec.mean, (0.485, 0.456, 0.406), (0.5, 0.5, 0.5))
        bilinear = re.search(r"resnet\d+\.(tv|fb_)", weights.repository)
        assert info.interpolation == ("bilinear" if bilinear else "bicubic")
        return
    assert info.padding == "same"
    assert info.batch_norm_epsilon == 1e-3
    assert info.interpolation == "bicubic"
    if "efficientnet_" in weights.name:  # the first generation cuts 32 pixels off
        side = longer_side(info.image_size)
        assert side / info.crop_fraction == pytest.approx(side + 32, abs=1.4)
    if "b3_imagenet21k" not in weights.name:  # whose preprocessing is that of the large ones
        # timm writes 127.5 where TensorFlow has 127 or 128.
        assert info.mean == pytest.approx(spec.mean, abs=0.003)
        assert info.std == pytest.approx(spec.std, abs=0.003)


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
        assert 0.69 <= weights.top1 <= 0.89


@each_preset
def test_source(weights: Preset) -> None:
    assert (weights.repository is None) != (weights.package is None)
    if weights.repository is not None:
        assert re.fullmatch(rf"timm/(tf_)?{weights.info.model}\.[a-z0-9_]+", weights.repository)
        assert weights.file == "model.safetensors"
        assert weights.url == f"https://huggingface.co/{weights.repository}"
    else:
        assert weights.sha256 is not None
        # PyTorch's files carry the beginning of their digest in their name.
        assert re.search(rf"-{weights.sha256[:8]}\.pth$", weights.file)
    assert weights.sha256 is None or re.fullmatch("[0-9a-f]{64}", weights.sha256)
    by_tag = {"tv": "BSD-3-Clause", "fb": "CC-BY-NC-4.0"}
    tag = (weights.repository or "").partition(".")[2]
    assert weights.licence == by_tag.get(tag[:2], "Apache-2.0")
    assert (weights.top1 is None) == (weights.top1_source is None)


@pytest.mark.parametrize(
    ("name", "repository"),
    [
        ("efficientnetv2_b0_imagenet", "timm/tf_efficientnetv2_b0.in1k"),
        ("efficientnetv2_s_imagenet21k", "timm/tf_efficientnetv2_s.in21k"),
        ("efficientnetv2_xl_imagenet21k_ft1k", "timm/tf_efficientnetv2_xl.in21k_ft_in1k"),
        ("efficientnet_b7_imagenet", "timm/tf_efficientnet_b7.aa_in1k"),
        ("resnet50_imagenet", "timm/resnet50.tv_in1k"),
        ("efficientnet_b5_imagenet_ns", "timm/tf_efficientnet_b5.ns_jft_in1k"),
        ("efficientnetv2_rw_s_imagenet", "timm/efficientnetv2_rw_s.ra2_in1k"),
        ("efficientnet_b0_imagenet_ra4", "timm/efficientnet_b0.ra4_e3600_r224_in1k"),
    ],
)
def test_repositories(name: str, repository: str) -> None:
    assert preset(name).repository == repository


@pytest.mark.parametrize("variant", ["b0", "b1", "b2", "s"])
def test_the_names_of_kerascv_work(variant: str) -> None:
    name = f"efficientnetv2_{variant}_imagenet"
    assert find_preset(f"{name}_classifier") is preset(name)
    assert f"{name}_classifier" not in preset_names()


def test_the_names_of_kerashub_work() -> None:
    for alias, name in ALIASES.items():
        assert find_preset(alias) is preset(name)
        assert alias not in preset_names()
    assert find_preset("efficientnet2_rw_s_ra2_imagenet") is preset("efficientnetv2_rw_s_imagenet")


def test_an_unknown_name_gets_the_nearest() -> None:
    assert find_preset("efficientnetv2_b0_imagnet") is None
    with pytest.raises(WeightsError, match="did you mean 'efficientnetv2_b0_imagenet'"):
        preset("efficientnetv2_b0_imagnet")
    with pytest.raises(WeightsError, match="`jaxcls presets` lists them"):
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
        ("efficientnet_b1_imagenet_ra4", 288, 1.0, 0.5),
        ("efficientnetv2_rw_m_imagenet", 416, 1.0, 0.485),
        ("efficientnet_l2_imagenet_ns_475", 475, 0.936, 0.485),
        ("resnet50_imagenet_a1h", 224, 1.0, 0.485),
    ],
)
def test_preprocessing_is_that_of_the_publisher(
    name: str, size: int, crop: float, mean: float
) -> None:
    info = preset(name).info
    assert (info.image_size, info.crop_fraction, info.mean[0]) == (size, crop, mean)
