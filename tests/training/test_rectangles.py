"""Images that are not square, through a whole training, evaluation, prediction and export."""

import dataclasses
from pathlib import Path

import jax
import jax.export
import numpy as np
import pytest

from jaxcls.config import Config, ConfigError, decode, encode
from jaxcls.config.augment import Mix, RandAugment, RandomCropAndResize
from jaxcls.config.progressive import image_sizes
from jaxcls.distributed.mesh import make_mesh
from jaxcls.inference.classifier import ImageClassifier
from jaxcls.inference.export import make_program
from jaxcls.runs.restore import restore_run
from jaxcls.training.build import build_training
from jaxcls.training.loop import train


@pytest.fixture(scope="module")
def config(tiny_config: Config) -> Config:
    return dataclasses.replace(
        tiny_config,
        data=dataclasses.replace(
            tiny_config.data, image_size=(12, 24), stage_image_sizes=(8, 12), crop_fraction=0.8
        ),
        augment=(RandomCropAndResize(), RandAugment(ops=("Rotate", "Color")), Mix(group_size=2)),
        num_steps=4,
        log_images=4,
    )


@pytest.fixture(scope="module")
def run(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("rectangles") / "run"
    train(config, run, mesh=make_mesh(jax.devices()[:1]))
    return run


def test_the_stages_have_the_shape_of_the_last(config: Config) -> None:
    assert image_sizes(config) == ((8, 16), (12, 24))


def test_it_trains_evaluates_and_comes_back_from_its_record(run: Path) -> None:
    classifier = ImageClassifier.from_run(run)
    assert classifier.config.data.image_size == (12, 24)
    metrics = classifier.evaluate()
    assert (metrics["step"], metrics["num_examples"]) == (4, 355)


def test_the_exported_program_is_the_prediction(run: Path) -> None:
    images = np.random.default_rng(0).integers(256, size=(3, 40, 50, 3), dtype=np.uint8)
    program = make_program(restore_run(run), platforms=["cpu"])
    expected = ImageClassifier.from_run(run).predict(images)
    np.testing.assert_allclose(program.call(images), expected, rtol=1e-4)


def test_devices_change_no_image(config: Config) -> None:
    """The step on eight devices takes the batch of rectangles and exchanges no image."""
    training = build_training(config, num_classes=10, num_examples=1442, mesh=make_mesh())
    shapes = {name: array.shape for name, array in training.abstract_batch().items()}
    assert shapes["images"] == (32, 8, 8, 3)
    assert set(training.steps) == {(8, 16), (12, 24)}


def test_two_numbers_in_any_order_are_a_size(config: Config) -> None:
    data = dataclasses.replace(config.data, image_size=(24, 12))
    upright = dataclasses.replace(config, data=data)
    assert decode(encode(upright)).data.image_size == (24, 12)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((12, 24, 3), "data.image_size: .*expected 2 entries"),
        ((12,), "data.image_size: "),
        ((-1, 24), "data.image_size: .*at least 0"),
        ("12x24", "data.image_size: "),
        ((16, 24), "data.stage_image_sizes: the last of .* must be 16, the shorter side"),
    ],
)
def test_what_is_no_size_is_refused(config: Config, size: object, message: str) -> None:
    values = encode(config)
    values["data"]["image_size"] = size
    with pytest.raises(ConfigError, match=message):
        decode(values)


def test_a_side_of_0_is_refused(config: Config, tmp_path: Path) -> None:
    data = dataclasses.replace(config.data, image_size=(0, 24), stage_image_sizes=())
    with pytest.raises(ConfigError, match=r"data.image_size: height and width must be at least 1"):
        train(dataclasses.replace(config, data=data), tmp_path / "run")
