"""Images of 1, 4 and 6 channels through a whole training, evaluation, prediction and export."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import PIL.Image
import pytest

from jaxcls.config import Config, ConfigError, decode, encode
from jaxcls.config.augment import Cutout, Mix, RandAugment, RandomCropAndResize
from jaxcls.data.images import whole_image
from jaxcls.data.sources import open_source
from jaxcls.distributed.mesh import make_mesh
from jaxcls.inference.classifier import ImageClassifier
from jaxcls.inference.export import export_run, make_program
from jaxcls.pictures.gallery import augmentation_rows, magnitude_rows, training_images
from jaxcls.pictures.plots import plot_gallery, plot_images
from jaxcls.runs.restore import restore_run
from jaxcls.system.errors import UserError
from jaxcls.training.loop import train

PER_CLASS = 16
RANGE = (1000.0, 5000.0)


class Trained(NamedTuple):
    """A run, its files, and their images as the network's preprocessing gets them."""

    run: Path
    files: list[str]
    images: list[np.ndarray]


def write_images(root: Path, channels: int) -> list[str]:
    """Two classes, which only the last channel tells apart: grey, alpha, or the sixth band."""
    generator = np.random.default_rng(0)
    files = []
    for label, name in enumerate(("dark", "light")):
        (root / name).mkdir(parents=True)
        for number in range(PER_CLASS):
            image = generator.integers(256, size=(10, 12, channels), dtype=np.uint8)
            image[..., -1] = generator.integers(60) + 180 * label
            file = root / name / f"{number}.{'npy' if channels == 6 else 'png'}"
            if channels == 6:
                low, high = RANGE
                np.save(file, (low + image / 255 * (high - low)).astype(np.float32))
            else:
                PIL.Image.fromarray(image[..., 0] if channels == 1 else image).save(file)
            files.append(str(file))
    return files


@pytest.fixture(scope="module", params=[1, pytest.param(4, marks=pytest.mark.long), 6])
def trained(
    request: pytest.FixtureRequest, tiny_config: Config, tmp_path_factory: pytest.TempPathFactory
) -> Trained:
    channels, folder = request.param, tmp_path_factory.mktemp("channels")
    files = write_images(folder / "images", channels)
    data = dataclasses.replace(
        tiny_config.data,
        source=f"folder:{folder / 'images'}",
        channels=channels,
        value_range=RANGE if channels == 6 else None,
        test_share=0.25,
        batch_size=8,
        canvas_size=16,
        image_size=12,
    )
    config = dataclasses.replace(
        tiny_config,
        model=dataclasses.replace(tiny_config.model, dropout=0.0, drop_path=0.0),
        data=data,
        augment=(RandomCropAndResize(), Cutout(size=0.3)),
        num_steps=40,
        num_epochs=None,
        log_images=2 if channels == 4 else 0,
    )
    train(config, folder / "run", mesh=make_mesh(jax.devices()[:1]))
    encoded = [Path(file).read_bytes() for file in files]
    images = [whole_image(content, data, where="it") for content in encoded]
    assert {image.shape for image in images} == {(10, 12, channels)}
    return Trained(folder / "run", files, images)


