"""Parses the options of the commands, including changes of a config's fields, into dataclasses.

tyro does most of the work. This module adds values of switches (`--model.remat=false`), single
entries of tables (`--optimizer.options.momentum None`), and `~` in paths.
"""

import contextlib
import dataclasses
import pathlib
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from jaxcls.system.errors import UserError
from jaxcls.system.paths import local_path

TRUE = ("true", "yes", "on", "1")
FALSE = ("false", "no", "off", "0")
REMOVE = "None"  # this value removes an entry from a table

_rules = ConstructorRegistry()


def parse[T](kind: type[T], prog: str, arguments: Sequence[str], *, default: T | None = None) -> T:
    """Parses the options of a command.

    Args:
      kind: a dataclass of the options. If a field is a config, its fields are options too.
      prog: the name of the command in its help.
      arguments: the arguments of the command.
      default: the values of options that are not given (None: the defaults of `kind`).

    Raises:
      UserError: a switch has a value other than true or false, or an entry of a table has no value.
      SystemExit: tyro found another mistake (status 2, with a message), or printed help (status 0).
    """
    options = list(_options(kind))
    words, entries = _take_table_entries(_normalise_switches(arguments, options), options)
    parsed = tyro.cli(
        kind,
        prog=prog,
        args=words,
        # The kind of each augmentation is the config file's; the command line changes its fields.
        config=(tyro.conf.AvoidSubcommands,),
        registry=_rules,
        default=tyro.MISSING_NONPROP if default is None else default,
    )
    for path, table in entries.items():
        parsed = _with_entries(parsed, path, table)
    return parsed


@dataclasses.dataclass(frozen=True)
class _Option:
    """An option of a command.

    Attributes:
      name: the dotted name with dashes, without leading ones, such as model.freeze-batch-norm.
      path: the names of the fields that lead to it, from the outermost to its own.
      type: the type of its values.
      positional: whether the value is given without the name.
    """

    name: str
    path: tuple[str, ...]
    type: Any
    positional: bool

    @property
    def on(self) -> str:
        return f"--{self.name}"

    @property
    def off(self) -> str:
        group, dot, last = self.name.rpartition(".")
        return f"--{group}{dot}no-{last}"


def _options(kind: type, path: tuple[str, ...] = (), prefix: str = "") -> Iterator[_Option]:
    for field, hint in typing.get_type_hints(kind, include_extras=True).items():
        annotated = typing.get_origin(hint) is Annotated
        bare, *extras = typing.get_args(hint) if annotated else (hint,)
        name = prefix + field.replace("_", "-")
        if dataclasses.is_dataclass(bare):
            unnamed = any(getattr(extra, "name", None) == "" for extra in extras)
            yield from _options(
                typing.cast(type, bare), (*path, field), prefix if unnamed else f"{name}."
            )
        else:
            yield _Option(name, (*path, field), bare, tyro.conf.Positional in extras)


# Switches


def _normalise_switches(arguments: Sequence[str], options: Sequence[_Option]) -> list[str]:
    """Replaces switches with values by --NAME or --no-NAME, because tyro knows only these."""
    switches = {
        spelling: option
        for option in options
        if option.type is bool
        for spelling in (option.on, option.off)
    }
    positionals = any(option.positional for option in options)
    words, rest = [], list(arguments)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        spelling = name.replace("_", "-")
        if spelling not in switches:
            words.append(word)
            continue
        if not equals:
            follows = rest[0] if rest and not rest[0].startswith("-") else None
            is_value = follows is not None and (follows.lower() in TRUE + FALSE or not positionals)
            value = rest.pop(0) if is_value else TRUE[0]
        option, value = switches[spelling], value.lower()
        if value not in TRUE + FALSE:
            raise UserError(
                f"{name}: expected true or false, got {value!r}; {option.on} turns it on, "
                f"{option.off} off"
            )
        turned_on = (value in TRUE) == (spelling == option.on)
        words.append(option.on if turned_on else option.off)
    return words


# Tables


def _take_table_entries(
    words: Sequence[str], options: Sequence[_Option]
) -> tuple[list[str], dict[tuple[str, ...], dict[str, Any]]]:
    """Takes options --TABLE.NAME VALUE out of the words.

    Returns:
      The other words, and the entries of each table by its path.

    Raises:
      UserError: a name or a value is missing.
    """
    tables = [option for option in options if typing.get_origin(option.type) is dict]
    entries: dict[tuple[str, ...], dict[str, Any]] = {}
    left, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        table = next((table for table in tables if word.startswith(f"{table.on}.")), None)
        if table is None:
            left.append(word)
            continue
        name, equals, value = word.removeprefix(f"{table.on}.").partition("=")
        if not equals and rest and not rest[0].startswith("--"):
            value = rest.pop(0)
        if not name or not value:
            raise UserError(
                f"{table.on}.{name or 'NAME'}: give a value, or {REMOVE} to remove it from the "
                f"config's {table.path[-1]}"
            )
        entries.setdefault(table.path, {})[_entry_name(name)] = _entry_value(value)
    return left, entries


def _entry_name(text: str) -> str:
    """The name of an entry; dashes in the name of a Python argument become underscores."""
    as_argument = text.replace("-", "_")
    return as_argument if as_argument.isidentifier() else text


def _entry_value(text: str) -> bool | int | float | str | None:
    """The value of an entry, with its type guessed from the text; the schema checks it later."""
    if text == REMOVE:
        return None
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for number in (int, float):
        with contextlib.suppress(ValueError):
            return number(text)
    return text


def _with_entries(value: Any, path: Sequence[str], entries: Mapping[str, Any]) -> Any:
    """A copy of a dataclass with entries of the table at `path` set, or removed if None."""
    if not path:
        return _without_none({**value, **entries})
    inner = _with_entries(getattr(value, path[0]), path[1:], entries)
    return dataclasses.replace(value, **{path[0]: inner})


def _without_none(entries: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entries.items() if value is not None}


@_rules.primitive_rule
def _table_rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """A whole table is given as NAME VALUE NAME VALUE ..., and replaces that of the config."""
    if info.type_origin is not dict:
        return None

    def read(words: list[str]) -> dict[str, Any]:
        if words in ([REMOVE], ["{}"]):
            return {}
        if len(words) % 2:
            raise ValueError(f"{words[-1]!r} has no value; names and values must alternate")
        pairs = zip(words[::2], words[1::2], strict=True)
        return _without_none({_entry_name(name): _entry_value(value) for name, value in pairs})

    return PrimitiveConstructorSpec(
        nargs="*",
        metavar="[NAME VALUE ...]",
        instance_from_str=read,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda table: [str(word) for pair in table.items() for word in pair],
    )


def _given_path(word: str) -> pathlib.Path:
    if not word:  # pathlib would take it for the current folder
        raise ValueError("expected a path, got an empty one")
    return local_path(word)


@_rules.primitive_rule
def _path_rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    if info.type is not pathlib.Path:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=lambda words: _given_path(words[0]),
        is_instance=lambda value: isinstance(value, pathlib.Path),
        str_from_instance=lambda path: [str(path)],
    )
