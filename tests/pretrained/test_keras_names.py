"""Weights that Keras saves come back; KerasCV's and KerasHub's files have the names we know."""

import hashlib
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import jax
import keras
import keras_weights as kw
import ml_dtypes
import numpy as np
import pytest
from flax import traverse_util
from keras.src import backend
from keras.src.legacy.saving import legacy_h5_format

from jaxcls.models.registry import create_model, model_spec
from jaxcls.models.weights_info import WeightsError, WeightsInfo
from jaxcls.pretrained.families import FAMILIES, find_family
from jaxcls.pretrained.files import read_weights
from jaxcls.pretrained.importing import fitting_models, import_variables
from jaxcls.pretrained.variables import variable_shapes
from jaxcls.pretrained.weights import load_weights

CLASSES = 7
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

type Tensors = dict[str, np.ndarray]

# Keras' variables do not know all that NumPy asks of arrays.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def save_by_name(model: Any, path: Path) -> None:
    """What Keras 2 and `model.save("x.h5")` write, but for the names of TensorFlow's variables."""
    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, model)


def save_whole(model: Any, path: Path) -> None:
    legacy_h5_format.save_model_to_hdf5(model, path)


def save_by_count(model: Any, path: Path) -> None:
    model.save_weights(path)


SAVE = {"by_name.h5": save_by_name, "whole.h5": save_whole, "count.weights.h5": save_by_count}


@pytest.fixture(
    scope="module",
    params=[
        "efficientnetv2_b0",
        "efficientnet_b0",
        *(
            pytest.param(name, marks=pytest.mark.long)
            for name in kw.KERAS_NAMES
            if name not in ("efficientnetv2_b0", "efficientnet_b0")
        ),
    ],
)
def network(request: pytest.FixtureRequest) -> tuple[str, Any, Tensors]:
    """A network's name, Keras' model of it with random weights, and those by our paths."""
    return random_network(request.param)


def random_network(name: str) -> tuple[str, Any, Tensors]:
    model = kw.keras_model(name, image_size=32, num_classes=CLASSES)
    kw.randomise(model, seed=1)
    shapes = kw.shapes_of(create_model(name, num_classes=CLASSES), 32)
    return name, model, flat(kw.import_keras(model, shapes))


def flat(variables: Any) -> dict[str, Any]:
    return dict(traverse_util.flatten_dict(variables, sep="/"))


def without_classifier(variables: Tensors) -> Tensors:
    return {path: value for path, value in variables.items() if "/classifier/" not in path}


def assert_equal(variables: Any, expected: Tensors) -> None:
    """Bit by bit, and no more and no fewer."""
    values = flat(variables)
    assert values.keys() == expected.keys()
    for path, value in values.items():
        assert value.dtype == np.float32, path
        np.testing.assert_array_equal(value, expected[path], err_msg=path)


@pytest.mark.parametrize("top", [True, False], ids=["top", "no_top"])
@pytest.mark.parametrize("form", SAVE)
def test_saved_weights_come_back(network, form: str, top: bool, tmp_path: Path) -> None:
    name, model, expected = network
    if not top:
        model = keras.Model(model.input, model.get_layer("top_activation").output)
        expected = without_classifier(expected)
    SAVE[form](model, tmp_path / form)
    file = read_weights(tmp_path / form)
    assert find_family(file.tensors).name == "keras"
    variables, report = import_variables(file, model_spec(name), num_classes=None)
    assert_equal(variables, expected)
    assert report.mapped == len(expected)
    assert (report.missing, report.unused) == ((), ())


# --- one network in every other form -------------------------------------------------------------


@pytest.fixture(scope="module")
def b0() -> tuple[Any, Tensors]:
    _, model, expected = random_network("efficientnetv2_b0")
    return model, expected


def read_by_name(model: Any, path: Path) -> Tensors:
    save_by_name(model, path)
    return dict(read_weights(path).tensors)


