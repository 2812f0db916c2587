import re
from pathlib import Path

import pytest
import tensorflow_datasets as tfds

from jaxcls.pretrained.imagenet import imagenet_class_names, imagenet_wordnet_ids


def test_there_are_1000_different_names() -> None:
    names = imagenet_class_names()
    assert len(names) == len(set(names)) == 1000
    assert all(name == name.strip() and "," not in name for name in names)


@pytest.mark.parametrize(
    ("index", "name"),
    [
        (0, "tench"),
        (134, "crane (bird)"),
        (281, "tabby"),
        (282, "tiger cat"),
        (285, "Egyptian cat"),
        (517, "crane (machine)"),
        (638, "maillot (tights)"),
        (639, "maillot (swimsuit)"),
        (698, "palace"),
        (967, "espresso"),
        (985, "daisy"),
        (999, "toilet tissue"),
    ],
)
def test_names_stand_at_their_logits(index: int, name: str) -> None:
    assert imagenet_class_names()[index] == name


def test_the_wordnet_ids_are_those_of_tfds() -> None:
    labels = Path(tfds.__file__).parent / "image_classification" / "imagenet_resized_labels.txt"
    ids = imagenet_wordnet_ids()
    assert len(ids) == 1000
    assert all(re.fullmatch(r"n\d{8}", wordnet_id) for wordnet_id in ids)
    assert list(ids) == sorted(labels.read_text().split())