def test_it_learns_what_only_the_last_channel_tells(trained: Trained) -> None:
    classifier = ImageClassifier.from_run(trained.run)
    channels = trained.images[0].shape[2]
    kernel = classifier.variables["params"]["stem_conv"]["kernel"]
    assert kernel.shape[2] == channels == len(classifier.model.spec.mean)
    assert classifier.evaluate()["top1"] == 1
    guessed = classifier.predict(trained.files).argmax(axis=1)
    np.testing.assert_array_equal(guessed, np.arange(len(guessed)) // PER_CLASS)


def test_files_and_arrays_are_predicted_alike(trained: Trained) -> None:
    classifier = ImageClassifier.from_run(trained.run)
    expected = classifier.predict(trained.files)
    np.testing.assert_array_equal(classifier.predict(trained.images), expected)
    np.testing.assert_array_equal(classifier.predict(np.stack(trained.images)), expected)
    if trained.images[0].shape[2] == 6:
        as_stored = [np.load(file) for file in trained.files]
        np.testing.assert_array_equal(classifier.predict(as_stored), expected)
    if trained.images[0].shape[2] == 1:
        flat = [image[..., 0] for image in trained.images]
        np.testing.assert_array_equal(classifier.predict(flat), expected)


def test_other_channels_are_refused_in_one_sentence(trained: Trained, tmp_path: Path) -> None:
    classifier = ImageClassifier.from_run(trained.run)
    channels = classifier.config.data.channels
    with pytest.raises(UserError, match=rf"expected uint8 \[height, width, {channels}\]"):
        classifier.predict(np.zeros((1, 8, 8, 5), np.uint8))
    with pytest.raises(UserError, match=f"^data.channels: 3, .* takes images of {channels}; set"):
        classifier.evaluate(dataclasses.replace(classifier.config.data, channels=3))
    np.save(tmp_path / "other.npy", np.zeros((9, 7, 5), np.uint8))
    with pytest.raises(UserError, match=f"5 channels, but data.channels is {channels};"):
        classifier.predict([tmp_path / "other.npy"])


def test_an_export_takes_the_same_images(trained: Trained, tmp_path: Path) -> None:
    classifier = ImageClassifier.from_run(trained.run)
    expected, images = classifier.predict(trained.files), np.stack(trained.images)
    channels = images.shape[3]
    program = make_program(restore_run(trained.run), platforms=["cpu"])
    np.testing.assert_allclose(program.call(images), expected, rtol=1e-4)
    export_run(trained.run, tmp_path / "export", platforms=["cpu"])
    card = (tmp_path / "export" / "README.md").read_text()
    assert f"np.zeros((1, 300, 400, {channels}), np.uint8)" in card
    assert ("1000 to 0 and 5000 to 255" in card) == (channels == 6)
    again = ImageClassifier.from_file(tmp_path / "export" / "weights.safetensors")
    assert again.config.data.channels == channels
    np.testing.assert_array_equal(again.predict(trained.files), expected)


def test_pictures_show_any_channels(trained: Trained) -> None:
    config = restore_run(trained.run).info.config
    source = open_source(config.data, "train")
    figures = [plot_images(*training_images(config, source, count=2))]
    if config.data.channels == 6:
        figures.append(plot_gallery(augmentation_rows(config, source, step=0, count=2)))
    shown = [
        axes.images[0].get_array() for figure in figures for axes in figure.axes if axes.images
    ]
    assert {image.shape[2] for image in shown if image is not None} == {3}
    with pytest.raises(UserError, match=r"--op: Color needs red, green and blue, but data\."):
        magnitude_rows(config, source, op="Color", step=0, count=2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"channels": 0}, "data.channels: must be at least 1"),
        ({"channels": 4}, "augment.1.ops: Color needs red, green and blue, but data.channels is 4"),
        ({"value_range": [3, 3]}, "data.value_range: both ends are 3"),
        ({"value_range": [3, 1]}, "data.value_range: the low end 3.0 is above the high end 1.0"),
    ],
)
def test_what_does_not_fit_is_refused(
    tiny_config: Config, fields: dict[str, object], message: str
) -> None:
    values = encode(
        dataclasses.replace(tiny_config, augment=(RandomCropAndResize(), RandAugment(), Mix()))
    )
    values["data"] |= fields
    with pytest.raises(ConfigError, match=message):
        decode(values)


@pytest.mark.parametrize("field", ["mean", "std"])
def test_mean_and_std_have_a_number_for_each_channel(tiny_config: Config, field: str) -> None:
    values = encode(tiny_config)
    values["data"]["channels"] = 4
    values["model"][field] = [0.5, 0.5, 0.5]
    with pytest.raises(ConfigError, match=f"model.{field}: .* 3 numbers, but data.channels is 4"):
        decode(values)
    values["model"][field] = [0.5] * 4
    assert getattr(decode(values).model, field) == (0.5,) * 4