def write(path: Path, tensors: Mapping[str, np.ndarray]) -> Path:
    with h5py.File(path, "w") as file:
        for name, tensor in tensors.items():
            file[name] = tensor
    return path


def as_keras_2(tensors: Tensors) -> Tensors:
    """With the names of TensorFlow's variables."""
    return {
        f"{name.replace('/kernel', '/depthwise_kernel') if 'dwconv' in name else name}:0": tensor
        for name, tensor in tensors.items()
    }


def digest(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, str]:
    """How many tensors, and the sha256 of the sorted lines "name 3x3x3x32"."""
    lines = sorted(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items())
    return len(lines), hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def shapes_in(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    return {name: tensor.shape for name, tensor in tensors.items()}


# Of files that Keras 2.15 wrote, with 1000 classes and without V1's normalisation.
KERAS_2 = {
    "efficientnetv2_b0": (361, "a0d79054bd5e2954"),
    "efficientnet_b0": (311, "b41dd44ecc2f6afd"),
}


def test_a_file_of_keras_2(network, tmp_path: Path) -> None:
    """In whole models, the optimizer has tensors with the same names within their groups."""
    name, model, expected = network
    tensors = as_keras_2(read_by_name(model, tmp_path / "new.h5"))
    if name in KERAS_2:
        shapes = {
            tensor: (*shape[:-1], 1000) if tensor.startswith("predictions/") else shape
            for tensor, shape in shapes_in(tensors).items()
            if "normalization" not in tensor
        }
        assert digest(shapes) == KERAS_2[name]
    momenta = {
        f"optimizer_weights/Adam/m/{each.partition('/')[2]}": np.zeros(1, np.float32)
        for each in tensors
    }
    whole = {f"model_weights/{each}": tensor for each, tensor in tensors.items()} | momenta
    file = read_weights(write(tmp_path / "old.h5", whole))
    variables, _ = import_variables(file, model_spec(name), num_classes=None)
    assert_equal(variables, expected)


@pytest.mark.parametrize("form", SAVE)
def test_a_model_around_the_network(b0, form: str, tmp_path: Path) -> None:
    """As people fine-tune: flips before, a head behind, an optimizer that has made a step."""
    model, expected = b0
    body = keras.Model(model.input, model.get_layer("top_activation").output, name="body")
    whole = keras.Sequential(
        [
            keras.layers.Input((32, 32, 3)),
            keras.layers.RandomFlip(),
            body,
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(3),
        ]
    )
    whole.compile("sgd", "mse")
    whole.optimizer.build(whole.trainable_variables)
    SAVE[form](whole, tmp_path / form)
    file = read_weights(tmp_path / form)
    assert any("optimizer" in name for name in file.tensors) == (form != "by_name.h5")
    assert fitting_models(file) == ("efficientnetv2_b0",)
    variables, _ = import_variables(file, model_spec("efficientnetv2_b0"), num_classes=3)
    kernel, bias = (np.asarray(weight.value) for weight in whole.layers[-1].weights)
    head = {"params/classifier/kernel": kernel, "params/classifier/bias": bias}
    assert_equal(variables, without_classifier(expected) | head)


def save_archive(model: Any, path: Path) -> None:
    model.save(path)


SAVE_16 = SAVE | {"archive.keras": save_archive}


@pytest.mark.parametrize("form", SAVE_16)
@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_half_precision_comes_back(
    b0, form: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HDF5 has no bfloat16: Keras writes bits, and not always what they are."""
    model, expected = b0
    cast: Any = backend.convert_to_numpy
    half = ml_dtypes.bfloat16 if kind == "bfloat16" else np.float16

    def converted(value: Any) -> np.ndarray:
        array = cast(value)
        return array.astype(half) if array.dtype == np.float32 else array

    monkeypatch.setattr(backend, "convert_to_numpy", converted)
    SAVE_16[form](model, tmp_path / form)
    monkeypatch.undo()
    with np.errstate(over="ignore"):
        rounded = {path: value.astype(half).astype("f4") for path, value in expected.items()}
    file = read_weights(tmp_path / form)
    variables, _ = import_variables(file, model_spec("efficientnetv2_b0"), num_classes=None)
    assert_equal(variables, rounded)


def test_an_archive_comes_back_and_a_damaged_one_is_refused(b0, tmp_path: Path) -> None:
    model, expected = b0
    path = tmp_path / "model.keras"
    model.save(path)
    file = read_weights(path)
    assert fitting_models(file) == ("efficientnetv2_b0",)
    variables, _ = import_variables(file, model_spec("efficientnetv2_b0"), num_classes=None)
    assert_equal(variables, expected)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] + b"x" + whole[len(whole) // 2 + 1 :])
    with pytest.raises(WeightsError, match="the Keras archive is damaged or cut off"):
        read_weights(path)
    for packing, says in (
        (zipfile.ZIP_DEFLATED, "is compressed, which Keras never does"),
        (zipfile.ZIP_STORED, "the Keras archive is damaged"),
    ):
        with zipfile.ZipFile(path, "w", packing) as archive:
            archive.writestr("model.weights.h5", b"\x89HDF" + bytes(1000))
        with pytest.raises(WeightsError, match=says):
            read_weights(path)


def test_weights_in_several_files_come_back(b0, tmp_path: Path) -> None:
    model, expected = b0
    path = tmp_path / "net.weights.json"
    model.save_weights(path, max_shard_size=0.01)
    shards = sorted(tmp_path.glob("*.h5"))
    assert len(shards) > 2
    file = read_weights(path)
    assert file.notes == (f"read from {len(shards)} files",)
    variables, _ = import_variables(file, model_spec("efficientnetv2_b0"), num_classes=None)
    assert_equal(variables, expected)
    shards[1].unlink()
    with pytest.raises(
        WeightsError, match=rf"1 of them is not beside it, such as {shards[1].name}"
    ):
        read_weights(path)


# --- heads that are not ours ---------------------------------------------------------------------


def with_head(body: Any, *layers: Any) -> Any:
    """Keras' model with other layers behind its features, side by side with its own."""
    x = keras.layers.GlobalAveragePooling2D(name="avg")(body.get_layer("top_activation").output)
    for layer in layers:
        x = layer(x)
    return keras.Model(body.input, x)


def tutorial_head() -> tuple[Any, ...]:
    """Of keras.io's "Image classification via fine-tuning with EfficientNet"."""
    return keras.layers.BatchNormalization(), keras.layers.Dense(5, name="pred")


def two_layers() -> tuple[Any, ...]:
    return keras.layers.Dense(3, activation="relu"), keras.layers.Dense(5)


@pytest.mark.parametrize("form", SAVE)
@pytest.mark.parametrize(
    ("head", "left_over"),
    [
        (tutorial_head, r"(.*/)?(batch_normalization(_\d+)?|pred)/.*"),
        (two_layers, r"(.*/)?dense(_\d+)?/.*"),
    ],
)
def test_the_body_under_a_foreign_head(b0, head, left_over: str, form: str, tmp_path: Path) -> None:
    model, expected = b0
    SAVE[form](with_head(model, *head()), tmp_path / form)
    file, info = load_weights(str(tmp_path / form))
    assert info.model == "efficientnetv2_b0"
    spec = model_spec(info.model)
    for num_classes in (None, 3, 5):
        with pytest.raises(WeightsError, match=r"unused tensors(.|\n)*allow_unused takes patterns"):
            import_variables(file, spec, num_classes=num_classes)
        variables, report = import_variables(
            file, spec, num_classes=num_classes, allow_unused=[left_over]
        )
        assert_equal(variables, without_classifier(expected))
        assert report.allowed_unused
        assert (report.unused, report.missing) == ((), ())


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    tensors = {
        "layers/conv2d/vars/0": np.zeros((3, 3, 3, 32), "i1"),
        "layers/conv2d_10/vars/0": np.zeros(1, "f4"),
    }
    file = read_weights(write(tmp_path / "q.h5", tensors))
    says = (
        r"layers/conv2d/vars/0: int8 is not a floating-point type; save .* before it is quantised"
    )
    with pytest.raises(WeightsError, match=says):
        import_variables(file, model_spec("efficientnet_b0"), num_classes=None)


def test_a_wrong_shape_is_refused_by_name(b0, tmp_path: Path) -> None:
    tensors = read_by_name(b0[0], tmp_path / "right.h5")
    wrong = "block4a_se_reduce/block4a_se_reduce/kernel"
    tensors[wrong] = tensors[wrong][..., 1:]
    file = read_weights(write(tmp_path / "wrong.h5", tensors))
    with pytest.raises(WeightsError, match=wrong) as error:
        import_variables(file, model_spec("efficientnetv2_b0"), num_classes=None)
    assert str(tmp_path / "wrong.h5") in str(error.value)
    assert "block4a/se/reduce/kernel [1, 1, 192, 12]" in str(error.value)
    assert "is [1, 1, 192, 11]" in str(error.value)


def test_logits_of_v1_equal_keras_with_the_preprocessing_of_the_file(tmp_path: Path) -> None:
    """From pixels: V1 normalises them by variables, which tell mean and standard deviation."""
    name, size = "efficientnet_b0", 33
    model = kw.keras_model(name, image_size=size, num_classes=CLASSES)
    kw.randomise(model, seed=1)
    (layer,) = (each for each in model.layers if isinstance(each, keras.layers.Normalization))
    mean, variance = (np.array(each) for each in ((0.3, 0.4, 0.5), (0.04, 0.09, 0.16)))
    layer.set_weights([mean, variance, np.array(0)])
    layer.finalize_state()
    path = tmp_path / "v1.weights.h5"
    model.save_weights(path)
    file = read_weights(path)
    info = find_family(file.tensors).info(model_spec(name), file.tensors)
    variables, _ = import_variables(file, model_spec(name), num_classes=None)
    images = np.random.default_rng(2).uniform(0, 255, (2, size, size, 3)).astype(np.float32)
    ours = create_model(name, num_classes=CLASSES)
    logits = jax.jit(ours.apply)(variables, (images / 255 - info.mean) / np.array(info.std))
    trained, fixed = (
        [variable.value for variable in group]
        for group in (model.trainable_variables, model.non_trainable_variables)
    )
    expected = jax.jit(lambda x: model.stateless_call(trained, fixed, x, training=False)[0])(images)
    assert kw.relative_error(logits, expected) <= 1e-4


# --- preprocessing -------------------------------------------------------------------------------


def info_of(tensors: Tensors, model: str) -> WeightsInfo:
    return find_family(tensors).info(model_spec(model), tensors)


@pytest.mark.parametrize(
    ("variance", "std"),
    [
        ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0)),
        ((0.04, 0.09, 0.16), (0.2, 0.3, 0.4)),
        # ImageNet's weights of keras.applications; a layer without variables mends it.
        (IMAGENET_STD, IMAGENET_STD),
    ],
)
@pytest.mark.parametrize("form", ["normalization/vars/{}", "normalization_1/normalization_1/{}:0"])
def test_v1_tells_its_normalisation(variance, std, form: str) -> None:
    counted = "vars" in form
    marker = "layers/conv2d_10/vars/0" if counted else "block1a_dwconv/block1a_dwconv/kernel:0"
    prefix = "layers/" if counted else ""
    names = (0, 1, 2) if counted else ("mean", "variance", "count")
    values = (IMAGENET_MEAN, variance, 0)
    tensors = {marker: np.zeros(1)} | {
        prefix + form.format(each): np.array(value, np.float32)
        for each, value in zip(names, values, strict=True)
    }
    info = info_of(tensors, "efficientnet_b0")
    assert info.mean == pytest.approx(IMAGENET_MEAN)
    assert info.std == pytest.approx(std)
    assert info.padding == "same"


