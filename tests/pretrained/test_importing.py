"""What an import accepts, changes, reports and refuses."""

import dataclasses
import re
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
import pytest
from flax import traverse_util

from jaxcls.config.decoding import ConfigError
from jaxcls.models.efficientnet import BlockSpec, ModelSpec
from jaxcls.models.registry import create_model, model_spec
from jaxcls.models.weights_info import WeightsError
from jaxcls.pretrained.families import find_family
from jaxcls.pretrained.files import WeightsFile
from jaxcls.pretrained.importing import fitting_models, import_variables
from jaxcls.pretrained.torch_names import timm_names
from jaxcls.pretrained.variables import variable_shapes
from jaxcls.pretrained.weights import file_info

SPEC = ModelSpec(
    name="tiny",
    stem_filters=8,
    blocks=(
        BlockSpec(fused=True, repeats=1, filters=8, expansion=1, stride=1, se_ratio=0.0),
        BlockSpec(fused=True, repeats=2, filters=12, expansion=2, stride=2, se_ratio=0.0),
        BlockSpec(fused=False, repeats=2, filters=16, expansion=3, stride=2, se_ratio=0.25),
    ),
    head_filters=24,
    image_size=32,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)
CLASSES = 6
HEAD = {"classifier.weight", "classifier.bias"}


def timm_file(spec: ModelSpec = SPEC, *, num_classes: int = CLASSES) -> WeightsFile:
    """A file with timm's names, random values, and a counter as PyTorch's BatchNorm keeps it."""
    rng = np.random.default_rng(0)
    names = timm_names(spec, ())
    tensors = {}
    for path, shape in variable_shapes(spec, num_classes=num_classes).items():
        array = rng.normal(size=shape).astype(np.float32)
        if path.endswith("/kernel"):
            array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
        tensors[names[path]] = array
    tensors["bn1.num_batches_tracked"] = np.array(3, np.int64)
    return WeightsFile(Path("weights.safetensors"), tensors, {})


def flat(variables: Any) -> dict[str, Any]:
    return {"/".join(path): leaf for path, leaf in traverse_util.flatten_dict(variables).items()}


def refusal(file: WeightsFile, spec: ModelSpec = SPEC, **arguments: Any) -> str:
    with pytest.raises(WeightsError) as caught:
        import_variables(file, spec, num_classes=None, **arguments)
    return str(caught.value)


def test_every_variable_gets_its_tensor() -> None:
    file = timm_file()
    variables, report = import_variables(file, SPEC, num_classes=None)
    arrays = flat(variables)
    assert {path: array.shape for path, array in arrays.items()} == variable_shapes(
        SPEC, num_classes=CLASSES
    )
    assert all(array.dtype == np.float32 for array in arrays.values())
    taken = {name: arrays[path] for path, name in timm_names(SPEC, ()).items()}
    assert taken.keys() | {"bn1.num_batches_tracked"} == file.tensors.keys()
    for name, array in taken.items():  # the same values, in whatever order
        np.testing.assert_array_equal(np.sort(array, None), np.sort(file.tensors[name], None))
    np.testing.assert_array_equal(
        variables["params"]["block3b"]["depthwise_conv"]["kernel"][0, 2, 0],
        file.tensors["blocks.2.1.conv_dw.weight"][:, 0, 0, 2],
    )
    assert report.family == "timm"
    assert report.mapped == len(arrays)
    assert (report.missing, report.allowed, report.unused, report.reshaped) == ((), (), (), ())
    assert (report.ignored, report.notes) == (1, ())
    assert str(report) == (
        f"{len(arrays)} variables filled from tensors with timm names\n1 tensor carries no weights"
    )


def test_the_report_says_what_was_left_in_the_file() -> None:
    file = dataclasses.replace(timm_file(), notes=("prefix module. removed from all names",))
    file.tensors["bn2.num_batches_tracked"] = np.array(3, np.int64)
    _, report = import_variables(file, SPEC, num_classes=None)
    assert str(report).splitlines()[1:] == [
        "prefix module. removed from all names",
        "2 tensors carry no weights",
    ]


