import itertools
import json
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxcls.commands.cli import main
from jaxcls.config import Config
from jaxcls.data.sources import Source, open_source
from jaxcls.inference.class_matching import match_classes
from jaxcls.inference.classifier import ImageClassifier
from jaxcls.inference.image_batches import read_image
from jaxcls.runs.checkpoint import CheckpointError
from jaxcls.system.errors import DataError, UserError
from jaxcls.training.loop import Outcome


@pytest.fixture(scope="module")
def classifier(tiny_run: tuple[Path, Outcome]) -> ImageClassifier:
    return ImageClassifier.from_run(tiny_run[0])


@pytest.fixture(scope="module")
def source(tiny_config: Config) -> Source:
    return open_source(tiny_config.data, "test")


@pytest.fixture(scope="module")
def files(source: Source, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    paths = []
    for index in range(5):
        paths.append(folder / f"{index}.png")
        paths[-1].write_bytes(source[index].image)
    return paths


def test_evaluation_without_a_config_equals_the_one_in_training(
    tiny_run: tuple[Path, Outcome], classifier: ImageClassifier
) -> None:
    """On eight devices here and on one there, and every example once."""
    metrics = classifier.evaluate()
    expected = tiny_run[1].metrics
    assert metrics["step"] == 12
    assert metrics["num_examples"] == expected["num_examples"] == 355
    assert metrics["top1"] == expected["top1"]
    assert metrics["top5"] == expected["top5"]
    assert metrics["loss"] == pytest.approx(expected["loss"], rel=1e-5)


@pytest.mark.parametrize(
    "single", ["photo.png", Path("photo.png"), np.zeros((20, 30, 3), np.uint8)]
)
def test_a_single_image_belongs_into_a_list(classifier: ImageClassifier, single: Any) -> None:
    with pytest.raises(UserError, match="put a single image in a list"):
        classifier.predict(single)


def test_evaluation_counts_what_prediction_guesses(
    classifier: ImageClassifier, source: Source
) -> None:
    images = [source[index].image for index in range(len(source))]
    decoded = [decode(image) for image in images]
    probabilities = classifier.predict(decoded)
    labels = np.array([source[index].label for index in range(len(source))])
    assert (probabilities.argmax(axis=1) == labels).mean() == classifier.evaluate()["top1"]


def decode(image: bytes) -> np.ndarray:
    from jaxcls.data.decode import decode_image

    return decode_image(image, where="test")


def test_a_split_of_the_split(classifier: ImageClassifier) -> None:
    parts = [classifier.evaluate(split=split) for split in ("test[:100]", "test[100:]")]
    assert [part["num_examples"] for part in parts] == [100, 255]
    whole = classifier.evaluate()
    assert sum(part["top1"] * part["num_examples"] for part in parts) == pytest.approx(
        whole["top1"] * 355
    )


def test_paths_arrays_and_batch_sizes_predict_alike(
    classifier: ImageClassifier, files: list[Path]
) -> None:
    arrays = [read_image(path) for path in files]
    from_paths = classifier.predict(files)
    assert from_paths.shape == (5, 10)
    np.testing.assert_allclose(from_paths.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(classifier.predict(arrays), from_paths)
    np.testing.assert_array_equal(classifier.predict(np.stack(arrays)), from_paths)
    np.testing.assert_allclose(classifier.predict(files, batch_size=2), from_paths, atol=1e-6)
    assert classifier.predict([]).shape == (0, 10)


def test_the_bound_on_pixels_is_the_configs_or_ones_own(
    classifier: ImageClassifier, files: list[Path]
) -> None:
    narrow = classifier.with_max_pixels(63)
    with pytest.raises(UserError, match=r"^image '.*8 x 8 pixels are more than 63, .*--max-pixels"):
        narrow.predict(files)
    np.testing.assert_array_equal(
        narrow.with_max_pixels(64).predict(files), classifier.predict(files)
    )


def test_ragged_images_are_brought_to_one_size(classifier: ImageClassifier) -> None:
    generator = np.random.default_rng(0)
    ragged = [generator.integers(256, size=(*s, 3), dtype=np.uint8) for s in [(8, 8), (30, 17)]]
    assert classifier.predict(ragged).shape == (2, 10)


def test_decode_names_the_best_classes(classifier: ImageClassifier) -> None:
    probabilities = np.full((1, 10), 0.05, np.float32)
    probabilities[0, 3] = 0.5
    assert classifier.decode(probabilities, top=1) == [[("3", pytest.approx(0.5))]]
    assert len(classifier.decode(probabilities, top=50)[0]) == 10


def test_equal_probabilities_rank_by_class(classifier: ImageClassifier) -> None:
    (guesses,) = classifier.rank(np.full((1, 10), 0.1, np.float32), top=3)
    assert [guess.id for guess in guesses] == [0, 1, 2]


def test_best_and_numbered_steps(tiny_run: tuple[Path, Outcome]) -> None:
    assert ImageClassifier.from_run(tiny_run[0], step=8).step == 8
    assert ImageClassifier.from_run(tiny_run[0], step="best").step in {4, 8, 12}
    with pytest.raises(CheckpointError, match="7"):
        ImageClassifier.from_run(tiny_run[0], step=7)


def test_a_run_restores_the_moving_averages(
    tiny_run: tuple[Path, Outcome], classifier: ImageClassifier
) -> None:
    leaves = jax.tree.leaves(classifier.variables)
    assert set(classifier.variables) == {"params", "batch_stats"}
    assert all(np.isfinite(leaf).all() for leaf in leaves)


def test_wrong_images_are_named(classifier: ImageClassifier, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"broken\.png"):
        classifier.predict([broken])
    with pytest.raises(UserError, match=r"missing\.png"):
        classifier.predict([tmp_path / "missing.png"])
    with pytest.raises(UserError, match=r"uint8 \[height, width, 3\].*, got float32"):
        classifier.predict([np.zeros((8, 8, 3), np.float32)])


def test_broken_images_are_noted_and_the_others_predicted(
    classifier: ImageClassifier, files: list[Path], tmp_path: Path
) -> None:
    bad = [tmp_path / "broken.png", tmp_path / "missing.png", tmp_path]
    bad[0].write_bytes(b"not an image")
    broken: dict[int, str] = {}
    mixed = [bad[0], bad[1], *files[:3], bad[2], *files[3:]]  # the first batch has none to predict
    rows = classifier.predict(mixed, batch_size=2, broken=broken)
    assert list(broken) == [0, 1, 5]
    for path, why in zip(bad, broken.values(), strict=True):
        assert str(path) in why
    assert np.isnan(rows[list(broken)]).all()
    good = [index for index in range(len(mixed)) if index not in broken]
    # Each image has the same place in its batch as beside the broken ones, because a CPU does not
    # sum all rows of a batch in the same order.
    whole = [path if index in good else files[0] for index, path in enumerate(mixed)]
    expected = classifier.predict(whole, batch_size=2)
    np.testing.assert_array_equal(rows[good], expected[good])
    features = classifier.features(mixed, batch_size=2, broken=broken)
    assert np.isfinite(features).all(axis=1).tolist() == [index in good for index in range(8)]


def test_a_wrong_array_is_an_error_though_broken_files_are_noted(
    classifier: ImageClassifier,
) -> None:
    with pytest.raises(UserError, match="got float32"):
        classifier.predict([np.zeros((8, 8, 3), np.float32)], broken={})


def test_classes_are_matched_by_their_letters() -> None:
    cafe = "caf\N{LATIN SMALL LETTER E WITH ACUTE}"
    from_mac = unicodedata.normalize("NFD", cafe)
    assert match_classes((from_mac, "dog", "fox"), ("dog", cafe)) == [1, 0, 4]
    assert match_classes((cafe,), ("dog", from_mac)) == [1]


def test_evaluate_command(
    tiny_run: tuple[Path, Outcome], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_run[0], tmp_path / "run")
    assert main(["evaluate", str(tmp_path / "run"), "--step", "best", "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"top1", "top5", "loss", "num_examples", "step"} <= report.keys()
    assert json.loads((tmp_path / "run/eval.json").read_text()) == report


def test_a_loss_that_is_not_finite_is_a_message_and_is_not_written(
    tiny_run: tuple[Path, Outcome],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(tiny_run[0], tmp_path / "run")
    broken = {"loss": float("nan"), "top1": 0.0, "top5": 0.0, "num_examples": 355}
    monkeypatch.setattr("jaxcls.inference.classifier.evaluate_split", lambda *_, **__: broken)
    assert main(["evaluate", str(tmp_path / "run"), "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("jaxcls: the loss of step 12 on ")
    assert not (tmp_path / "run/eval.json").exists()


@pytest.mark.parametrize("form", ["table", "json", "csv"])
def test_predict_command(
    tiny_run: tuple[Path, Outcome],
    classifier: ImageClassifier,
    files: list[Path],
    form: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    best = classifier.decode(classifier.predict(files), top=2)
    arguments = ["predict", str(tiny_run[0]), str(files[0].parent), "--top", "2", "--format", form]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    if form == "json":
        entries = json.loads(out)
        assert [entry["image"] for entry in entries] == [str(path) for path in files]
        names = [[guess["name"] for guess in entry["classes"]] for entry in entries]
        assert names == [[name for name, _ in guesses] for guesses in best]
        for guess in itertools.chain(*(entry["classes"] for entry in entries)):
            assert list(guess) == ["id", "name", "probability"]
            assert classifier.class_names[guess["id"]] == guess["name"]
    else:
        lines = out.splitlines()[1:]
        assert len(lines) == 2 * len(files)
        for line, (name, probability) in zip(lines, itertools.chain(*best), strict=True):
            assert name in line.replace(",", " ").split()
            shown = f"{probability:.6f}" if form == "csv" else f"{probability:.2%}"
            assert shown in line
