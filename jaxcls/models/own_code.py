"""Imports and calls the code of a user's own network: `model.name` is "package.module:factory".

Importing a module runs it. It comes from the environment or from the current folder, and never from
a run or an export, which may be anybody's. What the code prints goes to standard error, because
standard output may be JSON.
"""

import contextlib
import functools
import hashlib
import importlib
import importlib.machinery
import inspect
import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from jaxcls.config import is_own_network
from jaxcls.config.decoding import ConfigError, nearest
from jaxcls.system.errors import one_line

logger = logging.getLogger("jaxcls")

FLOAT32 = jnp.dtype("float32")
_OF_FLAX = ("parent", "name")  # arguments of every Linen module


def make_module(name: str, options: str, *, num_classes: int, dtype: jnp.dtype) -> nn.Module:
    """Calls the factory of a user's network.

    Args:
      name: "package.module:factory".
      options: the keyword arguments of the factory as JSON.
      num_classes: the width of the classifier.
      dtype: the dtype of activations; a factory without the argument computes in float32.

    Raises:
      ConfigError: the factory cannot be imported or called, or returns no module.
    """
    factory = _import(name)
    arguments = json.loads(options)
    taken = parameters(factory)
    if isinstance(factory, type) and not issubclass(factory, nn.Module):
        raise ConfigError(f"model.name: {name} is not a flax.linen.Module, nor a function")
    if "num_classes" not in taken:
        raise ConfigError(
            f"model.name: {name} must take the argument num_classes; it takes "
            f"{', '.join(taken) or 'none'}"
        )
    if given := {"num_classes", "dtype"} & arguments.keys():
        raise ConfigError(
            f"model.options: {', '.join(sorted(given))} is not an option; leave it out"
        )
    arguments["num_classes"] = num_classes
    if "dtype" in taken:
        arguments["dtype"] = dtype
    elif dtype != FLOAT32:
        raise ConfigError(
            f"compute_dtype: {name} takes no argument dtype, so it computes in float32; add the "
            f"argument, or set compute_dtype to float32"
        )
    try:
        inspect.signature(factory).bind(**arguments)
    except TypeError as error:
        raise ConfigError(
            f"model.options: {name} cannot be called with {', '.join(arguments)}: {error}; it "
            f"takes {', '.join(name for name in taken if name not in _OF_FLAX) or 'no arguments'}"
        ) from error
    with running(f"model.name: {name} failed"):
        module = factory(**arguments)
    if not isinstance(module, nn.Module):
        raise ConfigError(
            f"model.name: {name} returned {type(module).__name__}, not a flax.linen.Module"
        )
    return module


def parameters(function: Callable[..., Any]) -> list[str]:
    """The names of a function's parameters; empty for builtins that do not tell them."""
    try:
        return list(inspect.signature(function).parameters)
    except ValueError:
        return []