def test_names_are_escaped() -> None:
    file = timm_file()
    file.tensors["x\n\x1b[31m"] = np.zeros(3, np.float32)
    assert "unused tensors (1):\n  x\\n\\x1b[31m" in refusal(file)
    file = WeightsFile(Path("w"), {"x\n\x1b[31m": np.zeros(3, np.float32)}, {})
    assert "names in the file: x\\n\\x1b[31m" in refusal(file)


def test_same_number_of_classes_asked_for() -> None:
    variables, report = import_variables(timm_file(), SPEC, num_classes=CLASSES)
    assert variables["params"]["classifier"]["kernel"].shape == (24, CLASSES)
    assert report.reshaped == ()


@pytest.mark.parametrize(
    ("in_file", "asked", "sentence"),
    [
        (CLASSES, 2, "classifier: 6 classes replaced by 2"),
        (CLASSES, 0, "classifier: 6 classes left out"),
        (0, 2, "classifier: none in the file, 2 new classes"),
        (0, None, None),
    ],
)
def test_classifier_of_another_size(in_file: int, asked: int | None, sentence: str | None) -> None:
    file = timm_file(num_classes=in_file)
    variables, report = import_variables(file, SPEC, num_classes=asked)
    assert flat(variables).keys() == variable_shapes(SPEC, num_classes=0).keys()
    assert report.reshaped == ((sentence,) if sentence else ())
    assert sentence is None or sentence in str(report)


def test_half_a_classifier_is_an_error() -> None:
    file = timm_file()
    del file.tensors["classifier.bias"]
    assert "classifier/bias (classifier.bias)" in refusal(file)
    file = timm_file()
    del file.tensors["classifier.weight"]
    assert "unused tensors (1):\n  classifier.bias" in refusal(file)


def test_stem_of_one_channel_sees_grey_images_alike() -> None:
    spec: Any = model_spec("efficientnet_lite0")
    file = timm_file(spec, num_classes=0)
    grey = file.tensors["conv_stem.weight"].sum(axis=1, keepdims=True)
    file.tensors["conv_stem.weight"] = grey
    variables, report = import_variables(file, spec, num_classes=0)
    kernel = variables["params"]["stem_conv"]["kernel"]
    assert kernel.shape == (3, 3, 3, 32)
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel[:, :, 0], kernel[:, :, 2])
    np.testing.assert_allclose(kernel.sum(axis=2), grey[:, 0].transpose(1, 2, 0), rtol=1e-6)
    assert report.reshaped == ("stem_conv/kernel: its 1 input channel in turn for 3, times 1/3",)


@pytest.mark.parametrize("channels", [1, 2, 4, 6, 13])
@pytest.mark.parametrize("found", [3, 4])
def test_a_stem_of_other_channels_is_summed_or_taken_in_turn(found: int, channels: int) -> None:
    """As timm's adapt_input_conv does with three."""
    numbers = {"mean": (0.5,) * found, "std": (0.5,) * found}
    file = timm_file(dataclasses.replace(SPEC, **numbers))
    kernel = file.tensors["conv_stem.weight"].transpose(2, 3, 1, 0)
    expected = np.zeros((*kernel.shape[:2], channels, kernel.shape[3]))
    for channel in range(channels):
        expected[:, :, channel] = kernel[:, :, channel % found] * (found / channels)
    if channels == 1:
        expected = kernel.astype(float).sum(axis=2, keepdims=True)
    spec = dataclasses.replace(SPEC, mean=(0.5,) * channels, std=(0.5,) * channels)
    variables, report = import_variables(file, spec, num_classes=None)
    adapted = variables["params"]["stem_conv"]["kernel"]
    assert adapted.dtype == np.float32
    np.testing.assert_allclose(adapted, expected, rtol=1e-6, atol=1e-6)
    told = f"its {found} input channels in turn for {channels}, times {found}/{channels}"
    if channels == 1:
        told = f"the sum of its {found} input channels, for images of one"
    assert report.reshaped == (() if found == channels else (f"stem_conv/kernel: {told}",))
    if found == channels:
        np.testing.assert_array_equal(adapted, kernel)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_the_info_of_a_file_has_the_channels_of_its_stem(channels: int) -> None:
    spec: Any = model_spec("efficientnet_lite0", channels=channels)
    info, _ = file_info(timm_file(spec), model=spec.name)
    assert (info.channels, len(info.std)) == (channels, channels)
    usual = file_info(timm_file(cast(ModelSpec, model_spec(spec.name))), model=spec.name)[0]
    assert info.mean == pytest.approx((sum(usual.mean) / 3,) * channels)


