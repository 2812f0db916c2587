"""The classes of ImageNet-1k, in the order of the logits of every model trained on it.

The file beside this one holds them, with WordNet's licence.
"""

import functools
from pathlib import Path


def imagenet_class_names() -> tuple[str, ...]:
    """The 1000 names, each another, such as "tench", "tabby" and "crane (bird)".

    They are the first words of WordNet's synsets.
    """
    return tuple(name for _, name in _classes())


def imagenet_wordnet_ids() -> tuple[str, ...]:
    """The 1000 WordNet 3.0 ids, such as "n01440764", which name ImageNet's folders."""
    return tuple(wordnet_id for wordnet_id, _ in _classes())


def other_imagenet_names(names: tuple[str, ...]) -> tuple[str, ...] | None:
    """ImageNet's WordNet ids for its class names, and the names for the ids; None for others."""
    class_names, wordnet_ids = imagenet_class_names(), imagenet_wordnet_ids()
    return {class_names: wordnet_ids, wordnet_ids: class_names}.get(names)


@functools.cache
def _classes() -> tuple[tuple[str, str], ...]:
    lines = (
        Path(__file__).with_name("imagenet_classes.txt").read_text(encoding="utf-8").splitlines()
    )
    pairs = (line.partition("\t") for line in lines if not line.startswith("#"))
    return tuple((wordnet_id, name) for wordnet_id, _, name in pairs)
