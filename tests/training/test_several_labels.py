"""Images with several labels, from training to the table of the classes and the export."""

import csv
import dataclasses
import io
import json
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
import two_digits
from sklearn.metrics import average_precision_score, f1_score

from jaxcls.commands import cli
from jaxcls.config import (
    CheckpointConfig,
    Config,
    ConfigError,
    DataConfig,
    LossConfig,
    decode,
    encode,
)
from jaxcls.config.augment import Mix, RandomCrop
from jaxcls.data import sources
from jaxcls.data.decode import decode_image
from jaxcls.distributed.mesh import make_mesh
from jaxcls.inference.classifier import ImageClassifier
from jaxcls.inference.export import export_run
from jaxcls.inference.multi_label_report import MultiLabelEvaluation, best_threshold
from jaxcls.runs.reporter import read_metrics
from jaxcls.runs.restore import restore_run
from jaxcls.training.loop import Outcome, train


@pytest.fixture(scope="module", autouse=True)
def source_kind() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sources.KINDS, "two_digits", ("two_digits", ("two_digits",)))
        yield


@pytest.fixture(scope="module")
def config(tiny_config: Config) -> Config:
    return dataclasses.replace(
        tiny_config,
        data=dataclasses.replace(
            tiny_config.data,
            source="two_digits",
            labels="multiple",
            image_size=(8, 16),
            canvas_size=16,
            crop_fraction=1.0,
        ),
        augment=(RandomCrop(), Mix(group_size=2)),
        loss=LossConfig(name="asymmetric", class_weights="balanced"),
        checkpoint=CheckpointConfig(every_steps=3),
        num_steps=6,
        eval_every_steps=3,
    )


