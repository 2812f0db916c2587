import dataclasses
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxcls.config import Config, DataConfig
from jaxcls.data.decode import decode_image
from jaxcls.data.source import Record, Source
from jaxcls.data.sources import open_source
from jaxcls.distributed.mesh import make_mesh, replicated, split_by_example
from jaxcls.inference.classifier import ImageClassifier
from jaxcls.inference.predict_split import Predictions, make_predict_step, predict_split
from jaxcls.training.evaluation import evaluate_split, make_eval_step
from jaxcls.training.loop import Outcome

SPLIT = "test[:50]"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Damaged(Source):
    """A source of which some records are no images."""

    whole: Source
    lost: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.whole)

    def __getitem__(self, index: int) -> Record:
        record = self.whole[index]
        return Record(b"no image", record.label) if index in self.lost else record


@pytest.fixture(scope="module")
def classifier(run_of_all_blocks: tuple[Path, Outcome]) -> ImageClassifier:
    return ImageClassifier.from_run(run_of_all_blocks[0])


@pytest.fixture(scope="module")
def source(tiny_config: Config) -> Source:
    return open_source(tiny_config.data, SPLIT)


@pytest.fixture(scope="module")
def labels(source: Source) -> np.ndarray:
    return np.array([source[index].label for index in range(len(source))])


@pytest.fixture(scope="module")
def probabilities(classifier: ImageClassifier, source: Source) -> np.ndarray:
    """One image after another, without a split, batches or a mesh."""
    images = [decode_image(source[i].image, where="test") for i in range(len(source))]
    return np.concatenate([classifier.predict([image], batch_size=1) for image in images])


def predict(
    classifier: ImageClassifier,
    source: Source,
    *,
    devices: int = 8,
    top: int = 5,
    data: DataConfig | None = None,
    class_map: list[int] | None = None,
) -> tuple[dict[str, float], Predictions]:
    mesh = make_mesh(jax.devices()[:devices])
    step = make_predict_step(classifier.model, loss="softmax", mesh=mesh, top=top)
    variables = jax.device_put(classifier.variables, replicated(mesh))
    data = data or classifier.config.data
    metrics, predictions = predict_split(
        step, variables, source, data, mesh=mesh, class_map=class_map
    )
    assert isinstance(predictions, Predictions)
    return metrics, predictions


def evaluated(
    classifier: ImageClassifier, source: Source, *, class_map: list[int] | None = None
) -> dict[str, float]:
    mesh = make_mesh()
    step = make_eval_step(classifier.model, loss="softmax", mesh=mesh)
    variables = jax.device_put(classifier.variables, replicated(mesh))
    data = classifier.config.data
    return evaluate_split(step, variables, source, data, mesh=mesh, class_map=class_map)


def ranked(probabilities: np.ndarray, top: int) -> np.ndarray:
    return np.argsort(-probabilities, axis=1, kind="stable")[:, :top]


@pytest.mark.parametrize(("batch_size", "devices", "top"), [(7, 1, 1), (32, 8, 3), (50, 3, 99)])
def test_each_example_once_in_order_as_predicted_one_by_one(
    classifier: ImageClassifier,
    source: Source,
    labels: np.ndarray,
    probabilities: np.ndarray,
    batch_size: int,
    devices: int,
    top: int,
) -> None:
    data = dataclasses.replace(classifier.config.data, batch_size=batch_size)
    _, found = predict(classifier, source, devices=devices, top=top, data=data)
    np.testing.assert_array_equal(found.index, np.arange(50))
    np.testing.assert_array_equal(found.labels, labels)
    best = ranked(probabilities, top)
    assert best.shape == (50, min(top, 10))
    np.testing.assert_array_equal(found.classes, best)
    np.testing.assert_array_equal(found.predicted, probabilities.argmax(axis=1))
    expected = np.take_along_axis(probabilities, best, axis=1)
    np.testing.assert_allclose(found.probabilities, expected, rtol=1e-4, atol=1e-6)
    assert found.probabilities.dtype == np.float32


