"""Weights decide fields and first values: presets, files, and runs."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxcls.config import Config, DataConfig, ModelConfig
from jaxcls.config.sizes import longer_side
from jaxcls.data.sources import open_source
from jaxcls.distributed.mesh import make_mesh
from jaxcls.models.registry import create_model, model_from_config, model_spec
from jaxcls.models.weights_info import info_of_spec
from jaxcls.pretrained.imagenet import imagenet_class_names, imagenet_wordnet_ids
from jaxcls.pretrained.importing import for_input_channels
from jaxcls.pretrained.jaxcls_file import write_weights
from jaxcls.pretrained.presets import preset_names
from jaxcls.pretrained.resolve import resolve, same_classes
from jaxcls.runs.restore import restore_run
from jaxcls.system.errors import UserError
from jaxcls.training.class_balance import prior_logits
from jaxcls.training.initial_values import make_initial_values
from jaxcls.training.loop import Outcome, train

DIGITS = tuple(str(number) for number in range(10))
OPEN = DataConfig(image_size=0, canvas_size=0, crop_fraction=0, interpolation="auto")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny network with three classes, and a convention unlike its own."""
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    info = info_of_spec(
        model_spec("tiny"),
        mean=(0.1, 0.2, 0.3),
        padding="symmetric",
        pooling="max",
        batch_norm_epsilon=1e-5,
        image_size=24,
        crop_fraction=0.9,
        interpolation="bicubic",
        class_names=("a", "b", "c"),
    )
    write_weights(path, jax.device_get(random_variables(num_classes=3)), info)
    return path


def random_variables(*, num_classes: int) -> Any:
    model = create_model("tiny", num_classes=num_classes)
    return jax.jit(lambda key: model.init(key, np.zeros((1, 24, 24, 3), np.float32)))(
        jax.random.key(7)
    )


def config_of(weights: Path | str | None, **model: Any) -> Config:
    fields = {"name": "auto" if weights else "tiny", **model}
    return Config(
        model=ModelConfig(weights=None if weights is None else str(weights), **fields),
        data=OPEN,
        num_steps=2,
    )


def test_weights_decide_what_the_config_leaves_open(weights: Path) -> None:
    config = resolve(config_of(weights))
    assert (config.model.name, config.model.padding) == ("tiny", "symmetric")
    assert (config.model.pooling, config.model.batch_norm_epsilon) == ("max", 1e-5)
    assert (config.model.mean, config.model.std) == ((0.1, 0.2, 0.3), (0.5, 0.5, 0.5))
    data = config.data
    assert (data.image_size, data.canvas_size, data.crop_fraction) == (24, 48, 0.9)
    assert data.interpolation == "bicubic"
    assert resolve(config) == config
    spec = model_from_config(config, num_classes=10).spec
    assert (spec.mean, spec.padding, spec.batch_norm_epsilon) == (
        (0.1, 0.2, 0.3),
        "symmetric",
        1e-5,
    )


def test_the_config_overrules_the_weights(weights: Path) -> None:
    config = config_of(weights, pooling="average", padding="same", mean=(0.0, 0.0, 0.0))
    data = dataclasses.replace(OPEN, image_size=32, interpolation="bilinear")
    config = resolve(dataclasses.replace(config, data=data))
    assert (config.model.pooling, config.model.padding) == ("average", "same")
    assert config.model.mean == (0, 0, 0)
    assert (config.data.image_size, config.data.canvas_size) == (32, 64)
    assert config.data.interpolation == "bilinear"


def test_without_weights_the_network_decides() -> None:
    config = resolve(config_of(None))
    assert config.model == ModelConfig(name="tiny")
    assert (config.data.image_size, config.data.crop_fraction) == (32, 0.875)
    assert config.data.interpolation == "bilinear"


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_resolves_without_being_fetched(name: str) -> None:
    config = resolve(config_of(name))
    assert config.model.mean is not None
    assert longer_side(config.data.image_size) >= 224


def test_a_new_classifier_where_the_classes_differ(weights: Path) -> None:
    config = resolve(config_of(weights))
    source = open_source(config.data, "train")
    values, said = make_initial_values(config, model_from_config(config, num_classes=10), source)
    assert "classifier" not in values["params"]
    assert "a new classifier of 10 classes" in said
    expected = jax.device_get(random_variables(num_classes=3))
    expected["params"].pop("classifier")
    jax.tree.map(np.testing.assert_array_equal, values, expected)


def test_the_classifier_stays_where_the_classes_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "digits.safetensors"
    info = info_of_spec(model_spec("tiny"), class_names=DIGITS)
    write_weights(path, jax.device_get(random_variables(num_classes=10)), info)
    config = resolve(config_of(path))
    source = open_source(config.data, "train")
    assert source.class_names == DIGITS
    values, said = make_initial_values(config, model_from_config(config, num_classes=10), source)
    assert values["params"]["classifier"]["kernel"].shape == (32, 10)
    assert "new classifier" not in said


