import dataclasses

import pytest

from jaxcls.commands.default_workdir import MAX_NAME_LENGTH, folder_name
from jaxcls.config import Config, ModelConfig, OptimizerConfig
from jaxcls.config.augment import CenterCrop, RandAugment, RandomFlip
from jaxcls.config.diff import assignments, differences, labels, short_names

BASE = Config(num_steps=10)
FAST = Config(num_steps=10, seed=1, optimizer=OptimizerConfig(learning_rate=0.05))


def test_only_fields_that_are_not_the_same_everywhere_differ() -> None:
    assert differences([BASE, BASE]) == {}
    assert differences([BASE]) == {}
    assert differences([BASE, FAST, BASE]) == {
        "optimizer.learning_rate": (0.1, 0.05, 0.1),
        "seed": (0, 1, 0),
    }


def test_a_field_that_a_config_lacks_is_none_there() -> None:
    short = dataclasses.replace(BASE, augment=(CenterCrop(),))
    long = dataclasses.replace(BASE, augment=(CenterCrop(), RandAugment(magnitude=(0.1, 0.2))))
    different = differences([short, long])
    assert different["augment.1.magnitude"] == (None, [0.1, 0.2])
    assert all(name.startswith("augment.1.") for name in different)


def test_names_are_short_where_that_says_which_field_is_meant() -> None:
    names = ("optimizer.learning_rate", "optimizer.name", "seed", "optimizer.options.momentum")
    names += ("augment.0.op", "augment.1.op", "augment.1.num_ops", "optimizer.freeze.head.*")
    assert list(short_names(names).values()) == [
        *("learning_rate", "optimizer.name", "seed", "momentum"),
        *("augment.0.op", "augment.1.op", "augment.1.num_ops", "optimizer.freeze.head.*"),
    ]


def test_assignments_are_as_a_person_writes_them() -> None:
    assert assignments({"data.stage_image_sizes": []}) == ["stage_image_sizes=none"]
    changes = {"seed": 1, "model.mean": [0.5, 0.25], "model.remat": True, "num_epochs": None}
    assert assignments(changes) == ["seed=1", "mean=0.5,0.25", "remat=True", "num_epochs=None"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "digits"),
        ({"optimizer.learning_rate": 0.05, "seed": 1}, "digits-learning_rate=0.05-seed=1"),
        ({"data.source": "folder:/my photos/a"}, "digits-source=folder_my_photos_a"),
        ({"model.weights": "../x"}, "digits-weights=.._x"),
    ],
)
def test_a_folder_is_named_by_what_changed(changes: dict, expected: str) -> None:
    assert folder_name("digits", changes) == expected


def test_a_long_folder_name_is_cut_and_still_its_own() -> None:
    names = {folder_name("digits", {"data.source": "x" * 300 + end}) for end in ("a", "b")}
    assert len(names) == 2
    for name in names:
        assert len(name) == MAX_NAME_LENGTH
        assert name.startswith("digits-source=xxx")
    again = folder_name("digits", {"data.source": "x" * 300 + "a"})
    assert again in names


def test_labels_say_what_sets_configs_apart() -> None:
    assert labels(["a", "b"], [BASE, FAST]) == [
        "learning_rate=0.1, seed=0",
        "learning_rate=0.05, seed=1",
    ]
    assert labels(["a", "b"], [BASE, BASE]) == ["a", "b"]
    assert labels(["a", "b", "c"], [BASE, BASE, dataclasses.replace(BASE, seed=2)]) == [
        *("a: seed=0", "b: seed=0", "c: seed=2"),
    ]
    flipped = dataclasses.replace(BASE, augment=(RandomFlip(), CenterCrop()))
    other = dataclasses.replace(BASE, model=ModelConfig(name="efficientnet_b0"))
    assert len(set(labels(["a", "b", "c"], [BASE, flipped, other]))) == 3