@contextlib.contextmanager
def running(failure: str, *, hint: str = "") -> Iterator[None]:
    """Inside, code of the user runs: its errors become a message, and it prints to stderr.

    Args:
      failure: the start of the message, such as "model.name: mynets:Small fails".
      hint: its end.

    Raises:
      ConfigError: the code failed.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        text = f"{type(error).__name__}: {one_line(error)}"
        raise ConfigError(f"{failure}: {text}{hint and f'; {hint}'}") from error


def source_code(name: str) -> str | None:
    """Identifies the code of a user's network; None for jaxcls's own networks.

    Returns:
      The name of the file that defines the factory, and the start of its sha256. Modules that it
      imports do not count.

    Raises:
      ConfigError: the factory cannot be imported.
    """
    if not is_own_network(name):
        return None
    factory = _import(name)
    while isinstance(factory, functools.partial):
        factory = factory.func
    module = sys.modules.get(getattr(factory, "__module__", name.partition(":")[0]))
    file = getattr(module, "__file__", None)
    if file is None:
        return None
    return f"{Path(file).name} {hashlib.sha256(Path(file).read_bytes()).hexdigest()[:12]}"


def warn_of_changed_code(name: str, recorded: str | None) -> None:
    """Warns if a user's network has changed since its weights were trained.

    Args:
      name: `model.name`.
      recorded: its `source_code` at that time; None if unknown.

    Raises:
      ConfigError: as `source_code`.
    """
    if recorded is not None and (now := source_code(name)) != recorded:
        logger.warning(
            "the code of %s has changed since these weights were trained (%s then, %s now), so the "
            "results may differ",
            name,
            recorded,
            now,
        )


def _import(name: str) -> Callable[..., Any]:
    where, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in where.split(".")) or where.endswith(".py"):
        dotted = where.removesuffix(".py").replace("/", ".").strip(".") or "package.module"
        raise ConfigError(
            f"model.name: {name!r} is no name of a module; write {dotted}:{attribute}"
        )
    with _trusted_folders(where), running(f"model.name: {where} fails when imported"):
        try:
            found = importlib.import_module(where)
        except ModuleNotFoundError as error:
            raise _not_found(name, error) from error
    factory = getattr(found, attribute, None)
    if not callable(factory):
        own = [key for key, value in vars(found).items() if _is_defined_in(found, value)]
        raise ConfigError(
            f"model.name: {where} has no function or class {attribute!r}{nearest(attribute, own)}; "
            f"it has {', '.join(own) or 'none'} ({getattr(found, '__file__', None) or 'built in'})"
        )
    return factory


def _not_found(name: str, error: ModuleNotFoundError) -> ConfigError:
    where = name.partition(":")[0]
    if error.name is not None and not f"{where}.".startswith(f"{error.name}."):
        return ConfigError(
            f"model.name: {where} imports {error.name}, which is not installed and not in this "
            f"folder; install it, or correct the name"
        )
    remedy = f"install the package of {where}, or run the command in the folder that has it"
    if _inside_run_or_export(Path.cwd()):
        remedy = "it is not imported from this folder, which is a run or an export; use another one"
    return ConfigError(
        f"model.name: {name} cannot be imported (ModuleNotFoundError: {one_line(error)}); {remedy}"
    )


def _is_defined_in(module: Any, value: Any) -> bool:
    return callable(value) and getattr(value, "__module__", None) == module.__name__


@contextlib.contextmanager
def _trusted_folders(where: str) -> Iterator[None]:
    """Inside, a module of the current folder is found after those of the environment.

    The current folder stays on the path, for what the module imports when it is called. A run or an
    export may come from anybody, so nothing is imported from its folder: neither if the current
    folder is one or is inside of one, nor if the module's name leads there, or to other weights.

    Raises:
      ConfigError: the name leads to a run, an export or weights.
    """
    here, before = Path.cwd(), list(sys.path)
    if _inside_run_or_export(here):
        sys.path[:] = [entry for entry in before if Path(entry or ".").absolute() != here]
        try:
            yield
        finally:
            sys.path[:] = before
        return
    if not any(Path(entry or ".").absolute() == here for entry in before):
        sys.path.append(str(here))
    top, *rest = where.split(".")
    spec = importlib.machinery.PathFinder.find_spec(top)
    for location in (spec and spec.submodule_search_locations) or ():
        for depth in range(len(rest) + 1):
            folder = Path(location, *rest[:depth])
            if folder.is_relative_to(here) and _has_weights(folder):
                raise ConfigError(
                    f"model.name: {where} is in {folder}, which is a run or an export or has other "
                    f"weights; nothing is imported from there"
                )
    yield


def _has_weights(folder: Path) -> bool:
    return _is_run_or_export(folder) or any(folder.glob("*.safetensors"))


def _is_run_or_export(folder: Path) -> bool:
    """Whether a folder has what the commands open; its other files may be missing."""
    return any(folder.glob("checkpoints/[0-9]*")) or (folder / "model.stablehlo").exists()


def _inside_run_or_export(folder: Path) -> bool:
    return any(_is_run_or_export(parent) for parent in (folder, *folder.parents))
