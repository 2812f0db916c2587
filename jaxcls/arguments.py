"""Arguments that several commands take: CONFIG, with overrides of its fields, and --step."""

from pathlib import Path
from typing import Literal

import tyro

from jaxcls.config import Config, decode, encode, load_config
from jaxcls.errors import UserError


def take_config(arguments: list[str], prog: str) -> tuple[Path, Config, list[str]]:
    """The config file that the first argument names, and the rest.

    Raises:
      UserError: no file is named, or it holds no valid config.
    """
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help")):
        raise UserError(
            f"usage: {prog} …: give the config file first, for example configs/digits.py"
        )
    if arguments[0].startswith("-"):
        return Path("CONFIG"), Config(), arguments
    path = Path(arguments[0])
    return path, load_config(path), arguments[1:]


def parse[T](kind: type[T], prog: str, arguments: list[str], *, default: T) -> T:
    """Reads options of a command that overrides the fields of a config, which `default` holds."""
    # The kind of each augmentation is the config file's; the command line changes its fields.
    return tyro.cli(
        kind, prog=prog, args=arguments, default=default, config=(tyro.conf.AvoidSubcommands,)
    )


def checked(config: Config) -> Config:
    """The config after overrides, through the same gate as one from a file."""
    return decode(encode(config))


def read_step(text: str) -> int | Literal["latest", "best"]:
    """The checkpoint that an option --step asks for.

    Raises:
      UserError: it is neither latest, best nor a number.
    """
    if text == "latest" or text == "best":
        return text
    if text.isdecimal():
        return int(text)
    raise UserError(f"--step: expected latest, best or a step's number, got {text!r}")