def test_v2_is_normalised_as_the_network_wants() -> None:
    tensors = {"layers/conv2d_10/vars/0": np.zeros(1), "layers/conv2d/vars/0": np.zeros(1)}
    for model in ("efficientnetv2_b0", "efficientnetv2_s"):
        info, spec = info_of(tensors, model), model_spec(model)
        assert (info.mean, info.std, info.padding) == (spec.mean, spec.std, "same")


def test_keras_cv_wants_images_between_0_and_1() -> None:
    info = info_of({"layers/fused_mb_conv_block/bn3/vars/0": np.zeros(1)}, "efficientnetv2_s")
    assert (info.mean, info.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert (info.padding, info.batch_norm_epsilon) == ("same", 1e-3)


@pytest.mark.parametrize("group", ["", "layers/efficient_net_backbone/"])
def test_keras_hub_pads_as_pytorch_does(group: str) -> None:
    """Alone, its backbone has the names of keras.applications, but no normalisation."""
    tensors = {f"{group}layers/{each}/vars/0": np.zeros(1) for each in ("conv2d", "conv2d_10")}
    info = info_of(tensors, "efficientnet_b0")
    assert (info.mean, info.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert (info.padding, info.batch_norm_epsilon) == ("symmetric", 1e-5)


# --- KerasCV and KerasHub ------------------------------------------------------------------------

# Digests of the `.weights.h5` of classifiers with 1000 classes: KerasCV 0.9.0 and Keras 3.15.1,
# KerasHub 0.32.0.
COUNTED = {
    "keras_cv": {
        "efficientnetv2_b0": (361, "09cb4d4ec7a5c0f0"),
        "efficientnetv2_b1": (443, "3b0deadaa0d4cd10"),
        "efficientnetv2_b2": (462, "bc6a38ab739e168f"),
        "efficientnetv2_b3": (538, "c9fe1268db7b0667"),
        "efficientnetv2_s": (672, "4eca0955e556c814"),
        "efficientnetv2_m": (963, "60c5021d807675a0"),
        "efficientnetv2_l": (1331, "30f2d69bbd805374"),
    },
    "keras_hub": {
        "efficientnet_b0": (311, "7e00aa926734f098"),
        "efficientnet_b1": (439, "d98c6631868b32a3"),
        "efficientnet_b2": (439, "af460c1546be0857"),
        "efficientnet_b3": (496, "8911b8ec099b1043"),
        "efficientnet_b4": (610, "acab868b7e36c4e2"),
        "efficientnet_b5": (738, "6af97825dbd06a80"),
        "efficientnet_lite0": (247, "a3b269e49303e713"),
        "efficientnet_es": (247, "555d22a31ea73cf4"),
        "efficientnet_em": (322, "357831f6bedb49d0"),
        "efficientnet_el": (362, "9bd1c3ca24a617c6"),
        "efficientnetv2_rw_t": (653, "b5621ab93c648f99"),
        "efficientnetv2_rw_s": (682, "5c5a8b6f392ac06c"),
        "efficientnetv2_rw_m": (1035, "321d02d8b0f92d25"),
    },
}
# Of the same by name, of KerasCV 0.8.2 and Keras 2.15.
KERAS_CV_BY_NAME = (361, "8417b9d74cf7df24")
GROUP = {
    "keras_cv": "layers/efficient_net_v2_backbone/",
    "keras_hub": "layers/efficient_net_backbone/",
}

# A block of each kind and what is around them, read off the files' own "name" attributes; digests
# cannot tell whether two tensors of one shape are swapped.
KERAS_CV_LAYERS = {
    "stem_conv": "conv2d",
    "stem_bn": "batch_normalization",
    "block1a/project_conv": "fused_mb_conv_block/output_conv",
    "block1a/project_bn": "fused_mb_conv_block/bn3",
    "block3b/expand_conv": "fused_mb_conv_block_4/conv1",
    "block3b/expand_bn": "fused_mb_conv_block_4/bn1",
    "block3b/project_conv": "fused_mb_conv_block_4/output_conv",
    "block3b/project_bn": "fused_mb_conv_block_4/bn3",
    "block4a/expand_conv": "mb_conv_block/conv1",
    "block4b/expand_bn": "mb_conv_block_1/bn1",
    "block4b/depthwise_conv": "mb_conv_block_1/depthwise",
    "block4b/depthwise_bn": "mb_conv_block_1/bn2",
    "block4b/se/reduce": "mb_conv_block_1/se_conv1",
    "block4b/se/expand": "mb_conv_block_1/se_conv2",
    "block4b/project_conv": "mb_conv_block_1/output_conv",
    "block4b/project_bn": "mb_conv_block_1/bn3",
    "head_conv": "conv2d_1",
    "head_bn": "batch_normalization_1",
}
# The same of KerasHub, whose blocks have layers of other names.
KERAS_HUB_LAYERS = {
    "efficientnetv2_rw_t": {
        "block1b/project_conv": "cba_block_1/conv1",
        "block1b/project_bn": "cba_block_1/bn1",
        "block2b/expand_conv": "fused_mb_conv_block_1/conv1",
        "block2b/expand_bn": "fused_mb_conv_block_1/bn1",
        "block2b/project_conv": "fused_mb_conv_block_1/output_conv",
        "block2b/project_bn": "fused_mb_conv_block_1/bn2",
        "block4b/depthwise_bn": "mb_conv_block_1/bn2",
        "block4b/project_bn": "mb_conv_block_1/bn3",
    },
    "efficientnetv2_rw_s": {
        "block1b/expand_conv": "fused_mb_conv_block_1/conv1",
        "block1b/project_conv": "fused_mb_conv_block_1/output_conv",
    },
}


def names_in(family: str, model: str, *present: str) -> dict[str, str]:
    """The names of our variables in a file of which some tensors are known."""
    (found,) = (each for each in FAMILIES if each.name == family)
    return found.names(model_spec(model), present)


def stored_shapes(names: Mapping[str, str], model: str) -> dict[str, tuple[int, ...]]:
    """By the file's names; Keras keeps depthwise kernels as [height, width, channels, 1]."""
    return {
        names[path]: (*shape[:2], shape[3], shape[2]) if "/depthwise_conv/" in path else shape
        for path, shape in variable_shapes(model_spec(model), num_classes=1000).items()
    }


BLOCKS_OF_KERAS_HUB = [
    ("keras_hub", model) for model in COUNTED["keras_hub"] if re.search(r"v2|_e[sml]$", model)
]


def counted_names(family: str, model: str) -> dict[str, str]:
    present = [f"{GROUP[family]}layers/conv2d/vars/0", "layers/dense/vars/0"]
    if (family, model) in BLOCKS_OF_KERAS_HUB:
        present.append(f"{GROUP[family]}layers/fused_mb_conv_block/bn2/vars/0")
    return names_in(family, model, *present)


@pytest.mark.parametrize(
    ("family", "model"), [(family, model) for family, of in COUNTED.items() for model in of]
)
def test_names_and_shapes_are_the_published_ones(family: str, model: str) -> None:
    shapes = stored_shapes(counted_names(family, model), model)
    assert digest(shapes) == COUNTED[family][model]
    assert find_family(shapes).name == family


def test_the_blocks_of_keras_cv_are_the_right_ones() -> None:
    names = counted_names("keras_cv", "efficientnetv2_b0")
    for ours, theirs in KERAS_CV_LAYERS.items():
        layer = f"{GROUP['keras_cv']}layers/{theirs}/vars"
        if ours.endswith("_bn"):
            assert names[f"params/{ours}/scale"] == f"{layer}/0"
            assert names[f"params/{ours}/bias"] == f"{layer}/1"
            assert names[f"batch_stats/{ours}/mean"] == f"{layer}/2"
            assert names[f"batch_stats/{ours}/var"] == f"{layer}/3"
        else:
            assert names[f"params/{ours}/kernel"] == f"{layer}/0"
    assert names["params/block4b/se/reduce/bias"].endswith("mb_conv_block_1/se_conv1/vars/1")
    assert names["params/classifier/kernel"] == "layers/dense/vars/0"
    assert names["params/classifier/bias"] == "layers/dense/vars/1"


@pytest.mark.parametrize("model", KERAS_HUB_LAYERS)
def test_the_blocks_of_keras_hub_are_the_right_ones(model: str) -> None:
    names = counted_names("keras_hub", model)
    for ours, theirs in KERAS_HUB_LAYERS[model].items():
        leaf = "scale" if ours.endswith("_bn") else "kernel"
        assert names[f"params/{ours}/{leaf}"] == f"{GROUP['keras_hub']}layers/{theirs}/vars/0"


@pytest.mark.parametrize(
    ("model", "crop"), [("efficientnetv2_rw_t", 1.0), ("efficientnet_es", 0.875)]
)
def test_the_blocks_of_keras_hub_are_padded_as_they_were_trained(model: str, crop: float) -> None:
    tensors = {name: np.zeros(1) for name in counted_names("keras_hub", model).values()}
    info = info_of(tensors, model)
    assert (info.padding, info.batch_norm_epsilon, info.crop_fraction) == ("symmetric", 1e-5, crop)
    assert (info.mean, info.std) == (IMAGENET_MEAN, IMAGENET_STD)


@pytest.mark.parametrize("form", ["by name", "by count"])
def test_keras_cv_files_come_back(b0, form: str, tmp_path: Path) -> None:
    model, expected = b0
    tensors = as_keras_2(read_by_name(model, tmp_path / "keras.h5"))
    if form == "by name":
        tensors = {keras_cv_name(name): tensor for name, tensor in tensors.items()}
        shapes = shapes_in(tensors) | {
            "predictions/predictions/kernel:0": (1280, 1000),
            "predictions/predictions/bias:0": (1000,),
        }
        assert digest(shapes) == KERAS_CV_BY_NAME
    else:
        theirs = names_in("keras", "efficientnetv2_b0", *tensors)
        ours = {name: path for path, name in theirs.items()}
        counted = counted_names("keras_cv", "efficientnetv2_b0")
        tensors = {counted[ours[name]]: tensor for name, tensor in tensors.items()}
    file = read_weights(write(tmp_path / "keras_cv.h5", tensors))
    variables, report = import_variables(file, model_spec("efficientnetv2_b0"), num_classes=None)
    assert report.family == "keras_cv"
    assert_equal(variables, expected)


def keras_cv_name(name: str) -> str:
    """The blocks are layers, and the classifier stands outside the backbone."""
    layer, _, leaf = name.split("/")
    if layer == "predictions":
        return name
    block = f"{layer.partition('_')[0]}_/" if layer.startswith("block") else ""
    return f"efficient_net_v2_backbone/{block}{layer}/{leaf}"


@pytest.mark.parametrize(
    "name",
    [
        "layers/efficient_net_v1_backbone/layers/conv2d_10/vars/0",  # KerasCV's V1
        "layers/conv2d_1/vars/0",
    ],
)
def test_other_networks_are_of_no_family(name: str) -> None:
    with pytest.raises(WeightsError, match="in any of"):
        find_family([name, "layers/conv2d/vars/0"])
