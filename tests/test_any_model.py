"""Presets and weights files as the MODEL of `predict`, `evaluate` and `convert`."""

import csv
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import skimage.data
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from sklearn.datasets import load_sample_image

from jaxcls import ImageClassifier
from jaxcls.commands.cli import main
from jaxcls.config import Config, DataConfig, ModelConfig
from jaxcls.data.sources import open_source
from jaxcls.inference.class_matching import match_classes
from jaxcls.models.registry import model_from_config, model_spec
from jaxcls.models.weights_info import WeightsError
from jaxcls.pretrained.files import read_weights
from jaxcls.pretrained.hub import fetch_weights
from jaxcls.pretrained.imagenet import imagenet_class_names, imagenet_wordnet_ids
from jaxcls.pretrained.importing import import_variables
from jaxcls.pretrained.presets import preset
from jaxcls.pretrained.resolve import resolve
from jaxcls.pretrained.weights import weights_info
from jaxcls.system.errors import UserError
from jaxcls.training.initial_values import make_initial_values
from jaxcls.training.loop import Outcome

LITE0 = "efficientnet_lite0_imagenet"
CLASSES = ("daisy", "espresso", "palace")


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one photo a class, where commands are given."""
    monkeypatch.chdir(tmp_path)
    arrays = (
        load_sample_image("flower.jpg"),
        skimage.data.coffee(),
        load_sample_image("china.jpg"),
    )
    for name, array in zip(CLASSES, arrays, strict=True):
        for split in ("train", "test"):
            Path("photos", split, name).mkdir(parents=True)
            Image.fromarray(array).save(Path("photos", split, name, "photo.jpg"), quality=95)
    return Path("photos")


@pytest.fixture
def converted(tiny_run: tuple[Path, Outcome], tmp_path: Path) -> Path:
    """The tiny run as a weights file."""
    path = tmp_path / "tiny.safetensors"
    assert main(["convert", str(tiny_run[0]), "-o", str(path)]) == 0
    return path


def error(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main(arguments) == 2
    return capsys.readouterr().err


# Predict and evaluate


def test_a_preset_predicts_files(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", LITE0, str(photos / "test"), "--top", "1", "--format", "json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert [entry["classes"][0]["name"] for entry in entries] == list(CLASSES)
    assert [entry["classes"][0]["id"] for entry in entries] == [985, 967, 698]


@pytest.mark.parametrize("names", [imagenet_class_names(), imagenet_wordnet_ids()])
def test_a_preset_is_evaluated_on_classes_that_it_knows(
    photos: Path, names: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = [imagenet_class_names().index(name) for name in CLASSES]
    for split in ("train", "test"):
        for number, name in zip(numbers, CLASSES, strict=True):
            (photos / split / name).rename(photos / split / names[number])
    options = ["--data.source", f"folder:{photos}", "--data.batch-size", "8", "--json"]
    assert main(["evaluate", LITE0, *options]) == 0
    metrics = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert metrics["top1"] == metrics["top5"] == 1
    assert metrics["num_examples"] == 3
    assert "step" not in metrics


def test_other_classes_get_predictions_but_no_accuracy(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "test"):
        (photos / split / "palace").rename(photos / split / "house")
    options = ["--data.source", f"folder:{photos}", "--data.batch-size", "8"]
    message = error(capsys, "evaluate", LITE0, *options)
    assert "the network does not know 1 of the 3 classes of photos (house); fine-tune" in message
    assert "house" in message
    assert "--predictions FILE.csv" in message
    more = ["--predictions", "guesses.csv", "--per-class"]
    assert main(["evaluate", LITE0, *options, *more]) == 0
    table = capsys.readouterr().out
    assert "3 examples, accuracy not computed: the data has classes the network was not" in table
    (house,) = (line.split() for line in table.splitlines() if line.startswith("house "))
    assert house == ["house", "1", "-", "-", "palace", "(1)"]
    rows = list(csv.DictReader(Path("guesses.csv").read_text().splitlines()))
    assert {row["label"]: row["predicted"] for row in rows} == {
        "daisy": "daisy", "espresso": "espresso", "house": "palace",
    }  # fmt: skip


@pytest.fixture
def nameless(tmp_path: Path) -> Path:
    """Weights of another library for three classes without names; they say the third to all."""
    path = tmp_path / "nameless.safetensors"
    tensors = read_weights(fetch_weights(preset(LITE0))).tensors
    tensors["_fc.weight"] = np.zeros((3, 1280), np.float32)
    tensors["_fc.bias"] = np.array([0, 0, 9], np.float32)
    save_file({f"model.{name}": array for name, array in tensors.items()}, path)
    return path


def test_a_file_names_the_classes_of_weights(
    photos: Path,
    nameless: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for copy in ("a.jpg", "b.jpg"):
        shutil.copy(photos / "test/palace/photo.jpg", photos / "test/palace" / copy)
    options = ["--data.source", f"folder:{photos}", "--data.batch-size", "5", "--json"]
    options += ["--data.image-size", "32", "--data.canvas-size", "32"]
    message = error(capsys, "evaluate", str(nameless), *options)
    assert "the weights do not name their classes; use --class-names FILE" in message
    Path("names.txt").write_bytes(b"\xef\xbb\xbfdaisy\r\nespresso\r\npalace\r\n")
    Path("names.json").write_text('{"espresso": 1, "palace": 2, "daisy": 0}')
    assert main(["evaluate", str(nameless), *options, "--class-names", "names.txt"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["top1"] == pytest.approx(3 / 5)
    monkeypatch.setattr(ImageClassifier, "predict", lambda self, images, **_: np.eye(3)[[2]])
    image = str(photos / "test" / "palace" / "photo.jpg")
    assert main(["predict", str(nameless), image, "--class-names", "names.json"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[1] == "palace"
    out = converted_by(capsys, nameless, Path(), "--class-names", "names.json")
    assert "prefix model. removed from all names" in out
    assert weights_info("x.safetensors").class_names == CLASSES


def test_training_starts_from_what_the_config_allows(photos: Path, nameless: Path) -> None:
    tensors = load_file(nameless)
    averages = {
        name.replace("model.", "ema."): np.negative(array)
        for name, array in tensors.items()
        if array.ndim
    }
    loss = {"loss.weight": np.zeros(3, np.float32)}
    save_file(tensors | averages | loss, "both.safetensors")
    data = DataConfig(source=f"folder:{photos}")
    source = open_source(data, data.train_split)
    kernels = []
    for ema in (True, False):
        model = ModelConfig(
            name="auto", weights="both.safetensors", weights_ema=ema, allow_unused=("loss.*",)
        )
        config = resolve(Config(model=model, data=data, num_steps=1))
        values, report = make_initial_values(
            config, model_from_config(config, num_classes=3), source
        )
        assert "unused tensors, as allowed (1)" in report
        assert ("used the moving averages" in report) == ema
        kernels.append(values["params"]["stem_conv"]["kernel"])
    np.testing.assert_array_equal(kernels[0], -kernels[1])
    strict = dataclasses.replace(config, model=dataclasses.replace(config.model, allow_unused=()))
    with pytest.raises(WeightsError, match=r"unused tensors \(1\):\n  loss.weight"):
        make_initial_values(strict, model_from_config(strict, num_classes=3), source)


def test_mistakes_in_the_names_of_classes(
    nameless: Path,
    tiny_run: tuple[Path, Outcome],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(nameless.parent)
    Path("two.txt").write_text("a\nb\n")
    says = "class_names: 2 names, but the classifier of"
    files = ["--class-names", "two.txt"]
    for command in (
        ["predict", str(nameless), "a.png"],
        ["evaluate", str(nameless), "--data.source", "digits"],
        ["convert", str(nameless), "-o", "out.safetensors"],
    ):
        Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save("a.png")
        assert says in error(capsys, *command, *files)
        assert "gone.txt: the class names cannot" in error(
            capsys, *command, "--class-names", "gone.txt"
        )
        run = [command[0], str(tiny_run[0]), *command[2:]]
        said = error(capsys, *run, *files)
        assert "class" in said.partition(": a run already has its class names")[0]
        assert "leave the option" in said.partition(": a run already has its class names")[2]
    assert not Path("out.safetensors").exists()


def test_classes_are_matched_by_name_or_wordnet_id() -> None:
    names, ids = imagenet_class_names(), imagenet_wordnet_ids()
    assert match_classes([names[7], "nothing", ids[3]], names) == [7, 1001, 3]
    assert match_classes([names[7], ids[3]], ids) == [7, 3]
    assert match_classes(["b", ids[3], "a"], ("a", "b")) == [1, 3, 0]


def test_a_model_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    message = error(capsys, "predict", "eficientnet_lite0_imagenet", __file__)
    assert "no such run, preset or weights file; did you mean 'efficientnet_lite0" in message


def test_a_preset_has_no_steps_and_no_data_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    message = error(capsys, "evaluate", LITE0, "--step", "best")
    assert f"--step: only a run has steps, and {LITE0!r} is a preset" in message
    assert f"data.source: name the data to evaluate {LITE0!r} on" in error(
        capsys, "evaluate", LITE0
    )


def test_other_data_leave_a_runs_evaluation_alone(
    photos: Path, tiny_run: tuple[Path, Outcome]
) -> None:
    run = Path(shutil.copytree(tiny_run[0], "run"))
    assert main(["evaluate", str(run)]) == 0
    before = (run / "eval.json").read_bytes()
    options = ["--data.source", f"folder:{photos}", "--predictions", "guesses.csv"]
    assert main(["evaluate", str(run), *options]) == 0
    assert (run / "eval.json").read_bytes() == before


# Other classifiers


def test_a_new_classifier_on_a_preset() -> None:
    classifier = ImageClassifier.from_preset(LITE0, num_classes=2)
    original = ImageClassifier.from_preset(LITE0)
    assert classifier.class_names == ("class 0", "class 1")
    with pytest.raises(UserError, match="num_classes: must be at least 1, got 0"):
        ImageClassifier.from_preset(LITE0, num_classes=0)
    photo = skimage.data.chelsea()
    assert classifier.predict([photo]).shape == (1, 2)
    np.testing.assert_array_equal(classifier.features([photo]), original.features([photo]))


def test_a_file_without_a_classifier_gives_features_alone(converted: Path, tmp_path: Path) -> None:
    path = tmp_path / "headless.safetensors"
    keep_tensors(converted, path, lambda name: "classifier" not in name)
    headless, whole = ImageClassifier.from_file(path), ImageClassifier.from_file(converted)
    images = np.zeros((1, 16, 16, 3), np.uint8)
    np.testing.assert_array_equal(headless.features(images), whole.features(images))
    for use in (lambda: headless.predict(images), headless.evaluate):
        with pytest.raises(UserError, match="has no classifier; use features"):
            use()
    assert ImageClassifier.from_file(path, num_classes=4).predict(images).shape == (1, 4)


def test_what_may_be_missing_starts_at_random(converted: Path, tmp_path: Path) -> None:
    path = tmp_path / "part.safetensors"
    keep_tensors(converted, path, lambda name: "block1a" not in name)
    with pytest.raises(WeightsError, match=r"missing(.|\n)*block1a/project_conv/kernel"):
        ImageClassifier.from_file(path)
    part = ImageClassifier.from_file(path, allow_missing=["block1a.*"]).variables["params"]
    whole = ImageClassifier.from_file(converted).variables["params"]
    kernels = [params["block1a"]["project_conv"]["kernel"] for params in (part, whole)]
    assert kernels[0].shape == kernels[1].shape
    assert np.abs(kernels[0] - kernels[1]).max() > 0.01
    np.testing.assert_array_equal(part["stem_conv"]["kernel"], whole["stem_conv"]["kernel"])


def keep_tensors(source: Path, target: Path, wanted: Callable[[str], bool]) -> None:
    """Copies a weights file with some of its tensors."""
    with safe_open(source, "numpy") as file:
        metadata = file.metadata()
    tensors = {name: array for name, array in load_file(source).items() if wanted(name)}
    save_file(tensors, target, metadata)


def test_what_is_wrong_is_named_although_nobody_names_the_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The network is the one that the tensors come closest to."""
    whole, cut = tmp_path / "whole.safetensors", tmp_path / "cut.safetensors"
    tensors = read_weights(fetch_weights(preset(LITE0))).tensors
    missing = "_blocks.3._project_conv.weight"
    save_file({name: array for name, array in tensors.items() if name != missing}, cut)
    save_file(tensors, whole)
    assert "247 variables" in converted_by(capsys, whole, tmp_path)
    message = error(capsys, "convert", str(cut), "-o", str(tmp_path / "out.safetensors"))
    assert f"{cut} does not fit efficientnet_lite0: 246 of 247 variables are good" in message
    assert f"block3a/project_conv/kernel ({missing})" in message
    options = ["--allow-missing", "block3a/project_conv/.*"]
    assert "as allowed (1)" in converted_by(capsys, cut, tmp_path, *options)