def test_grey_images_give_the_same_in_one_channel_as_in_three() -> None:
    file = timm_file()
    grey_spec = dataclasses.replace(SPEC, mean=(0.5,), std=(0.5,))
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 1)).astype(np.float32)
    logits = []
    for spec in (SPEC, grey_spec):
        variables, _ = import_variables(file, spec, num_classes=None)
        for path, leaf in flat(variables["batch_stats"]).items():
            np.abs(leaf, out=leaf) if path.endswith("var") else None
        network: Any = spec.build(num_classes=CLASSES)
        logits.append(network.apply(variables, np.repeat(images, spec.channels, axis=3)))
    np.testing.assert_allclose(logits[0], logits[1], rtol=1e-4, atol=1e-4)


def test_missing_variables_are_listed_with_both_names() -> None:
    file = timm_file()
    del file.tensors["blocks.2.0.bn2.running_var"]
    del file.tensors["conv_head.weight"]
    message = refusal(file)
    total = len(variable_shapes(SPEC, num_classes=CLASSES))
    assert f"weights.safetensors does not fit tiny: {total - 2} of {total} variables" in message
    assert "missing (2):" in message
    assert "block3a/depthwise_bn/var (blocks.2.0.bn2.running_var)" in message
    assert "head_conv/kernel (conv_head.weight)" in message
    assert "allow_missing" in message


def test_long_lists_are_cut_and_counted() -> None:
    file = timm_file()
    for name in [name for name in file.tensors if name.startswith("blocks.2")]:
        del file.tensors[name]
    message = refusal(file)
    count = sum("block3" in path for path in variable_shapes(SPEC, num_classes=CLASSES))
    assert count == 38
    assert "missing (38):" in message
    assert "and 28 more" in message
    assert message.count("(blocks.2.") == 10


def test_missing_variables_may_be_allowed() -> None:
    file = timm_file()
    del file.tensors["bn2.weight"]
    del file.tensors["bn2.running_mean"]
    variables, report = import_variables(
        file, SPEC, num_classes=None, allow_missing=[r"head_bn/(scale|mean)"]
    )
    assert report.allowed == ("head_bn/scale", "head_bn/mean")
    assert report.missing == ()
    assert "head_bn/scale" in str(report)
    assert variables["params"]["head_bn"].keys() == {"bias"}
    assert variables["batch_stats"]["head_bn"].keys() == {"var"}


def test_a_pattern_must_fit_the_whole_name_of_what_is_missing() -> None:
    file = timm_file()
    del file.tensors["bn2.weight"]
    assert "head_bn/scale" in refusal(file, allow_missing=["head_conv/.*"])
    message = refusal(file, allow_missing=["head_bn"])
    assert message.startswith("allow_missing: 'head_bn' matches no variable of tiny")
    with pytest.raises(ConfigError, match="allow_missing: '\\(' is not a regular expression"):
        import_variables(file, SPEC, num_classes=None, allow_missing=["("])


