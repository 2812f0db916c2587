"""Options of the commands, and overrides of a config's fields, from words to dataclasses.

tyro does most of it. What it does not know: values of switches (`--model.remat=false`), tables of
which single entries are set or dropped (`--optimizer.options.momentum None`), and `~` in paths.
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

ON = ("true", "yes", "on", "1")
OFF = ("false", "no", "off", "0")
DROPPED = "None"  # in place of the value of an entry of a table

_rules = ConstructorRegistry()


def parse[T](kind: type[T], prog: str, arguments: Sequence[str], *, default: T | None = None) -> T:
    """Reads the options of a command.

    Args:
      kind: a dataclass; a field of it may hold a config, the fields of which are options, too.
      prog: what help calls the command.
      arguments: its words.
      default: what holds unless the options say otherwise (None: what `kind` says).

    Raises:
      UserError: a switch has a value that is neither on nor off, or an entry of a table has none.
      SystemExit: another mistake, with status 2 and a message; or help, with status 0.
    """
    options = list(_options(kind))
    words, entries = _take_entries(_spell_switches(arguments, options), options)
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
      name: with the groups it is in, dashes and no leading ones: model.freeze-batch-norm.
      path: the names of its field and of those around it, outermost first.
      type: of its values.
      positional: whether it is given without its name.
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


def _spell_switches(arguments: Sequence[str], options: Sequence[_Option]) -> list[str]:
    """The words with switches that have a value as --NAME or --no-NAME, which is all tyro knows."""
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
            is_value = follows is not None and (follows.lower() in ON + OFF or not positionals)
            value = rest.pop(0) if is_value else ON[0]
        option, value = switches[spelling], value.lower()
        if value not in ON + OFF:
            raise UserError(
                f"{name}: expected true or false, got {value!r}; {option.on} turns it on, "
                f"{option.off} off"
            )
        turned_on = (value in ON) == (spelling == option.on)
        words.append(option.on if turned_on else option.off)
    return words


# Tables


def _take_entries(
    words: Sequence[str], options: Sequence[_Option]
) -> tuple[list[str], dict[tuple[str, ...], dict[str, Any]]]:
    """Takes --TABLE.NAME VALUE out of the words.

    Returns:
      The other words; and the entries of each table, by its path.

    Raises:
      UserError: there is no name or no value.
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
                f"{table.on}.{name or 'NAME'}: give a value, or {DROPPED} to remove it from the "
                f"config's {table.path[-1]}"
            )
        entries.setdefault(table.path, {})[_entry_name(name)] = _entry_value(value)
    return left, entries


def _entry_name(text: str) -> str:
    """The name of an entry; that of a Python argument may have dashes, as options have."""
    as_argument = text.replace("-", "_")
    return as_argument if as_argument.isidentifier() else text


def _entry_value(text: str) -> bool | int | float | str | None:
    """The value of an entry by its looks; the schema says later whether it may be that."""
    if text == DROPPED:
        return None
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for number in (int, float):
        with contextlib.suppress(ValueError):
            return number(text)
    return text


def _with_entries(value: Any, path: Sequence[str], entries: Mapping[str, Any]) -> Any:
    """A dataclass with entries of the table at `path` set, or left out where they are None."""
    if not path:
        return _kept({**value, **entries})
    inner = _with_entries(getattr(value, path[0]), path[1:], entries)
    return dataclasses.replace(value, **{path[0]: inner})


def _kept(entries: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entries.items() if value is not None}


@_rules.primitive_rule
def _table_rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """A whole table is NAME VALUE NAME VALUE ..., whatever the config has in it."""
    if info.type_origin is not dict:
        return None

    def read(words: list[str]) -> dict[str, Any]:
        if words in ([DROPPED], ["{}"]):
            return {}
        if len(words) % 2:
            raise ValueError(f"{words[-1]!r} has no value; names and values take turns")
        pairs = zip(words[::2], words[1::2], strict=True)
        return _kept({_entry_name(name): _entry_value(value) for name, value in pairs})

    return PrimitiveConstructorSpec(
        nargs="*",
        metavar="[NAME VALUE ...]",
        instance_from_str=read,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda table: [str(word) for pair in table.items() for word in pair],
    )


def _given_path(word: str) -> pathlib.Path:
    if not word:  # pathlib takes it for the current folder
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
