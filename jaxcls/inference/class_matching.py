"""The classes of a network, and which of them the classes of a data set are."""

import textwrap
from collections.abc import Sequence

from jaxcls.pretrained.imagenet import other_imagenet_names
from jaxcls.system.file_names import composed


def class_names_for(names: tuple[str, ...] | None, num_classes: int) -> tuple[str, ...]:
    """Returns the names if there is one for each class, else "class 0", "class 1" and so on."""
    if names is not None and len(names) == num_classes:
        return names
    return tuple(f"class {number}" for number in range(num_classes))


def match_classes(data_names: Sequence[str], network_names: Sequence[str]) -> list[int]:
    """Returns the network's number for each class of the data.

    Classes that the network does not know get the numbers after its own. ImageNet's classes match
    by their names and by their WordNet ids. Names match in any Unicode form.
    """
    aliases = other_imagenet_names(tuple(network_names)) or ()
    numbers = {
        composed(name): number
        for names in (aliases, network_names)
        for number, name in enumerate(names)
    }
    return [
        numbers.get(composed(name), len(network_names) + index)
        for index, name in enumerate(data_names)
    ]


def describe_unknown_classes(
    name: str, data_names: Sequence[str], network_names: tuple[str, ...], class_map: Sequence[int]
) -> str | None:
    """Returns an error message if the data has classes that the network does not know, else None.

    Args:
      name: the name of the data set.
      data_names: its classes.
      network_names: the network's classes.
      class_map: what `match_classes` returned for them.
    """
    unknown = [
        name
        for name, number in zip(data_names, class_map, strict=True)
        if number >= len(network_names)
    ]
    if not unknown:
        return None
    unnamed = network_names == class_names_for(None, len(network_names))
    advice = "; the weights do not name their classes; use --class-names FILE" if unnamed else ""
    return (
        f"data.source: the network does not know {len(unknown)} of the {len(data_names)} classes "
        f"of {name} ({textwrap.shorten(', '.join(unknown), 100, placeholder=' …')}){advice}; "
        f"fine-tune it on them, or write predictions without a score: --predictions FILE.csv"
    )