def test_unused_tensors_are_an_error() -> None:
    file = timm_file()
    file.tensors["blocks.2.2.conv_pw.weight"] = np.zeros(3, np.float32)
    assert "unused tensors (1):\n  blocks.2.2.conv_pw.weight" in refusal(file)


def test_unused_tensors_may_be_allowed() -> None:
    file = timm_file()
    file.tensors["extra.weight"] = np.zeros(3, np.float32)
    file.tensors["extra.bias"] = np.zeros(3, np.float32)
    message = refusal(file)
    assert "allow_unused takes patterns of tensors that may stay unused" in message
    assert "'extra\\\\.weight'" in message
    assert "extra.bias" in refusal(file, allow_unused=[r"extra\.weight"])
    variables, report = import_variables(
        file, SPEC, num_classes=None, allow_unused=[r"extra\..*", "bn1.*"]
    )
    assert flat(variables).keys() == variable_shapes(SPEC, num_classes=CLASSES).keys()
    assert report.unused == ()
    assert report.allowed_unused == ("extra.weight", "extra.bias")
    assert "unused tensors, as allowed (2):\n  extra.weight\n  extra.bias" in str(report)


def test_patterns_of_unused_tensors_are_checked() -> None:
    message = refusal(timm_file(), allow_unused=["extra"])
    assert message.startswith(
        "allow_unused: 'extra' matches no tensor of weights.safetensors; they"
    )
    assert "classifier.bias" in message
    with pytest.raises(ConfigError, match="allow_unused: '\\(' is not a regular expression"):
        import_variables(timm_file(), SPEC, num_classes=None, allow_unused=["("])


def test_tensors_beside_the_network_are_unused() -> None:
    outside = {"loss.weight": np.zeros(3, np.float32), "m.num_batches_tracked": np.array(3)}
    file = dataclasses.replace(timm_file(), outside=outside)
    assert "unused tensors (1):\n  loss.weight" in refusal(file)
    variables, report = import_variables(file, SPEC, num_classes=None, allow_unused=["loss.*"])
    assert flat(variables).keys() == variable_shapes(SPEC, num_classes=CLASSES).keys()
    assert (report.allowed_unused, report.ignored) == (("loss.weight",), 2)


@pytest.mark.parametrize("asked", [None, 2, CLASSES])
def test_one_layer_of_a_foreign_head_is_no_classifier(asked: int | None) -> None:
    """A network whose classifier feeds another layer tells other things than classes by it."""
    file = timm_file()
    file.tensors["classifier.3.weight"] = np.zeros((2, CLASSES), np.float32)
    with pytest.raises(WeightsError, match=r"unused tensors \(1\):\n  classifier.3.weight"):
        import_variables(file, SPEC, num_classes=asked)
    variables, report = import_variables(
        file, SPEC, num_classes=asked, allow_unused=[r"classifier\.3\..*"]
    )
    assert flat(variables).keys() == variable_shapes(SPEC, num_classes=0).keys()
    (sentence,) = report.reshaped
    assert sentence.startswith(
        "classifier: left out, because its head has other layers, such as cla"
    )
    assert sentence.endswith(f"; {asked} new classes") == (asked is not None)


def test_every_wrong_shape_is_named_with_both_shapes() -> None:
    file = timm_file()
    file.tensors["conv_stem.weight"] = np.zeros((8, 4, 5, 5), np.float32)
    file.tensors["bn1.bias"] = np.zeros(9, np.float32)
    file.tensors["blocks.2.0.conv_dw.weight"] = np.zeros((36, 1, 5, 5), np.float32)
    file.tensors["conv_head.weight"] = np.zeros((24, 16), np.float32)
    message = refusal(file)
    assert "tensors of another shape or type (4):" in message
    assert (
        "stem_conv/kernel [3, 3, 3, 8]: conv_stem.weight is [8, 4, 5, 5], "
        "in jaxcls's layout [5, 5, 4, 8]"
    ) in message
    assert "stem_bn/bias [8]: bn1.bias is [9]\n" in message
    assert "block3a/depthwise_conv/kernel [3, 3, 1, 36]: blocks.2.0.conv_dw.weight" in message
    assert "head_conv/kernel [1, 1, 16, 24]: conv_head.weight is [24, 16]" in message
    assert "allow_missing" not in message


