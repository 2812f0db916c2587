"""A run that jaxcls 0.1.0 left in November 2026, stopped by a signal after step 4 of 8.

It has two stages, moving averages, frozen layers and every kind of augmentation. `expected.json`
holds what the jaxcls of that time computed from it.
"""

import dataclasses
import json
import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from jaxcls.config import decode, encode
from jaxcls.config.augment import RandAugment
from jaxcls.distributed.mesh import make_mesh
from jaxcls.inference.classifier import ImageClassifier
from jaxcls.models import registry
from jaxcls.models.efficientnet import ModelSpec
from jaxcls.runs.directory import recorded_info
from jaxcls.runs.restore import restore_run
from jaxcls.training.loop import train

STORED = Path(__file__).with_name("run_of_november_2026.zip")


@pytest.fixture(autouse=True)
def the_network_of_that_time(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = registry.SPECS["all_blocks"]
    assert isinstance(spec, ModelSpec)
    first, second, third = spec.blocks
    blocks = (first, dataclasses.replace(second, repeats=2), third)
    monkeypatch.setitem(
        registry.SPECS, "tiny", dataclasses.replace(spec, name="tiny", blocks=blocks)
    )


@pytest.fixture
def old_run(tmp_path: Path) -> Path:
    with zipfile.ZipFile(STORED) as file:
        file.extractall(tmp_path)
    return tmp_path / "run"


@pytest.fixture
def expected(old_run: Path) -> dict[str, Any]:
    return json.loads((old_run / "expected.json").read_text())


def test_its_config_decodes_to_what_was_written(old_run: Path) -> None:
    info = recorded_info(old_run)
    assert info is not None
    assert info.config.augment[2] == RandAugment(num_ops=1, magnitude=(0.1, 0.2))
    assert info.config.optimizer.freeze == {"stem.*": 0.5}
    assert decode(encode(info.config)) == info.config


def test_it_predicts_and_evaluates_as_it_did(
    old_run: Path, expected: dict[str, Any], tmp_path: Path
) -> None:
    assert restore_run(old_run).step == expected["step"]
    paths = [tmp_path / f"{number}.png" for number in range(4)]
    digits: Any = load_digits()
    for path, digit in zip(paths, digits.images, strict=False):
        Image.fromarray((digit * 15.9).astype(np.uint8)).convert("RGB").save(path)
    classifier = ImageClassifier.from_run(old_run)
    np.testing.assert_allclose(classifier.predict(paths), expected["probabilities"], atol=1e-5)
    metrics = classifier.evaluate()
    of_that_time = {name: metrics[name] for name in expected["stopped"]}
    assert of_that_time == pytest.approx(expected["stopped"], abs=1e-4)


def test_it_resumes_and_ends_as_it_would_have(old_run: Path, expected: dict[str, Any]) -> None:
    info = recorded_info(old_run)
    assert info is not None
    outcome = train(info.config, old_run, mesh=make_mesh(jax.devices()[:1]))
    assert (outcome.step, outcome.stopped_by) == (8, None)
    finished = expected["finished"]
    for name in ("loss", "raw_loss"):
        assert outcome.metrics[name] == pytest.approx(finished[name], rel=1e-5)
    # After eight steps the logits nearly tie, and rounding ranks some of the 355 images anew.
    of_that_time = {name: outcome.metrics[name] for name in finished}
    assert of_that_time == pytest.approx(finished, abs=0.02)
