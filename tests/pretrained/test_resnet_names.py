"""ResNet's names in PyTorch, against what timm and torchvision themselves call their tensors."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxcls.models.registry import model_names, model_spec
from jaxcls.models.resnet import ResNetSpec
from jaxcls.pretrained.families import FAMILIES, find_family
from jaxcls.pretrained.importing import fitting_models, import_variables
from jaxcls.pretrained.variables import variable_shapes
from jaxcls.pretrained.weights import load_weights

# How many tensors the networks with 1000 classes have, and a digest of their names and shapes, as
# in test_torch_names.py. Recorded from timm 1.0.31 and torchvision 0.29.2, which agree.
PUBLISHED = {
    "resnet18": (102, "bd0b28d3209a171d"),
    "resnet34": (182, "3527dbbb4ac82262"),
    "resnet50": (267, "a506be68cf630f4c"),
    "resnet101": (522, "b7894632184dafb1"),
    "resnet152": (777, "e13c31ea628f8ac7"),
}
(FAMILY,) = (family for family in FAMILIES if family.name == "resnet")


def names_of(model: str) -> dict[str, str]:
    return FAMILY.names(model_spec(model), ())


def in_their_layout(array: np.ndarray) -> np.ndarray:
    """Convolutions as [out, in, height, width], the classifier as [classes, features]."""
    return array.transpose({4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[array.ndim])


@pytest.mark.parametrize("model", PUBLISHED)
def test_names_and_shapes_are_the_published_ones(model: str) -> None:
    names = names_of(model)
    lines = []
    for path, shape in variable_shapes(model_spec(model), num_classes=1000).items():
        stored = in_their_layout(np.broadcast_to(0, shape)).shape
        lines.append(f"{names[path]} {'x'.join(map(str, stored))}")
    digest = hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]
    assert (len(lines), digest) == PUBLISHED[model]


def test_every_resnet_is_published() -> None:
    assert {name for name in model_names() if name.startswith("resnet")} == set(PUBLISHED)


# Digests cannot tell whether two tensors of one shape are swapped.
@pytest.mark.parametrize(
    ("model", "ours", "theirs"),
    [
        ("resnet18", "params/stem_conv/kernel", "conv1.weight"),
        ("resnet18", "batch_stats/stem_bn/mean", "bn1.running_mean"),
        ("resnet18", "params/block1b/conv1/kernel", "layer1.1.conv1.weight"),
        ("resnet18", "params/block1b/conv2/kernel", "layer1.1.conv2.weight"),
        ("resnet18", "params/block2a/downsample_conv/kernel", "layer2.0.downsample.0.weight"),
        ("resnet50", "params/block1a/conv3/kernel", "layer1.0.conv3.weight"),
        ("resnet50", "params/block1a/bn1/scale", "layer1.0.bn1.weight"),
        ("resnet50", "params/block1a/bn2/bias", "layer1.0.bn2.bias"),
        ("resnet50", "batch_stats/block1a/bn3/var", "layer1.0.bn3.running_var"),
        ("resnet50", "params/block1a/downsample_bn/scale", "layer1.0.downsample.1.weight"),
        ("resnet50", "batch_stats/block4c/bn3/mean", "layer4.2.bn3.running_mean"),
        ("resnet152", "params/block3aj/conv2/kernel", "layer3.35.conv2.weight"),
        ("resnet152", "params/classifier/kernel", "fc.weight"),
        ("resnet152", "params/classifier/bias", "fc.bias"),
    ],
)
def test_names_by_hand(model: str, ours: str, theirs: str) -> None:
    assert names_of(model)[ours] == theirs


@pytest.mark.parametrize("name", ["timm", "torchvision", "efficientnet-lite", "keras"])
def test_a_file_tells_its_family(name: str) -> None:
    """No library's EfficientNet is taken for a ResNet, nor the other way round."""
    assert find_family(names_of("resnet50").values()) is FAMILY
    (other,) = (family for family in FAMILIES if family.name == name)
    assert not issubclass(ResNetSpec, other.spec_type)
    assert find_family(other.names(model_spec("efficientnet_b0"), ()).values()) is other


def test_a_file_lands_completely(tmp_path: Path) -> None:
    """With PyTorch's counters and a wrapper's prefix, as a trainer saves it."""
    rng, names = np.random.default_rng(0), names_of("resnet18")
    values = {
        path: rng.normal(size=shape).astype(np.float16)
        for path, shape in variable_shapes(model_spec("resnet18"), num_classes=3).items()
    }
    tensors = {
        f"module.{names[path]}": np.ascontiguousarray(in_their_layout(value))
        for path, value in values.items()
    }
    tensors["module.bn1.num_batches_tracked"] = np.array(7)
    save_file(tensors, tmp_path / "mine.safetensors")
    file, info = load_weights(str(tmp_path / "mine.safetensors"))
    assert fitting_models(file) == ("resnet18",)
    variables, report = import_variables(file, model_spec("resnet18"), num_classes=None)
    assert (report.family, report.mapped, report.ignored) == ("resnet", 102, 1)
    assert (report.missing, report.allowed, report.unused, report.reshaped) == ((), (), (), ())
    for path in ("params/block2a/downsample_conv/kernel", "params/classifier/kernel"):
        leaf: Any = variables
        for key in path.split("/"):
            leaf = leaf[key]
        np.testing.assert_array_equal(leaf, values[path])
    assert info.model == "resnet18"


@pytest.mark.parametrize("model", PUBLISHED)
def test_what_torchvision_wants(model: str) -> None:
    """ResNet*_Weights.IMAGENET1K_V1: 224 of 256 pixels, bilinear."""
    info = FAMILY.info(model_spec(model), {})
    assert (info.model, info.padding, info.batch_norm_epsilon) == (model, "symmetric", 1e-5)
    assert (info.image_size, info.crop_fraction, info.interpolation) == (224, 0.875, "bilinear")
    assert info.mean == (0.485, 0.456, 0.406)
    assert info.std == (0.229, 0.224, 0.225)
