"""Differences between configs, as short texts for names of folders, tables and legends."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxcls.config.decoding import encode_fields, flatten, leaves
from jaxcls.config.schema import Config


def differences(configs: Sequence[Config]) -> dict[str, tuple[Any, ...]]:
    """Finds the fields that differ between configs, in the order of the schema.

    Returns:
      By the dotted name of the field, its value in each config; None if a config has no such field.
    """
    flat = [flatten(encode_fields(config)) for config in configs]
    names = dict.fromkeys(name for fields in flat for name in fields)
    values = {name: tuple(fields.get(name) for fields in flat) for name in names}
    return {name: row for name, row in values.items() if any(value != row[0] for value in row)}


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Shortens each dotted name to its last part, if no other field has the same last part.

    Fields of an entry in a list, such as augment.1.magnitude, keep their whole names, because other
    entries may have the same field.
    """
    names = list(names)
    known = {name for name, _ in leaves(Config, prefix="")} | set(names)
    count = Counter(map(_last_part, known))
    return {
        name: _last_part(name)
        if all(map(str.isidentifier, name.split("."))) and count[_last_part(name)] == 1
        else name
        for name in names
    }


def value_text(value: Any) -> str:
    """The value of a field as a person would write it."""
    return ",".join(map(value_text, value)) or "none" if isinstance(value, list) else str(value)


def assignments(changes: Mapping[str, Any]) -> list[str]:
    """Texts such as `learning_rate=0.05`, one for each field and its value."""
    short = short_names(changes)
    return [f"{short[name]}={value_text(value)}" for name, value in changes.items()]


def labels(names: Sequence[str], configs: Sequence[Config]) -> list[str]:
    """Labels that say how each config differs, with its name if the labels are not unique."""
    different = differences(configs)
    texts = [
        ", ".join(assignments({name: row[number] for name, row in different.items()}))
        for number in range(len(configs))
    ]
    if len(set(texts)) == len(texts) and all(texts):
        return texts
    return [f"{name}: {text}" if text else name for name, text in zip(names, texts, strict=True)]


def _last_part(name: str) -> str:
    return name.rpartition(".")[2]