def converted_by(
    capsys: pytest.CaptureFixture[str], path: Path, folder: Path, *options: str
) -> str:
    capsys.readouterr()
    assert main(["convert", str(path), "-o", str(folder / "x.safetensors"), *options]) == 0
    return capsys.readouterr().out


# Convert


def test_tensors_may_be_left_over(
    converted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "more.safetensors"
    with safe_open(converted, "numpy") as file:
        metadata = file.metadata()
    save_file(load_file(converted) | {"loss/weight": np.zeros(3, np.float32)}, path, metadata)
    message = error(capsys, "convert", str(path), "-o", str(tmp_path / "out.safetensors"))
    assert "allow_unused takes patterns" in message
    out = converted_by(capsys, path, tmp_path, "--allow-unused", "loss/.*")
    assert "unused tensors, as allowed (1):\n  loss/weight" in out
    with pytest.raises(WeightsError, match="allow_unused"):
        ImageClassifier.from_file(path)
    images = np.zeros((1, 16, 16, 3), np.uint8)
    kept = ImageClassifier.from_file(path, allow_unused=["loss/.*"])
    expected = ImageClassifier.from_file(converted).predict(images)
    np.testing.assert_array_equal(kept.predict(images), expected)
    assert load_file(tmp_path / "x.safetensors").keys() == load_file(converted).keys()


def test_a_converted_run_predicts_the_same(
    converted: Path, tiny_run: tuple[Path, Outcome], capsys: pytest.CaptureFixture[str]
) -> None:
    from_file, from_run = (
        ImageClassifier.from_file(converted),
        ImageClassifier.from_run(tiny_run[0]),
    )
    assert from_file.class_names == from_run.class_names
    ours: Any = from_file.model
    theirs: Any = from_run.model
    assert ours == theirs.copy(dropout=ours.dropout)
    images = np.random.default_rng(0).integers(256, size=(4, 20, 30, 3), dtype=np.uint8)
    np.testing.assert_array_equal(from_file.predict(images), from_run.predict(images))
    assert main(["evaluate", str(converted), "--data.source", "digits", "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert metrics["top1"] == tiny_run[1].metrics["top1"]


def test_converting_again_changes_no_bit(converted: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.safetensors"
    assert main(["convert", str(converted), "-o", str(again)]) == 0
    assert again.read_bytes() == converted.read_bytes()


def test_a_file_of_pytorch_is_converted_with_a_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody names the network: only one has these tensors."""
    path, output = fetch_weights(preset(LITE0)), tmp_path / "lite0.safetensors"
    assert main(["convert", str(path), "--output", str(output)]) == 0
    report = capsys.readouterr().out
    assert "247 variables filled from tensors with efficientnet-lite names" in report
    assert f"wrote {output}: efficientnet_lite0, 224 px" in report
    spec = model_spec("efficientnet_lite0")
    assert ImageClassifier.from_file(path).class_names == imagenet_class_names()
    stored, expected = (
        import_variables(read_weights(file), spec, num_classes=None)[0] for file in (output, path)
    )
    jax.tree.map(np.testing.assert_array_equal, stored, expected)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["-o", "out.pth"], "--output: the name must end in .safetensors, got out.pth"),
        (["-o", "out.safetensors", "--model", "efficientnetv2_b0"], "not of efficientnetv2_b0"),
        (["-o", "out.safetensors", "--step", "best"], "--step: only a run has steps"),
        (["-o", "out.safetensors", "--allow-missing", "blok.*"], "'blok.*' matches no variable"),
        (["-o", "out.safetensors", "--allow-unused", "pred.*"], "'pred.*' matches no tensor"),
        (["-o", "../tiny.safetensors/out.safetensors"], "cannot be written"),
    ],
)
def test_mistakes_of_convert_leave_nothing_behind(
    converted: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    expected: str,
) -> None:
    empty = converted.parent / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    assert expected in error(capsys, "convert", str(converted), *options)
    assert not any(empty.iterdir())


def test_a_truncated_file_is_named(
    converted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut, image = tmp_path / "cut.safetensors", tmp_path / "image.png"
    cut.write_bytes(converted.read_bytes()[: converted.stat().st_size // 2])
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(image)
    message = error(capsys, "predict", str(cut), str(image))
    assert str(cut) in message
    assert "cut off" in message
