"""Decodes plain values into frozen dataclasses, strictly.

The type hints of the dataclasses define the allowed values; this module knows no particular field.
Errors name the field by its dotted path.
"""

import contextlib
import dataclasses
import difflib
import functools
import math
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal

from jaxcls.system.errors import UserError
from jaxcls.system.file_names import is_text, printable
from jaxcls.system.terminal_text import masked

MAX_INT = 2**31 - 1
MAX_FLOAT = 3.4028234e38  # the largest float32


class ConfigError(UserError):
    """A config that cannot be used; the message names the field."""


@dataclasses.dataclass(frozen=True)
class Range:
    """Bounds of a numeric field: `low` and `high` are allowed values, `below` is not."""

    low: float
    high: float = float("inf")
    below: float = float("inf")

    @property
    def closed(self) -> bool:
        """Whether there is an upper bound."""
        return min(self.high, self.below) < float("inf")

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high and value < self.below

    def __str__(self) -> str:
        if self.below < float("inf"):
            return f"at least {self.low} and below {self.below}"
        if self.high == float("inf"):
            return f"at least {self.low}"
        return f"between {self.low} and {self.high}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """Base of dataclasses whose kinds may be mixed in a list; encoded with their name as `op`."""


TAG = "op"


@dataclasses.dataclass(frozen=True)
class Pattern:
    """A regular expression that a whole text must match."""

    regex: str


IS_REGEX = "is a regular expression"  # marks a text that must be one
MAY_BE_EMPTY = "may be empty"  # marks a list that may be empty
ANY_ORDER = "in any order"  # marks a pair of numbers that are not a low and a high end
Regex = Annotated[str, IS_REGEX]


def nearest(name: str, known: Iterable[str]) -> str:
    """The text `; did you mean 'x'?` with the closest known name, or an empty text."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def decode_fields(schema: type, values: Any, *, prefix: str) -> Any:
    """Makes a dataclass from a mapping of its fields.

    Args:
      schema: the dataclass.
      values: the mapping; fields that are absent take their defaults.
      prefix: the dotted path of the mapping, with a dot at the end, for messages.

    Raises:
      ConfigError: `values` is not a mapping, or a field is unknown or has a wrong value.
      TypeError: a field without a default is missing.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"{prefix.rstrip('.')}: expected a group of fields, got {kind_of(values)}"
        )
    hints = _type_hints(schema)
    for name in values:
        if name not in hints:
            known = [prefix + field for field in hints]
            raise ConfigError(f"unknown field {prefix}{name}{nearest(prefix + str(name), known)}")
    decoded = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(hints[name]):
            section = typing.cast(type, hints[name])
            decoded[name] = decode_fields(section, value, prefix=f"{prefix}{name}.")
        else:
            decoded[name] = _decode_value(hints[name], value, field=prefix + name)
    return schema(**decoded)


@functools.cache
def _type_hints(schema: type) -> Mapping[str, Any]:
    return typing.get_type_hints(schema, include_extras=True)


def _decode_choice(options: tuple[type, ...], value: Any, *, field: str) -> Any:
    """Decodes into the one of several dataclasses that the value names with `op`."""
    if isinstance(value, type):
        raise ConfigError(f"{field}: {value.__name__} is a class; write {value.__name__}()")
    if not isinstance(value, Mapping) or TAG not in value:
        raise ConfigError(f"{field}: expected a group of fields with {TAG!r}, got {kind_of(value)}")
    by_name = {option.__name__: option for option in options}
    name = value[TAG]
    if not isinstance(name, str) or name not in by_name:
        raise ConfigError(
            f"{field}: unknown {TAG} {name!r}{nearest(str(name), by_name)}; "
            f"known: {', '.join(by_name)}"
        )
    fields = {key: item for key, item in value.items() if key != TAG}
    return decode_fields(by_name[name], fields, prefix=f"{field}.")


def _decode_tuple(
    hint: Any,
    value: Any,
    bounds: Range | Pattern | None,
    *,
    field: str,
    may_be_empty: bool = False,
    any_order: bool = False,
) -> tuple[Any, ...]:
    """A list of any length, a (low, high) pair, or a fixed number of entries."""
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{field}: expected a list, got {kind_of(value)}")
    item_hint, *more = typing.get_args(hint)
    fixed = more != [...]
    pair = fixed and len(more) == 1 and not any_order
    if pair and len(value) != 2:
        raise ConfigError(f"{field}: expected a low and a high end, got {list(value)}")
    if fixed and len(value) != 1 + len(more):
        raise ConfigError(f"{field}: expected {1 + len(more)} entries, got {list(value)}")
    if not value and not may_be_empty:
        raise ConfigError(f"{field}: expected at least one entry, got none")
    bounded = Annotated[item_hint, bounds] if bounds else item_hint
    names = (field,) * len(value) if fixed else (f"{field}.{index}" for index in range(len(value)))
    items = tuple(
        _decode_value(bounded, item, field=name) for name, item in zip(names, value, strict=True)
    )
    if pair and items[0] > items[1]:
        raise ConfigError(f"{field}: the low end {items[0]} is above the high end {items[1]}")
    return items


def _decode_value(hint: Any, value: Any, *, field: str) -> Any:
    """Checks a value against its type hint; makes integers floats if the hint is float."""
    bounds = next((extra for extra in metadata(hint) if isinstance(extra, Range | Pattern)), None)
    base = typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint
    origin = typing.get_origin(base)
    if origin in (typing.Union, types.UnionType):
        return _decode_union(base, value, metadata(hint), field=field)
    if origin is tuple:
        return _decode_tuple(
            base,
            value,
            bounds,
            field=field,
            may_be_empty=MAY_BE_EMPTY in metadata(hint),
            any_order=ANY_ORDER in metadata(hint),
        )
    if origin is Literal:
        choices = typing.get_args(base)
        if value not in choices:
            listed = ", ".join(str(choice) for choice in choices)
            close = nearest(str(value), map(str, choices))
            raise ConfigError(f"{field}: {value!r} is not one of {listed}{close}")
        return value
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{field}: expected names with values, got {kind_of(value)}")
        item_hint = typing.get_args(base)[1]
        return {
            str(key): _decode_value(item_hint, item, field=f"{field}.{key}")
            for key, item in value.items()
        }
    if IS_REGEX in metadata(hint):
        check_regex(value, field=field)
    return _decode_scalar(base, value, bounds, field=field)


def check_regex(value: Any, *, field: str) -> None:
    """Checks that a value is a regular expression; raises a `ConfigError` with the field's name."""
    try:
        re.compile(value)
    except (re.error, TypeError) as error:
        raise ConfigError(
            f"{field}: {value!r} is not a regular expression ({error}); to match any text, use .*"
        ) from error


