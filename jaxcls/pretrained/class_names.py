"""Reads class names from a user's file, for weights that do not contain them."""

import collections
import dataclasses
import json
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxcls.models.weights_info import WeightsInfo
from jaxcls.pretrained.imagenet import imagenet_class_names, imagenet_wordnet_ids
from jaxcls.pretrained.limits import excerpt
from jaxcls.system.errors import UserError
from jaxcls.system.file_names import composed
from jaxcls.system.json_text import parse_json

MAX_BYTES = 64 * 2**20

type _Entry = tuple[str, ...]  # a name, or an id and a name as in ImageNet's files


def read_class_names(path: str | Path) -> tuple[str, ...]:
    """Reads the names of classes, in the order of the logits.

    Args:
      path: a UTF-8 text file: JSON, or one name on each line. JSON is a list of names, a table of
        names by number ({"0": "cat"}), or a table of numbers by name ({"cat": 0}). A name may be a
        pair of an id and a name, as in the files of ImageNet's classes by Keras and PyTorch
        ({"0": ["n01440764", "tench"]}): the names are used, or the ids if two names are the same. A
        config.json of Hugging Face has the names under "id2label", and one of timm under
        "label_names".

    Returns:
      Different names, in Unicode form NFC.

    Raises:
      UserError: the file cannot be read, has another format, skips a number, or has a name that is
        empty, repeated or not printable.
    """
    path = Path(path)
    text = _read(path)
    content = _json(path, text)
    entries = _lines(path, text) if content is None else _entries(path, content)
    if not entries:
        raise UserError(f"{path}: contains no class names")
    names = _choose(entries)
    for number, name in enumerate(names):
        _check(path, number, name)
    counts = collections.Counter(names)
    if twice := [name for name, count in counts.items() if count > 1]:
        numbers = [str(number) for number, name in enumerate(names) if name == twice[0]]
        raise UserError(
            f"{path}: {twice[0]!r} is the name of several classes ({', '.join(numbers[:5])}); "
            "give each its own"
        )
    return names


def num_classes_of(variables: Mapping[str, Any]) -> int:
    """Returns the number of classes of the classifier in imported variables; 0 without one."""
    head = variables["params"].get("classifier")
    return 0 if head is None else head["bias"].shape[0]


def with_class_names(
    info: WeightsInfo, names: Sequence[str], num_classes: int, *, name: str
) -> WeightsInfo:
    """Returns the info of the weights `name` with the user's class names.

    Raises:
      UserError: there are more or fewer names than classes.
    """
    if num_classes == 0:
        raise UserError(f"class_names: {name!r} has no classifier, so it has no classes to name")
    if len(names) != num_classes:
        raise UserError(
            f"class_names: {len(names)} names, but the classifier of {name!r} has "
            f"{num_classes} classes"
        )
    return dataclasses.replace(info, class_names=tuple(names))


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path}: is too large for a file of class names")
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: the class names cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text; save the class names as UTF-8") from None


def _json(path: Path, text: str) -> Any:
    """Parses a JSON file; returns None for other text."""
    if path.suffix.lower() != ".json" and text.lstrip()[:1] not in ("[", "{"):
        return None
    try:
        content = parse_json(text, object_pairs_hook=lambda pairs: _table(path, pairs))
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        if path.suffix.lower() != ".json":  # names that begin with a bracket
            return None
        raise UserError(f"{path}: is not valid JSON ({error})") from None
    if isinstance(content, dict):
        inner = content.get("pretrained_cfg")
        for table in (content, inner if isinstance(inner, dict) else {}):
            for field in ("id2label", "label_names"):
                if isinstance(table.get(field), (dict, list)):
                    return table[field]
    return content


def _table(path: Path, pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise UserError(f"{path}: has {excerpt(_first_twice(pairs))!r} twice")
    return table


def _first_twice[K](pairs: Sequence[tuple[K, Any]]) -> K:
    """Returns the first key that is repeated."""
    counts = collections.Counter(key for key, _ in pairs)
    return next(key for key, count in counts.items() if count > 1)


def _lines(path: Path, text: str) -> list[_Entry]:
    if path.suffix.lower() == ".csv":
        raise UserError(f"{path}: is a table; write one class name on each line, or a list in JSON")
    lines = [line.strip() for line in text.rstrip().split("\n")]
    if not any(lines):
        return []
    if "" in lines:
        raise UserError(
            f"{path}: line {lines.index('') + 1} is empty; write one class name on each line, in "
            "the order of the classes"
        )
    # A tab separates an id and a name, as in ImageNet's own lists.
    return [_entry(path, line.split("\t") if line.count("\t") == 1 else line) for line in lines]


def _entries(path: Path, content: Any) -> list[_Entry]:
    if isinstance(content, list):
        return [_entry(path, value) for value in content]
    if not isinstance(content, dict):
        raise UserError(
            f"{path}: holds a {type(content).__name__}; expected a list of class names, or names "
            "by their numbers"
        )
    if all(isinstance(value, int) and not isinstance(value, bool) for value in content.values()):
        by_number = _by_number(path, [(number, name) for name, number in content.items()])
    else:
        by_number = _by_number(
            path, [(_number(path, key), value) for key, value in content.items()]
        )
    return [_entry(path, by_number[number]) for number in range(len(by_number))]


def _number(path: Path, key: str) -> int:
    if not (key.isascii() and key.isdecimal() and len(key) < 10):
        raise UserError(
            f"{path}: {excerpt(key)!r} is not the number of a class; expected names by their "
            "numbers from 0, or numbers by their names"
        )
    return int(key)


def _by_number(path: Path, pairs: Sequence[tuple[int, Any]]) -> Mapping[int, Any]:
    """Checks that the numbers are 0, 1, 2 and so on, each once."""
    by_number = dict(pairs)
    if len(by_number) != len(pairs):
        raise UserError(f"{path}: has two names for class {_first_twice(pairs)}")
    missing = next((number for number in range(len(pairs)) if number not in by_number), None)
    if missing is not None:
        raise UserError(
            f"{path}: names {len(pairs)} classes, but not class {missing}; they are numbered from 0"
        )
    return by_number


def _entry(path: Path, value: Any) -> _Entry:
    parts: list[Any] = value if isinstance(value, list) and 1 <= len(value) <= 2 else [value]
    if not all(isinstance(part, str) for part in parts):
        raise UserError(
            f"{path}: {excerpt(json.dumps(value))} is not a class name; expected a text, or an "
            "id and a text"
        )
    return tuple(composed(part.strip()) for part in parts)


def _choose(entries: Sequence[_Entry]) -> tuple[str, ...]:
    """Returns one name for each class: with ids and names, the names if all are different."""
    ids = tuple(entry[0] for entry in entries)
    if ids == imagenet_wordnet_ids():  # ImageNet's own names repeat; jaxcls's do not
        return imagenet_class_names()
    names = tuple(entry[-1] for entry in entries)
    return names if len(set(names)) == len(names) else ids


def _check(path: Path, number: int, name: str) -> None:
    if not name:
        raise UserError(f"{path}: the name of class {number} is empty")
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        raise UserError(
            f"{path}: the name of class {number}, {excerpt(name)}, contains a control character"
        )
