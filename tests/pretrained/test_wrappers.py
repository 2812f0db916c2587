"""What wrappers put before the names of a network's tensors, in files of every format."""

from pathlib import Path

import numpy as np
import pytest
import torch_files as tf
from safetensors.numpy import save_file

from jaxcls.models.weights_info import WeightsError
from jaxcls.pretrained.files import WeightsFile, read_weights

MATRIX = np.random.default_rng(0).standard_normal((6, 4)).astype("f4")
TIMM = ("conv_stem.weight", "bn1.weight", "blocks.0.0.conv_dw.weight", "classifier.bias")
TORCHVISION = ("features.0.0.weight", "features.0.1.weight", "classifier.1.bias")
LITE = ("_conv_stem.weight", "_bn0.weight", "_blocks.0._expand_conv.weight", "_fc.bias")


def read(path: Path, *names: str, ema: bool = True) -> WeightsFile:
    """Reads a file with tensors of these names, the n-th full of n."""
    save_file({name: np.full(3, n, "f4") for n, name in enumerate(names)}, path)
    return read_weights(path, ema=ema)


def values(tensors: dict[str, np.ndarray]) -> list[int]:
    return [int(tensor[0]) for tensor in tensors.values()]


@pytest.mark.parametrize("names", [TIMM, TORCHVISION, LITE], ids=["timm", "torchvision", "lite"])
@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "module.",
        "_orig_mod.",
        "model.",
        "net.",
        "backbone.",
        "encoder.",
        "model._orig_mod.",
        "module.module.",
        "_orig_mod.module.net.",
        "features.",
        "classifier.",
        "0.",
        "my_own.größe.",
    ],
)
def test_any_wrapper_is_taken_off(tmp_path: Path, prefix: str, names: tuple[str, ...]) -> None:
    notes = (f"prefix {prefix} removed from all names",) if prefix else ()
    wrapped = [prefix + name for name in names]
    found = read(tmp_path / "w", *wrapped)
    assert dict.fromkeys(names).keys() == found.tensors.keys()
    assert {found.tensors[name][0] for name in names} == {*range(len(names))}
    assert (found.notes, found.outside) == (notes, {})
    content = {name: tf.whole(name, MATRIX) for name in wrapped}
    archive = read_weights(tf.write_zip(tmp_path / "z", content))
    assert (archive.tensors.keys(), archive.notes) == (found.tensors.keys(), notes)


def test_names_of_ours_may_be_wrapped(tmp_path: Path) -> None:
    found = read(tmp_path / "w", "best/params/stem_conv/kernel", "best/batch_stats/stem_bn/mean")
    assert found.tensors.keys() == {"params/stem_conv/kernel", "batch_stats/stem_bn/mean"}
    assert found.notes == ("prefix best/ removed from all names",)


def test_what_stands_beside_the_network_is_kept_apart(tmp_path: Path) -> None:
    """And never becomes a part of it, whatever its name is."""
    names = ("backbone.conv_stem.weight", "backbone.classifier.bias", "classifier.bias", "loss.w")
    found = read(tmp_path / "w", *names, "backbone2.bn1.weight")
    assert found.tensors.keys() == {"conv_stem.weight", "classifier.bias"}
    assert found.tensors["classifier.bias"][0] == 1
    assert {name: tensor[0] for name, tensor in found.outside.items()} == {
        "classifier.bias": 2, "loss.w": 3, "backbone2.bn1.weight": 4,
    }  # fmt: skip
    assert found.notes == ("prefix backbone. removed from 2 names",)


@pytest.mark.parametrize("averages", ["model_ema.", "ema_model.", "ema.module.", "net.swa_model."])
def test_moving_averages_beside_the_weights(tmp_path: Path, averages: str) -> None:
    names = ("model.conv_stem.weight", f"{averages}conv_stem.weight", "loss.weight")
    for ema, expected in ((True, 1), (False, 0)):
        found = read(tmp_path / "w", *names, ema=ema)
        assert found.tensors.keys() == {"conv_stem.weight"}
        assert found.tensors["conv_stem.weight"][0] == expected
        assert found.outside.keys() == {"loss.weight"}
        assert found.notes[0] == f"prefix {('model.', averages)[ema]} removed from 1 names"
        assert "moving averages" in found.notes[1]


def test_moving_averages_within_the_network(tmp_path: Path) -> None:
    names = ("conv_stem.weight", "bn1.weight", "ema.conv_stem.weight", "ema.bn1.weight")
    for ema, expected in ((True, {2, 3}), (False, {0, 1})):
        found = read(tmp_path / "w", *names, ema=ema)
        assert found.tensors.keys() == {"conv_stem.weight", "bn1.weight"}
        assert {*values(found.tensors)} == expected


def test_an_averaged_model_is_known_by_its_counter(tmp_path: Path) -> None:
    names = ("n_averaged", "module.conv_stem.weight")
    assert read(tmp_path / "w", *names).notes == (
        "prefix module. removed from all names",
        "left out: n_averaged",
    )
    with pytest.raises(WeightsError, match=r"only moving averages of the weights \(module\.\)"):
        read(tmp_path / "w", *names, ema=False)


@pytest.mark.parametrize(
    ("prefixes", "says"),
    [
        (("teacher.", "student."), r"several networks \(student\., teacher\.\)"),
        (("", "teacher."), "several networks"),
        (("ema_a.", "ema_b.", "model."), r"several networks \(ema_a\., ema_b\.\)"),
        (tuple(f"n{n}." for n in range(17)), "17 networks"),
    ],
)
def test_which_of_several_networks_is_not_guessed(
    tmp_path: Path, prefixes: tuple[str, ...], says: str
) -> None:
    with pytest.raises(WeightsError, match=f"w: it holds {says}"):
        read(tmp_path / "w", *(f"{prefix}conv_stem.weight" for prefix in prefixes))


def test_other_networks_keep_their_names(tmp_path: Path) -> None:
    names = ("encoder.layer.0.weight", "encoder.my_conv_stem.weight", "encoder.conv_stem.weights")
    found = read(tmp_path / "w", *names)
    assert (found.tensors.keys(), found.notes) == ({*names}, ())