def test_the_metrics_of_the_same_pass_are_those_of_the_evaluation(
    classifier: ImageClassifier, source: Source
) -> None:
    metrics, found = predict(classifier, source)
    expected = evaluated(classifier, source)
    assert metrics == pytest.approx(expected, rel=1e-6)
    for name in ("top1", "top5", "num_examples"):
        assert metrics[name] == expected[name]
    hits = found.classes == found.labels[:, None]
    assert metrics["top1"] == hits[:, 0].mean()
    assert metrics["top5"] == hits.any(axis=1).mean()
    assert 0.1 < metrics["top1"] < metrics["top5"] < 1


def test_broken_images_are_left_out(
    classifier: ImageClassifier, source: Source, caplog: pytest.LogCaptureFixture
) -> None:
    lost = (0, 17, 49)
    damaged = Damaged(
        name="digits", split=SPLIT, class_names=source.class_names, whole=source, lost=lost
    )
    data = dataclasses.replace(classifier.config.data, broken="skip", max_broken=0.1)
    metrics, found = predict(classifier, damaged, data=data)
    _, whole = predict(classifier, source)
    kept = np.setdiff1d(np.arange(50), lost)
    assert metrics["num_examples"] == 47
    for field in dataclasses.fields(Predictions):
        np.testing.assert_array_equal(
            getattr(found, field.name), getattr(whole, field.name)[kept], err_msg=field.name
        )
    assert sorted(damaged.broken) == list(lost)
    assert len(caplog.records) == 3


def test_the_classes_of_the_data_may_be_others_of_the_network(
    classifier: ImageClassifier, source: Source, labels: np.ndarray, probabilities: np.ndarray
) -> None:
    class_map = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]
    metrics, found = predict(classifier, source, class_map=class_map)
    expected = np.array(class_map)[labels]
    np.testing.assert_array_equal(found.labels, expected)
    own = np.take_along_axis(probabilities, expected[:, None], axis=1)
    assert metrics["loss"] == pytest.approx(-np.log(own).mean(), rel=1e-4)
    assert metrics["top1"] == (probabilities.argmax(axis=1) == expected).mean()
    assert metrics == pytest.approx(evaluated(classifier, source, class_map=class_map), rel=1e-6)
    assert metrics != pytest.approx(evaluated(classifier, source), rel=1e-2)


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_equal_logits_and_no_numbers_rank_by_class(
    classifier: ImageClassifier, source: Source, value: float
) -> None:
    flat = jax.tree.map(lambda leaf: np.full_like(leaf, value), classifier.variables)
    _, found = predict(dataclasses.replace(classifier, variables=flat), source)
    np.testing.assert_array_equal(found.classes, np.tile(np.arange(5), (50, 1)))


def test_only_the_best_classes_leave_their_device(classifier: ImageClassifier) -> None:
    mesh = make_mesh()
    step = make_predict_step(classifier.model, loss="softmax", mesh=mesh, top=3)
    batch = {
        "images": jax.ShapeDtypeStruct((32, 16, 16, 3), np.uint8),
        "labels": jax.ShapeDtypeStruct((32,), np.int32),
        "mask": jax.ShapeDtypeStruct((32,), bool),
        "index": jax.ShapeDtypeStruct((32,), np.int32),
    }
    split = {
        name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=split_by_example(mesh))
        for name, array in batch.items()
    }
    variables = jax.device_get(classifier.variables)
    text = jax.jit(step).lower(variables, split).compile().as_text()
    assert text is not None
    gathered = re.findall(r"= (\w+\[[\d,]*\])\S* all-gather\(", text)
    assert sorted(gathered) == ["f32[32,3]", "pred[32]", "s32[32,3]", "s32[32]", "s32[32]"]
    assert "all-to-all" not in text
    assert "collective-permute" not in text
