import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxcls.config import Config, ConfigError, LossConfig
from jaxcls.training.class_balance import (
    class_weights,
    needs_class_counts,
    with_weights_from_file,
)

COUNTS = np.asarray([60, 30, 10, 0])
NAMES = ("cat", "dog", "newt", "yak")


def weights_of(given: Any, counts: np.ndarray = COUNTS) -> np.ndarray:
    weights = class_weights(LossConfig(class_weights=given), counts)
    assert weights is not None
    return weights


@pytest.mark.parametrize("given", ["balanced", (1.0, 2.0, 3.0, 4.0), (0.0, 0.0, 5.0, 0.0)])
def test_weights_average_1_over_the_training_set(given: Any) -> None:
    weights = weights_of(given)
    assert weights.dtype == np.float32
    assert np.sum(weights * COUNTS) / COUNTS.sum() == pytest.approx(1)


def test_balanced_counts_each_class_the_same_as_in_scikit_learn() -> None:
    np.testing.assert_allclose(weights_of("balanced")[:3] * COUNTS[:3], 100 / 3, rtol=1e-6)


def test_given_weights_keep_their_ratios() -> None:
    weights = weights_of((1.0, 2.0, 3.0, 4.0))
    np.testing.assert_allclose(weights / weights[0], [1, 2, 3, 4], rtol=1e-6)


def test_without_weights_nothing_is_multiplied() -> None:
    assert class_weights(LossConfig(), COUNTS) is None


@pytest.mark.parametrize(
    ("given", "message"),
    [((1.0, 2.0), "2 weights for 4 classes"), ((0.0, 0.0, 0.0, 1.0), "no class .* above 0")],
)
def test_weights_that_cannot_be_used(given: tuple[float, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        weights_of(given)


@pytest.mark.parametrize(
    ("loss", "needed"),
    [
        (LossConfig(), False),
        (LossConfig(class_weights="balanced"), True),
        (LossConfig(class_weights=(1.0, 2.0)), True),
        (LossConfig(logit_adjustment=1), True),
    ],
)
def test_classes_are_counted_only_if_the_loss_needs_it(loss: LossConfig, needed: bool) -> None:
    assert needs_class_counts(Config(num_steps=1, loss=loss)) == needed


def from_file(path: Path, content: str) -> LossConfig:
    path.write_text(content)
    return with_weights_from_file(LossConfig(class_weights=str(path)), NAMES)


def test_a_file_gives_some_classes_a_weight_and_the_others_1(tmp_path: Path) -> None:
    loss = from_file(tmp_path / "w.json", json.dumps({"yak": 3, "dog": 0.5}))
    assert loss.class_weights == (1.0, 0.5, 1.0, 3.0)


def test_other_forms_stay_as_they_are() -> None:
    for given in (None, "balanced", (1.0, 2.0)):
        loss = dataclasses.replace(LossConfig(), class_weights=given)
        assert with_weights_from_file(loss, NAMES) is loss


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[1, 2]", "must be an object"),
        ('{"dgo": 1}', "'dgo', which is not a class .*did you mean 'dog'"),
        ('{"dog": -1}', "weight -1 for 'dog'"),
        ('{"dog": "1"}', "weight '1' for 'dog'"),
        ('{"dog": NaN}', "weight nan for 'dog'"),
        ('{"dog": true}', "weight True for 'dog'"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^loss.class_weights: .*{message}"):
        from_file(tmp_path / "w.json", content)


def test_a_file_that_is_missing() -> None:
    loss = LossConfig(class_weights="balancd")
    with pytest.raises(ConfigError, match=r"'balancd' cannot be read .* give balanced"):
        with_weights_from_file(loss, NAMES)
