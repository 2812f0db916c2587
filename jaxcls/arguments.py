"""The CONFIG argument that several commands take: a file, then overrides of its fields."""

from pathlib import Path

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
    """The config after overrides, through the same gate as one from a file, and filled in.

    Raises:
      UserError: a field is wrong, or there are no such weights or network.
    """
    from jaxcls.training.start import resolve

    return resolve(decode(encode(config)))
