"""What several commands share: CONFIG, overrides of its fields, --step, and their part in a job."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import tyro

from jaxcls.cluster import JobOptions, join
from jaxcls.compile_cache import keep_compiled
from jaxcls.config import Config, DataConfig, check_data, decode, encode, load_config
from jaxcls.errors import UserError

ALONE = JobOptions()
MOST_DIGITS = 18  # of a step's number


def check_arguments(arguments: Sequence[str]) -> None:
    """Checks what no command takes, whatever the argument is for.

    Raises:
      UserError: an argument is empty, or holds a NUL character.
    """
    for number, argument in enumerate(arguments):
        before = " ".join(arguments[:number][-2:])
        if not argument:
            raise UserError(
                f"the argument after {before!r} is empty; give it a value, or leave the option out "
                f"(is a variable of the shell not set?)"
            )
        if "\0" in argument:
            raise UserError(f"{argument!r}: holds a NUL character, which nothing can be named by")


def take_config(arguments: list[str], prog: str) -> tuple[Path, Config, list[str]]:
    """The config file that the first argument names, and the rest.

    Raises:
      UserError: no file is named, or it holds no valid config.
    """
    name, rest = take_first(arguments, prog, "the config file", example="configs/digits.py")
    if name is None:
        return Path("CONFIG"), Config(), rest
    return Path(name), load_config(name), rest


def take_first(
    arguments: list[str], prog: str, what: str, *, example: str
) -> tuple[str | None, list[str]]:
    """The first argument, on which the defaults of the options depend, and the rest.

    Returns:
      None for the first argument where help is asked for.

    Raises:
      UserError: the first argument is missing, or an option.
    """
    if arguments and arguments[0] in ("-h", "--help"):
        return None, arguments
    if not arguments or arguments[0].startswith("-"):
        raise UserError(f"usage: {prog} …: give {what} first, for example {example}")
    return arguments[0], arguments[1:]


def parse[T](kind: type[T], prog: str, arguments: list[str], *, default: T) -> T:
    """Reads options of a command that overrides the fields of a config, which `default` holds."""
    # The kind of each augmentation is the config file's; the command line changes its fields.
    return tyro.cli(
        kind, prog=prog, args=arguments, default=default, config=(tyro.conf.AvoidSubcommands,)
    )


def checked(config: Config) -> Config:
    """The config after overrides, through the same gate as one from a file."""
    return decode(encode(config))


def checked_data(data: DataConfig) -> DataConfig:
    """The fields of data after overrides, through the same gate."""
    data = checked(Config(data=data, num_steps=1)).data
    check_data(data)
    return data


def resolved(config: Config) -> Config:
    """The config after overrides, with what it leaves to the weights or the network filled in.

    Raises:
      UserError: a field is wrong, or there are no such weights or network.
    """
    from jaxcls.training.start import resolve

    return resolve(checked(config))


def read_step(text: str) -> int | Literal["latest", "best"]:
    """The checkpoint that an option --step asks for.

    Raises:
      UserError: it is neither latest, best nor a number.
    """
    if text == "latest" or text == "best":
        return text
    if text.isdecimal() and len(text) <= MOST_DIGITS:
        return int(text)
    raise UserError(f"--step: expected latest, best or a step's number, got {text!r}")


def start_job(job: JobOptions, *, stops: bool = False, run: str | None = None) -> None:
    """What comes before a command computes: the job that it is part of, and JAX's cache.

    With `stops` the command has `StopSignals` for SIGTERM; else that ends it. `run` is the
    directory of its training.
    """
    join(job, stops=stops)
    require_devices()
    keep_compiled(run)


def require_devices() -> None:
    """Starts JAX's devices, before a command spends time on what needs them.

    Raises:
      UserError: as `all_devices`.
    """
    from jaxcls.parallel import all_devices

    all_devices()
