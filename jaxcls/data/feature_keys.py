"""Chooses the features of a data set that hold its images and its labels."""

import dataclasses
import functools
from collections.abc import Sequence

from jaxcls.config.decoding import nearest
from jaxcls.system.errors import DataError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Features:
    """The features of a data set by what they may serve as, each list sorted.

    Attributes:
      images: features with an image.
      labels: features with a class.
      lists: features with a list of classes.
      kinds: feature -> its type, for messages; all features.
    """

    images: Sequence[str]
    labels: Sequence[str]
    lists: Sequence[str]
    kinds: dict[str, str]

    def __str__(self) -> str:
        return ", ".join(f"{key}: {kind}" for key, kind in sorted(self.kinds.items()))


def choose_keys(
    features: Features,
    keys: tuple[str | None, str | None],
    *,
    name: str,
    several: bool,
    usual: tuple[str | None, str | None] = (None, None),
) -> tuple[str, str]:
    """Returns the features with the image and the label: as given, the usual, or the only ones.

    Args:
      features: those of the set.
      keys: `data.image_key` and `data.label_key`.
      name: the name of the set, for messages.
      several: whether images have several labels; then a list of classes is preferred.
      usual: which of several to take.

    Raises:
      DataError: there is no such feature, or there are several; or images have several labels
        without `several`.
    """
    listed = keys[1] or (features.lists[0] if features.lists and not features.labels else None)
    if listed is not None and listed in features.lists and not several:
        raise DataError(
            f"data.labels: the images of {name} have several labels ({listed}: "
            f"{features.kinds[listed]}); set the field to multiple"
        )
    labels = (features.lists or features.labels) if several else features.labels
    if keys[1] in features.labels:
        labels = features.labels  # one label each, if images have several
    choose = functools.partial(_choose, features, name=name)
    return (
        choose(features.images, "data.image_key", keys[0], kind="Image", usual=usual[0]),
        choose(labels, "data.label_key", keys[1], kind="ClassLabel", usual=usual[1]),
    )


def _choose(
    features: Features,
    known: Sequence[str],
    field: str,
    key: str | None,
    *,
    name: str,
    kind: str,
    usual: str | None,
) -> str:
    if key is not None and key not in known:
        raise DataError(
            f"{field}: {key!r} is not of type {kind} in {name}{nearest(key, known)} (features: "
            f"{features})"
        )
    chosen = key or (usual if usual in known else None)
    if chosen is None and len(known) > 1:
        raise DataError(f"{field}: {name} has several ({', '.join(known)}); choose one")
    if chosen is None and not known:
        raise DataError(
            f"data.source: {name} is not an image classification set: it needs an Image and a "
            f"ClassLabel, but has {features}"
        )
    return chosen or known[0]
