"""The classes of ImageNet-1k, in the order of the logits of every model trained on it.

The file beside this one holds them, with WordNet's licence.
"""

import functools
from pathlib import Path


def imagenet_class_names() -> tuple[str, ...]:
    """Returns the 1000 different names, such as "tench", "tabby" and "crane (bird)".

    They are the first words of WordNet's synsets.
    """
    return tuple(name for _, name in _classes())


def imagenet_wordnet_ids() -> tuple[str, ...]:
    """Returns the 1000 WordNet 3.0 ids, such as "n01440764", which name ImageNet's folders."""
    return tuple(wordnet_id for wordnet_id, _ in _classes())


def other_imagenet_names(names: tuple[str, ...]) -> tuple[str, ...] | None:
    """Returns the WordNet ids for ImageNet's class names, or the names for the ids, else None."""
    class_names, wordnet_ids = imagenet_class_names(), imagenet_wordnet_ids()
    return {class_names: wordnet_ids, wordnet_ids: class_names}.get(names)


@functools.cache
def _classes() -> tuple[tuple[str, str], ...]:
    lines = (
        Path(__file__).with_name("imagenet_classes.txt").read_text(encoding="utf-8").splitlines()
    )
    pairs = (line.partition("\t") for line in lines if not line.startswith("#"))
    return tuple((wordnet_id, name) for wordnet_id, _, name in pairs)