def test_integers_are_refused() -> None:
    file = timm_file()
    file.tensors["conv_stem.weight"] = file.tensors["conv_stem.weight"].astype(np.int8)
    assert "conv_stem.weight: int8 is not a floating-point type" in refusal(file)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    file = timm_file()
    file.tensors["blocks.1.1.conv_exp.weight"][0, 0, 1, :2] = value
    file.tensors["bn2.running_var"][3] = value
    message = refusal(file)
    assert "blocks.1.1.conv_exp.weight: 2 of 2592" in message
    assert "bn2.running_var: 1 of 24" in message


def test_a_classifier_that_is_left_out_may_hold_anything() -> None:
    file = timm_file()
    file.tensors["classifier.weight"][:] = np.nan
    import_variables(file, SPEC, num_classes=2)
    assert "classifier.weight" in refusal(file)


def test_other_precisions_become_float32() -> None:
    file = timm_file()
    half = file.tensors["conv_head.weight"].astype(np.float16)
    file.tensors["conv_head.weight"] = half
    file.tensors["bn2.weight"] = file.tensors["bn2.weight"].astype(np.float64)
    variables, _ = import_variables(file, SPEC, num_classes=None)
    kernel = variables["params"]["head_conv"]["kernel"]
    assert kernel.dtype == variables["params"]["head_bn"]["scale"].dtype == np.float32
    np.testing.assert_array_equal(kernel[0, 0], half[:, :, 0, 0].T.astype(np.float32))


@pytest.mark.parametrize("model", ["tiny_resnet", "resnet50"])
def test_another_kind_of_network_than_the_files(model: str) -> None:
    file = WeightsFile(Path("x"), {"conv_stem.weight": np.zeros((8, 3, 3, 3), np.float32)}, {})
    with pytest.raises(WeightsError, match=rf"x does not fit {model}: .* another kind .*\(timm\)"):
        import_variables(file, model_spec(model), num_classes=None)
    with pytest.raises(WeightsError, match=f"x does not fit {model}"):
        file_info(file, model=model)


def test_another_network_is_recognised() -> None:
    right: Any = model_spec("efficientnetv2_b1")
    wrong: Any = model_spec("efficientnetv2_b0")
    file = timm_file(right, num_classes=3)
    assert fitting_models(file) == ("efficientnetv2_b1",)
    message = refusal(file, wrong)
    assert "it fits efficientnetv2_b1; name that network" in message
    assert re.search(r"unused tensors \(82\):\n  blocks.0.1.conv.weight", message)


def test_names_of_no_family_are_refused() -> None:
    file = WeightsFile(Path("bert.safetensors"), {"encoder.layer.0": np.zeros(2, np.float32)}, {})
    message = refusal(file)
    assert message.startswith("bert.safetensors: ")
    assert "any of jaxcls, timm, torchvision, efficientnet-lite" in message
    assert "the first names in the file: encoder.layer.0" in message
    with pytest.raises(WeightsError, match="the first names in the file: none"):
        find_family([])
    with pytest.raises(WeightsError, match=r"^bert\.safetensors: its tensors are not named"):
        file_info(file, model="resnet50")


def test_imported_variables_are_the_networks() -> None:
    spec: Any = model_spec("efficientnet_lite0")
    variables, _ = import_variables(timm_file(spec), spec, num_classes=None)
    model = create_model("efficientnet_lite0", num_classes=CLASSES)
    images = np.zeros((1, 32, 32, 3), np.float32)
    logits: Any = jax.eval_shape(model.apply, variables, images)
    assert logits.shape == (1, CLASSES)