@pytest.mark.parametrize("channels", [1, 4])
def test_a_file_and_a_run_are_adapted_to_other_channels(
    channels: int, weights: Path, tiny_run: tuple[Path, Outcome]
) -> None:
    """Mean and std too: the mean of three numbers for each channel. And it is said."""
    of_file, of_run = random_variables(num_classes=3), restore_run(tiny_run[0]).variables
    for name, variables, mean in ((weights, of_file, 0.2), (tiny_run[0], of_run, 0.5)):
        config = config_of(name)
        data = dataclasses.replace(config.data, channels=channels)
        config = resolve(dataclasses.replace(config, data=data))
        np.testing.assert_allclose(config.model.mean or (), [mean] * channels, rtol=1e-6)
        assert config.model.std == (0.5,) * channels
        model = model_from_config(config, num_classes=10)
        values, said = make_initial_values(config, model, open_source(config.data, "train"))
        kernel = values["params"]["stem_conv"]["kernel"]
        expected = for_input_channels(variables["params"]["stem_conv"]["kernel"], channels)
        np.testing.assert_array_equal(kernel, expected)
        assert kernel.shape == (3, 3, channels, 8)
        assert "\nstem_conv/kernel: " in said
        np.testing.assert_array_equal(
            values["params"]["stem_bn"]["scale"], variables["params"]["stem_bn"]["scale"]
        )


def test_imagenet_classes_go_by_names_or_by_wordnet_ids() -> None:
    assert same_classes(imagenet_class_names(), imagenet_wordnet_ids())
    assert same_classes(imagenet_wordnet_ids(), imagenet_class_names())
    assert not same_classes(imagenet_class_names(), imagenet_wordnet_ids()[::-1])


def test_training_starts_from_a_run_and_goes_on_without_it(
    tiny_run: tuple[Path, Outcome], tmp_path: Path
) -> None:
    """Its classifier too, for the data are the same; a resumed run no longer needs its weights."""
    old = tmp_path / "old"
    old.symlink_to(tiny_run[0])
    config = config_of(old)
    data = dataclasses.replace(config.data, batch_size=32, canvas_size=8)
    optimizer = dataclasses.replace(config.optimizer, learning_rate=0.0)
    config = dataclasses.replace(config, data=data, optimizer=optimizer)
    mesh = make_mesh(jax.devices()[:1])
    train(config, tmp_path / "new", mesh=mesh)
    before, after = restore_run(tiny_run[0]), restore_run(tmp_path / "new")
    jax.tree.map(
        np.testing.assert_array_equal, after.variables["params"], before.variables["params"]
    )
    assert after.info.config.model.mean == model_spec("tiny").mean
    assert f"weights {old}: step 12 of the run" in (tmp_path / "new" / "log.txt").read_text()
    old.unlink()
    assert train(config, tmp_path / "new", mesh=mesh).step == 2
    for section, changes in (("model", {"pooling": "max"}), ("data", {"image_size": 20})):
        part = dataclasses.replace(getattr(config, section), **changes)
        with pytest.raises(UserError, match=rf"changed:\n  {section}\.{next(iter(changes))}"):
            train(dataclasses.replace(config, **{section: part}), tmp_path / "new", mesh=mesh)
    named = dataclasses.replace(config.model, name="efficientnetv2_b0")
    with pytest.raises(UserError, match="are of tiny"):
        train(dataclasses.replace(config, model=named), tmp_path / "new", mesh=mesh)


def test_the_bias_starts_at_the_classes_shares() -> None:
    counts = np.array([799, 149, 49, 0])
    shares = (counts + 1) / 1001
    logits = prior_logits(counts, loss="softmax")
    assert logits.dtype == np.float32
    np.testing.assert_allclose(jax.nn.softmax(logits), shares, rtol=1e-5)
    np.testing.assert_allclose(
        jax.nn.sigmoid(prior_logits(counts, loss="sigmoid")), shares, rtol=1e-5
    )


def test_the_prior_is_that_of_the_training_split() -> None:
    config = resolve(config_of(None, head_prior=True))
    source = open_source(config.data, "train[:200]")
    values, _ = make_initial_values(config, model_from_config(config, num_classes=10), source)
    labels = [source[index].label for index in range(200)]
    expected = prior_logits(np.bincount(labels, minlength=10), loss="softmax")
    np.testing.assert_array_equal(values["params"]["classifier"]["bias"], expected)


def error_of(config: Config) -> str:
    with pytest.raises(UserError) as caught:
        resolve(config)
    return str(caught.value)


def test_weights_of_another_network_are_named(weights: Path) -> None:
    message = error_of(config_of(weights, name="efficientnetv2_b0"))
    assert "tiny" in message
    assert "not of efficientnetv2_b0" in message
    message = error_of(config_of("efficientnet_lite0_imagenet", name="efficientnetv2_b0"))
    assert "are of efficientnet_lite0, not of efficientnetv2_b0" in message


def test_the_network_of_a_run_is_its_own(tiny_run: tuple[Path, Outcome]) -> None:
    message = error_of(config_of(tiny_run[0], name="efficientnetv2_b0"))
    assert message.startswith("model.name: efficientnetv2_b0, but the weights")
    assert "are of tiny" in message


def test_weights_that_are_not_there_are_named(tmp_path: Path) -> None:
    message = error_of(config_of("eficientnet_lite0_imagenet"))
    assert "no such run, preset or weights file; did you mean 'efficientnet_lite0_" in message
    assert "has no checkpoint" in error_of(config_of(tmp_path))
