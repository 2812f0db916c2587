"""What differs between configs, in words short enough for a folder, a table or a legend."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxcls.config.decoding import encode_fields, flatten, leaves
from jaxcls.config.schema import Config, changed_fields
from jaxcls.system.names import printable

LONGEST_NAME = 100  # of a folder, in characters; file systems take 255 bytes


def differences(configs: Sequence[Config]) -> dict[str, tuple[Any, ...]]:
    """Fields that are not the same in all configs, in the order of the schema.

    Returns:
      The value in each config by the field's dotted name; None where a config has no such field.
    """
    flat = [flatten(encode_fields(config)) for config in configs]
    names = dict.fromkeys(name for fields in flat for name in fields)
    values = {name: tuple(fields.get(name) for fields in flat) for name in names}
    return {name: row for name, row in values.items() if any(value != row[0] for value in row)}


def short_names(names: Iterable[str]) -> dict[str, str]:
    """For each dotted name its last part where that says which field is meant, else all of it.

    Never of an entry in a list, such as augment.1.magnitude: others may have the same field.
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
    """A field's value as a person would write it."""
    return ",".join(map(value_text, value)) or "none" if isinstance(value, list) else str(value)


def assignments(changes: Mapping[str, Any]) -> list[str]:
    """`learning_rate=0.05` for each field and its value."""
    short = short_names(changes)
    return [f"{short[name]}={value_text(value)}" for name, value in changes.items()]


def labels(names: Sequence[str], configs: Sequence[Config]) -> list[str]:
    """What sets each config apart from the others; with its name where that is not enough."""
    different = differences(configs)
    texts = [
        ", ".join(assignments({name: row[number] for name, row in different.items()}))
        for number in range(len(configs))
    ]
    if len(set(texts)) == len(texts) and all(texts):
        return texts
    return [f"{name}: {text}" if text else name for name, text in zip(names, texts, strict=True)]


def default_workdir(path: str | Path, pairs: Iterable[tuple[Config, Config]]) -> str:
    """Where the runs of a config file lie unless the user says: runs/FILE, with what was changed.

    Args:
      path: of the file.
      pairs: configs as the file has them, and as the command line makes them.
    """
    changes = {
        field: after
        for written, config in pairs
        for field, (_, after) in changed_fields(written, config).items()
    }
    return str(Path("runs") / folder_name(printable(Path(path).stem).replace("\\", "_"), changes))


def folder_name(stem: str, changes: Mapping[str, Any]) -> str:
    """A folder's name that says what was changed, such as digits-learning_rate=0.05-seed=1.

    Long ones are cut and end in a digest of the whole.
    """
    whole = "-".join([stem, *(re.sub(r"[^\w.,=+-]+", "_", text) for text in assignments(changes))])
    if len(whole) <= LONGEST_NAME:
        return whole
    return f"{whole[: LONGEST_NAME - 9]}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"


def _last_part(name: str) -> str:
    return name.rpartition(".")[2]
