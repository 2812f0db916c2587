"""Epochs and order when a run resumes with other fields."""

import dataclasses

import pytest

from jaxcls.config import Config, DataConfig
from jaxcls.runs.directory import RunInfo
from jaxcls.training.schedules import make_plan
from jaxcls.training.start_messages import epoch_warning

ANEW = (
    "the data order is now that of a run started with the new values, so some images of this epoch "
    "may repeat and others be skipped until the next"
)


def info(examples: int | None = 100, *, seed: int = 0, epochs: float = 4, **data) -> RunInfo:
    return RunInfo(
        config=Config(data=DataConfig(**{"batch_size": 10, **data}), seed=seed, num_epochs=epochs),
        class_names=("a", "b"),
        data=None if examples is None else f"version 1.0.0, {examples} examples",
    )


def warning(old: RunInfo | None, new: RunInfo, *, step: int = 12, examples: int = 100):
    plan = make_plan(new.config, examples)
    return epoch_warning(old, new, num_examples=examples, step=step, plan=plan)


@pytest.mark.parametrize(
    "new",
    [
        info(),
        info(epochs=8),
        info(batch_size=20, repeats=2),
        info(num_workers=2),
        info(eval_split="test[:5]"),
        info(image_size=32),
    ],
)
def test_nothing_is_said_where_epochs_and_order_stay(new: RunInfo) -> None:
    assert warning(info(), new) is None
    assert warning(info(None), new) is None
    assert warning(None, info(batch_size=50)) is None
    assert warning(info(), info(batch_size=50), step=0) is None


@pytest.mark.parametrize(
    ("fields", "now", "epoch"),
    [
        ({"batch_size": 20}, "5", "2.40"),
        ({"batch_size": 5}, "20", "0.60"),
        ({"repeats": 2}, "20", "0.60"),
        ({"batch_size": 30, "last_batch": "straddle"}, "3.33333", "3.60"),
    ],
)
def test_epochs_of_another_length_are_told(fields: dict, now: str, epoch: str) -> None:
    assert warning(info(), info(**fields)) == (
        f"warning: an epoch has {now} steps now and had 10, so the run resumes at epoch "
        f"{epoch}, not 1.20; {ANEW}"
    )


def test_data_of_another_size_are_told() -> None:
    text = warning(info(), info(200), examples=200)
    assert text is not None
    assert "an epoch has 20 steps now and had 10, so the run resumes at epoch 0.60" in text


def test_another_order_is_told() -> None:
    assert warning(info(), info(seed=1)) == f"warning: {ANEW}"
    other_files = dataclasses.replace(info(), data="100 examples, files 12ab")
    assert warning(info(), other_files) == f"warning: {ANEW}"


def test_a_training_that_is_over_by_the_new_count_says_so() -> None:
    text = warning(info(), info(batch_size=50))
    assert text is not None
    assert text.endswith("the training has 8 steps now, so none is left")
