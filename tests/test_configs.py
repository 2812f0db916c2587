"""Each config is valid, and its data path works on a small set with the real one's features."""

import csv
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core import registered

from jaxcls.config import Config, load_config
from jaxcls.data.batches import eval_batches, train_batches
from jaxcls.data.sources import open_source
from jaxcls.distributed.mesh import make_mesh
from jaxcls.inference.classifier import ImageClassifier
from jaxcls.models.registry import create_model, model_spec
from jaxcls.models.weights_info import info_of_spec
from jaxcls.pretrained.jaxcls_file import write_weights
from jaxcls.training.loop import train
from jaxcls.training.schedules import make_plan

ROOT = Path(__file__).parents[1] / "configs"
CONFIGS = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.py"))
NUM_EXAMPLES = 20


@pytest.mark.parametrize("name", CONFIGS)
def test_config_is_valid_and_says_how_to_run_it(name: str) -> None:
    assert isinstance(load_config(ROOT / name), Config)
    text = (ROOT / name).read_text()
    assert f"jaxcls train configs/{name}" in text
    source = load_config(ROOT / name).data.source
    assert not source.startswith("tfds:") or f"jaxcls prepare {source}" in text


def prepare_small(name: str, data_dir: Path) -> None:
    """Prepares a few examples under the name, version and features of a set that TFDS knows."""
    real: Any = tfds.builder(name, data_dir=data_dir / "unused")
    features = real.info.features

    def encode(number: int) -> bytes:
        height, width, _ = features["image"].shape
        pixels = np.full((height or 30 + number, width or 50, 3), 9 * number, np.uint8)
        suffix = ".png" if name == "cifar10" else ".jpg"
        return cv2.imencode(suffix, pixels)[1].tobytes()

    def example(number: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, feature in features.items():
            if isinstance(feature, tfds.features.ClassLabel):
                values[key] = number % 2
            else:
                values[key] = encode(number) if key == "image" else f"{key} {number}"
        return values

    with registered.skip_registration():

        class Small(tfds.core.GeneratorBasedBuilder):
            VERSION = real.version
            url_infos = None

            def _info(self) -> tfds.core.DatasetInfo:
                return tfds.core.DatasetInfo(
                    builder=self, features=features, supervised_keys=real.info.supervised_keys
                )

            def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
                splits = ("train", "test", "validation")
                return {split: self._generate_examples() for split in splits}

            def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
                return ((number, example(number)) for number in range(NUM_EXAMPLES))

    Small.name = name
    Small(data_dir=data_dir).download_and_prepare(file_format="array_record")


@pytest.mark.parametrize(
    "name", [name for name in CONFIGS if load_config(ROOT / name).data.source.startswith("tfds:")]
)
def test_data_path_of_a_config(name: str, tmp_path: Path) -> None:
    config = load_config(ROOT / name)
    data = config.data
    prepare_small(data.source.removeprefix("tfds:"), tmp_path)
    small = {
        "data_dir": str(tmp_path), "batch_size": 4, "image_size": 16, "canvas_size": 32,
        "num_threads": 1,
    }  # fmt: skip
    data = type(data)(**{**vars(data), **small})
    source, eval_source = (
        open_source(data, split) for split in (data.train_split, data.eval_split)
    )
    assert source.class_names == eval_source.class_names
    assert make_plan(config, 10**6).num_steps > 0
    batches = train_batches(source, data, seed=0, rows=range(4))
    batch = next(batches)
    batches.close()
    assert batch["images"].any()
    assert (batch["sizes"].max(axis=1) == 32).all()
    seen = sum(
        int(b["mask"].sum()) for b in eval_batches(eval_source, data, batch_size=4, rows=range(4))
    )
    sizes = (len(source), len(eval_source))
    assert seen == sizes[1]
    assert sizes == ((18, 2) if "[" in data.train_split else (NUM_EXAMPLES, NUM_EXAMPLES))


def write_tiny_weights(path: str) -> None:
    """Random weights of the tiny network, with 1,000 classes, as a file of ours."""
    variables = jax.jit(create_model("tiny", num_classes=1000).init)(
        jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32)
    )
    write_weights(path, jax.device_get(variables), info_of_spec(model_spec("tiny")))


@pytest.mark.parametrize(
    "name", ["cats_vs_dogs", pytest.param("caltech101", marks=pytest.mark.long)]
)
def test_the_guides_trainings_run_from_end_to_end(name: str, tmp_path: Path) -> None:
    """On a few photos under the set's real features, with the tiny network (or its weights)."""
    prepare_small(name, tmp_path)
    config = load_config(ROOT / f"guide/{name}.py")
    weights = None
    if config.model.weights is not None:
        weights = str(tmp_path / "tiny.safetensors")
        write_tiny_weights(weights)
    small = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, name="tiny", weights=weights),
        data=dataclasses.replace(
            config.data, data_dir=str(tmp_path), batch_size=16, image_size=32, canvas_size=48
        ),
        num_epochs=2,
    )
    outcome = train(small, tmp_path / "run", mesh=make_mesh(jax.devices()[:1]))
    with (tmp_path / "run/metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["eval_top1"]]
    assert len(rows) == 2, "an evaluation each epoch"
    assert all(row["eval_top5"] for row in rows)
    assert outcome.step == outcome.num_steps == 2
    classifier = ImageClassifier.from_run(tmp_path / "run")
    assert len(classifier.class_names) == {"cats_vs_dogs": 2, "caltech101": 102}[name]
    model: Any = classifier.model
    assert model.pooling == {"cats_vs_dogs": "average", "caltech101": "max"}[name]
    log = (tmp_path / "run/log.txt").read_text()
    assert ("a new classifier of 2 classes" in log) == (weights is not None)


def test_the_guides_recipes() -> None:
    """What the guide says, number by number."""
    cats, caltech = (
        load_config(ROOT / f"guide/{name}.py") for name in ("cats_vs_dogs", "caltech101")
    )
    assert cats.model.weights == "efficientnetv2_b0_imagenet"
    assert (cats.data.batch_size, cats.data.image_size, cats.data.crop_fraction) == (32, 224, 1.0)
    assert (cats.optimizer.name, cats.optimizer.learning_rate) == ("sgd", 0.01)
    assert cats.num_epochs == 1
    assert (caltech.model.name, caltech.model.pooling) == ("efficientnetv2_b1", "max")
    assert (caltech.model.dropout, caltech.loss.label_smoothing) == (0.5, 0.1)
    assert caltech.optimizer.options == {"momentum": 0.9}
    assert (caltech.optimizer.learning_rate, caltech.optimizer.weight_decay) == (0.01, 5e-4)
    plan = make_plan(caltech, 3059)
    rates = [
        np.asarray(plan.learning_rate(share * plan.num_steps)) for share in (0, 0.1, 0.5, 0.55, 1)
    ]
    np.testing.assert_allclose(rates, [0, 0.01, 0.01, 0.01, 0], atol=1e-7)
    middle = np.asarray(plan.learning_rate(0.775 * plan.num_steps))
    assert middle == pytest.approx(0.005, rel=1e-3)
