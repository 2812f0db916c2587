"""Files of our own: out and in again, and what is refused."""

import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import traverse_util

from jaxcls.models.registry import model_spec
from jaxcls.models.weights_info import WeightsError, WeightsInfo, info_of_spec
from jaxcls.pretrained.files import WeightsFile, read_weights
from jaxcls.pretrained.importing import import_variables
from jaxcls.pretrained.jaxcls_file import stored_info, write_weights
from jaxcls.pretrained.variables import variable_shapes

SPEC = model_spec("efficientnet_lite0")
INFO = WeightsInfo(
    model="efficientnet_lite0",
    mean=(0.1, 1 / 3, 127 / 255),
    std=(0.25, 0.5, 1.0),
    padding="symmetric",
    batch_norm_epsilon=1e-5,
    pooling="max",
    activation="sigmoid",
    image_size=224,
    crop_fraction=224 / 256,
    interpolation="bicubic",
    class_names=("cat", "dög"),
)


def random_variables(*, num_classes: int):
    rng = np.random.default_rng(0)
    shapes = variable_shapes(SPEC, num_classes=num_classes)
    arrays = {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}
    return traverse_util.unflatten_dict(arrays, sep="/")


def with_metadata(text: str) -> WeightsFile:
    return WeightsFile(Path("own.safetensors"), {}, {"jaxcls": text})


@pytest.mark.parametrize("num_classes", [2, 0])
def test_out_and_in_again_is_bit_equal(tmp_path: Path, num_classes: int) -> None:
    variables = random_variables(num_classes=num_classes)
    kernel = variables["params"]["head_conv"]["kernel"]
    kernel[0, 0, :4, 0] = [-0.0, 1e-40, np.finfo(np.float32).max, np.pi]
    variables["params"]["head_conv"]["kernel"] = np.asfortranarray(kernel)
    variables["params"]["stem_bn"]["scale"] = jax.numpy.asarray(
        variables["params"]["stem_bn"]["scale"]
    )
    path = tmp_path / "new" / "own.safetensors"
    write_weights(path, variables, INFO)
    file = read_weights(path)
    assert stored_info(file) == INFO
    again, report = import_variables(file, SPEC, num_classes=None)
    assert report.family == "jaxcls"
    assert report.mapped == len(variable_shapes(SPEC, num_classes=num_classes))
    before, after = traverse_util.flatten_dict(variables), traverse_util.flatten_dict(again)
    assert before.keys() == after.keys()
    for name, array in before.items():
        assert np.asarray(array).tobytes() == np.asarray(after[name]).tobytes(), name
    assert [entry.name for entry in path.parent.iterdir()] == ["own.safetensors"]


def test_plain_info_comes_back() -> None:
    info = info_of_spec(SPEC)
    fields = {"model": info.model, "mean": info.mean, "std": info.std, "image_size": 224}
    assert stored_info(with_metadata(json.dumps({"version": 1, "info": fields}))) == info


def test_other_peoples_files_have_no_info() -> None:
    assert stored_info(WeightsFile(Path("theirs.safetensors"), {}, {"format": "pt"})) is None


def test_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "own.safetensors"
    path.write_text("old")

    def keep_some(file: int) -> None:
        os.ftruncate(file, 100)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", keep_some)
    with pytest.raises(WeightsError, match=r"own\.safetensors cannot be written \(No space left"):
        write_weights(path, random_variables(num_classes=0), INFO)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightsError, match="cannot be written"):
        write_weights(tmp_path / "file" / "own.safetensors", random_variables(num_classes=0), INFO)


GOOD = {"model": "efficientnet_lite0", "mean": [0, 0, 0], "std": [1, 1, 1], "image_size": 224}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ('{"version": 1}', "is damaged"),
        (json.dumps({"version": 2, "info": GOOD}), "has version 2, but this jaxcls reads 1"),
        (json.dumps({"version": 1, "info": []}), "expected a group of fields"),
        (json.dumps({"version": 1, "info": {"model": "x"}}), "mean"),
        (json.dumps({"version": 1, "info": GOOD | {"colour": 1}}), "unknown field colour"),
        (
            json.dumps({"version": 1, "info": GOOD | {"mean": [0, 0]}}),
            "mean has 2 numbers and std 3",
        ),
        (json.dumps({"version": 1, "info": GOOD | {"padding": "valid"}}), "padding: 'valid'"),
        (json.dumps({"version": 1, "info": GOOD | {"image_size": "224"}}), "image_size: expected"),
        (json.dumps({"version": 1, "info": GOOD | {"std": [1, 1, float("nan")]}}), "std"),
    ],
)
def test_damaged_info_is_refused(text: str, message: str) -> None:
    with pytest.raises(WeightsError) as caught:
        stored_info(with_metadata(text))
    assert message in str(caught.value)
    assert str(caught.value).startswith("own.safetensors: metadata 'jaxcls'")