@pytest.fixture(scope="module")
def run(config: Config, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    run = tmp_path_factory.mktemp("several") / "run"
    return run, train(config, run, mesh=make_mesh(jax.devices()[:1]))


@pytest.fixture(scope="module")
def predicted(run: tuple[Path, Outcome]) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of one image after another, and labels, of the test split."""
    classifier, records = ImageClassifier.from_run(run[0]), two_digits.records("test")
    images = [decode_image(record.image, where="test") for record in records]
    labels = np.zeros((len(records), 10), bool)
    for row, record in enumerate(records):
        labels[row, list(record.label)] = True  # type: ignore[arg-type]
    return classifier.predict(images), labels


def test_the_metrics_are_those_of_scikit_learn_on_any_devices(
    run: tuple[Path, Outcome], predicted: tuple[np.ndarray, np.ndarray]
) -> None:
    """50 examples in batches of 32, which eight devices share."""
    probabilities, labels = predicted
    expected = {
        "map": np.mean(
            [average_precision_score(labels[:, i], probabilities[:, i]) for i in range(10)]
        ),
        "micro_f1": f1_score(labels, probabilities >= 0.5, average="micro"),
        "macro_f1": f1_score(labels, probabilities >= 0.5, average="macro"),
        "num_examples": 50,
    }
    p = probabilities.astype(np.float64)
    expected["loss"] = -np.where(labels, np.log(p), np.log1p(-p)).sum(axis=1).mean()
    best = probabilities.argmax(axis=1)
    expected["top1"] = labels[np.arange(50), best].mean()
    for metrics in (run[1].metrics, ImageClassifier.from_run(run[0]).evaluate()):
        assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-4)
        assert "balanced_top1" not in metrics


def test_the_best_checkpoint_is_that_with_the_highest_map(run: tuple[Path, Outcome]) -> None:
    rows = [row for row in read_metrics(run[0] / "metrics.csv") if row["eval_map"]]
    assert [row["step"] for row in rows] == ["3", "6"]
    assert all(row["eval_micro_f1"] and row["eval_raw_map"] for row in rows)
    best = max(rows, key=lambda row: float(row["eval_map"]))["step"]
    assert restore_run(run[0], step="best").step == int(best)


def test_the_table_of_the_classes(
    run: tuple[Path, Outcome], predicted: tuple[np.ndarray, np.ndarray]
) -> None:
    evaluation = ImageClassifier.from_run(run[0]).examine()
    assert isinstance(evaluation, MultiLabelEvaluation)
    probabilities, labels = predicted
    results = evaluation.per_class()
    precisions = [result.average_precision or 0 for result in results]
    assert precisions == sorted(precisions)
    for result in results:
        column, right = probabilities[:, result.id], labels[:, result.id]
        assert result.num_examples == right.sum()
        assert result.average_precision == pytest.approx(average_precision_score(right, column))
        assert result.f1 == pytest.approx(f1_score(right, column >= 0.5))
        best = max(f1_score(right, column >= cut) for cut in column)
        assert result.best_threshold is not None
        found = f1_score(right, column >= np.float32(result.best_threshold))
        assert found == pytest.approx(best)
    file = io.StringIO()
    evaluation.write_predictions(file)
    rows = list(csv.DictReader(io.StringIO(file.getvalue())))
    assert [row["labels"] for row in rows] == [
        ";".join(str(i) for i in np.flatnonzero(row)) for row in labels
    ]


def test_a_class_without_examples_has_no_threshold() -> None:
    assert best_threshold(np.asarray([0.1, 0.2]), np.zeros(2, bool)) is None


def test_predict_lists_the_classes_above_a_threshold(
    run: tuple[Path, Outcome],
    predicted: tuple[np.ndarray, np.ndarray],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "0.png").write_bytes(two_digits.records("test")[0].image)
    for options, lowest in (([], 0.5), (["--threshold", "0.3"], 0.3), (["--threshold", "0"], 0)):
        arguments = ["predict", str(run[0]), str(tmp_path), "--format", "json", *options]
        assert cli.main(arguments) == 0
        (entry,) = json.loads(capsys.readouterr().out)
        found = {guess["id"] for guess in entry["classes"]}
        assert found == set(np.flatnonzero(predicted[0][0] >= lowest))
    assert cli.main(["predict", str(run[0]), str(tmp_path), "--threshold", "1"]) == 0
    assert "none" in capsys.readouterr().out
    assert cli.main(["predict", str(run[0]), str(tmp_path), "--threshold", "1.5"]) == 2


def test_the_command_evaluates_a_run(
    run: tuple[Path, Outcome], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["evaluate", str(run[0]), "--per-class", "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    for name in ("loss", "map", "micro_f1", "macro_f1", "top1", "num_examples"):
        assert report[name] == pytest.approx(run[1].metrics[name])
    precisions = [result["average_precision"] for result in report["classes"]]
    assert np.mean(precisions) == pytest.approx(report["map"])


def test_the_export_says_what_its_probabilities_mean(
    run: tuple[Path, Outcome], tmp_path: Path
) -> None:
    export_run(run[0], tmp_path / "out", platforms=["cpu"])
    card = (tmp_path / "out" / "README.md").read_text()
    assert "may have several classes" in card
    assert "sigmoid of the logits; a class of 0.5 or more counts as found" in card
    assert "mAP" in card
    classifier = ImageClassifier.load(tmp_path / "out" / "weights.safetensors")
    images = [decode_image(record.image, where="") for record in two_digits.records("test")[:4]]
    np.testing.assert_allclose(
        classifier.predict(images), ImageClassifier.from_run(run[0]).predict(images), rtol=1e-5
    )
    assert classifier.multi_label


def test_labels_and_loss_must_fit(config: Config) -> None:
    values = encode(dataclasses.replace(config, loss=LossConfig()))
    with pytest.raises(ConfigError, match=r"loss\.name: softmax .* use sigmoid or asymmetric"):
        decode(values)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (LossConfig(margin=0.1), r"loss\.margin: 0\.1 has no effect on the loss softmax"),
        (LossConfig(name="asymmetric", focal=2.0), r"loss\.focal: 2\.0 has no effect"),
        (LossConfig(name="sigmoid", logit_adjustment=1.0), r"loss\.logit_adjustment: 1\.0 has no"),
    ],
)
def test_a_field_of_another_loss_is_refused(loss: LossConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        decode(encode(Config(num_steps=1, loss=loss)))


def test_a_network_of_single_labels_is_evaluated_on_several(
    tiny_run: tuple[Path, Outcome], config: Config
) -> None:
    data = dataclasses.replace(config.data, image_size=16)
    metrics = ImageClassifier.from_run(tiny_run[0]).evaluate(data)
    assert metrics["num_examples"] == 50
    assert 0 < metrics["map"] <= 1


def test_data_config_keeps_single_labels_by_default() -> None:
    assert DataConfig().labels == "single"
