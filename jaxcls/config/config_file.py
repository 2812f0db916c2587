"""Config files and the configs of their variations.

A config file is Python: it defines `get_config() -> Config`, and may define `sweep()`, which yields
the names and configs of variations. The command line may override any field. Every config, from a
file, from options or from a saved run, is checked by `decode`, whose errors name the field.
"""

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxcls.config import augment, schema
from jaxcls.config.decoding import (
    ConfigError,
    kind_of,
    nearest,
)
from jaxcls.config.encoding import decode, encode
from jaxcls.config.python_file import run_file, where_raised
from jaxcls.config.schema import Config
from jaxcls.system.paths import local_path

VARIATION_NAME = r"[A-Za-z0-9][A-Za-z0-9._,=+-]{0,99}"  # becomes the name of a folder


def load_config(path: str | Path) -> Config:
    """Runs the `get_config()` of a config file and checks the config that it returns.

    Raises:
      ConfigError: the file is missing, raises, or returns something that is not a valid Config.
    """
    path = local_path(path)
    with _run_config_file(path) as namespace:
        if "get_config" not in namespace:
            raise ConfigError(f"{path}: define get_config() -> jaxcls.config.schema.Config")
        config = namespace["get_config"]()
        if not isinstance(config, Config):
            raise ConfigError(f"{path}: get_config() must return a Config, got {kind_of(config)}")
        return decode(encode(config))


def load_sweep(path: str | Path) -> list[tuple[str, Config]]:
    """Runs the `sweep()` of a config file and checks the variations that it yields.

    Returns:
      The name and the config of each variation.

    Raises:
      ConfigError: as `load_config`; or there is no variation, or a name is used twice or cannot be
        the name of a folder.
    """
    path = local_path(path)
    with _run_config_file(path) as namespace:
        if "sweep" not in namespace:
            raise ConfigError(
                f"{path}: define sweep() -> Iterator[tuple[str, jaxcls.config.Config]], which "
                f"yields the name and the config of each variation"
            )
        variations: dict[str, Config] = {}
        for variation in namespace["sweep"]():
            match variation:
                case (str(name), Config() as config):
                    pass
                case _:
                    raise ConfigError(
                        f"{path}: sweep() must yield a name and a Config, got {kind_of(variation)}"
                    )
            if not re.fullmatch(VARIATION_NAME, name):
                raise ConfigError(
                    f"{path}: variation {name!r}: its name becomes that of a folder; use at most "
                    f"100 letters, digits and . _ , = + -, and begin with a letter or digit"
                )
            if name in variations:
                raise ConfigError(f"{path}: sweep() yields two variations with the name {name!r}")
            try:
                variations[name] = decode(encode(config))
            except ConfigError as error:
                raise ConfigError(f"{path}: variation {name!r}: {error}") from error
        if not variations:
            raise ConfigError(f"{path}: sweep() yields no variation")
        return list(variations.items())


@contextlib.contextmanager
def _run_config_file(path: Path) -> Iterator[dict[str, Any]]:
    """Runs a config file and gives what it defines; turns any exception into a ConfigError."""
    if path.is_dir():
        raise ConfigError(_not_a_file(path))
    if not path.exists():
        raise ConfigError(f"config file {str(path)!r} does not exist{_nearby_files(path)}")
    if not path.is_file():
        raise ConfigError(f"config file {str(path)!r} is a device or a pipe; name a file")
    try:
        with run_file(path) as namespace:
            yield namespace
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(_explain(error, path)) from error


def _nearby_files(path: Path) -> str:
    as_module = Path(*path.name.split(".")).with_suffix(".py")  # configs.digits
    if as_module.is_file():
        return f"; did you mean {str(as_module)!r}?"
    siblings = [str(file) for file in path.parent.glob("*.py")] if path.parent.is_dir() else []
    return nearest(str(path), siblings)


def _not_a_file(folder: Path) -> str:
    files = sorted(map(str, folder.glob("*.py")))[:3]
    if files:
        return f"{str(folder)!r} is a folder; name the file, for example {', '.join(files)}"
    return (
        f"{str(folder)!r} is a folder, but not a run (it has no config.json); give a .py file or a "
        f"run"
    )


def _explain(error: BaseException, path: Path) -> str:
    """One line about an exception from a config file: where it was raised, and what is wrong."""
    where = where_raised(error, path)
    unknown = re.match(
        r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error)
    )
    fields_of = getattr(augment, unknown[1], getattr(schema, unknown[1], None)) if unknown else None
    if unknown and dataclasses.is_dataclass(fields_of):
        known = [field.name for field in dataclasses.fields(fields_of)]
        return f"{where}: {unknown[1]} has no field {unknown[2]!r}{nearest(unknown[2], known)}"
    text = error.msg if isinstance(error, SyntaxError) else error  # str(error) repeats the place
    return f"{where}: {type(error).__name__}: {text}"