def _decode_union(hint: Any, value: Any, extras: tuple[Any, ...], *, field: str) -> Any:
    options = typing.get_args(hint)
    if all(isinstance(option, type) and issubclass(option, Choice) for option in options):
        return _decode_choice(options, value, field=field)
    if value is None and type(None) in options:
        return None
    errors = []
    for option in options:
        if option is not type(None):
            bounded = Annotated[option, *extras] if extras else option
            try:
                return _decode_value(bounded, value, field=field)
            except ConfigError as error:
                errors.append(str(error).removeprefix(f"{field}: "))
    within = next((error for error in errors if error.startswith(f"{field}.")), None)
    if within:  # the value is of this option's kind, and a part of it is wrong
        raise ConfigError(within)
    raise ConfigError(f"{field}: {'; or '.join(errors)}")


def _decode_scalar(kind: type, value: Any, bounds: Range | Pattern | None, *, field: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            value = float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        words = {int: "a whole number", float: "a number", bool: "True or False", str: "a text"}
        raise ConfigError(f"{field}: expected {words[kind]}, got {kind_of(value)}")
    if isinstance(value, str) and not is_text(value):
        raise ConfigError(
            f"{field}: '{printable(value)}' is not UTF-8; rename the file or folder, or use a link "
            f"to it"
        )
    if isinstance(value, str) and masked(value) != value:
        raise ConfigError(
            f"{field}: {value!r} has a password or token in it, which a run would record; leave it "
            f"to the environment, or to the file of a login, of the program that needs it"
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{field}: must be finite, got {value!r}")
    if isinstance(bounds, Pattern) and not re.fullmatch(bounds.regex, str(value)):
        raise ConfigError(f"{field}: must look like {bounds.regex}, got {value!r}")
    if isinstance(bounds, Range) and typing.cast(float, value) not in bounds:
        raise ConfigError(f"{field}: must be {bounds}, got {value!r}")
    if isinstance(bounds, Range) and not bounds.closed:
        number = typing.cast(float, value)
        most = largest(number)
        if abs(number) > most:
            raise ConfigError(f"{field}: must be at most {most}, got {value!r}")
    return value


def largest(value: float) -> float:
    """The largest number of a value's type that JAX's default arrays can hold."""
    return MAX_INT if isinstance(value, int) else MAX_FLOAT


def leaves(schema: type, *, prefix: str) -> Iterator[tuple[str, Any]]:
    """Yields the dotted name and the type hint of each field that is not a group of fields."""
    for name, hint in _type_hints(schema).items():
        if dataclasses.is_dataclass(hint):
            yield from leaves(typing.cast(type, hint), prefix=f"{prefix}{name}.")
        else:
            yield prefix + name, hint


def encode_fields(value: Any) -> Any:
    """Converts dataclasses to dicts and tuples to lists, ready for JSON."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        tag = {TAG: type(value).__name__} if isinstance(value, Choice) else {}
        fields = (field.name for field in dataclasses.fields(value))
        return tag | {name: encode_fields(getattr(value, name)) for name in fields}
    if isinstance(value, tuple):
        return [encode_fields(item) for item in value]
    return dict(value) if isinstance(value, Mapping) else value


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested dicts, and lists of dicts, into values by dotted names."""
    flat = {}
    for name, value in values.items():
        if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            value = {str(index): item for index, item in enumerate(value)}
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def kind_of(value: Any) -> str:
    """A value and its type, for messages."""
    return f"{value!r} ({type(value).__name__})"


def metadata(hint: Any) -> tuple[Any, ...]:
    """The extra arguments of an `Annotated` type hint."""
    return typing.get_args(hint)[1:] if typing.get_origin(hint) is Annotated else ()
