"""A user's own Flax module as a network: `model.name` is "package.module:factory".

The factory is called with `num_classes`, the options of the config, and `dtype` (of the
activations) if it takes that. It returns a Linen module that

- maps images [batch, height, width, 3], normalised with mean and std, to logits
  [batch, num_classes], when it is called with `images` and `train`;
- may take `positions` and `progress` too, which mean the same as in `interface.Network.apply`;
- has a last layer named "classifier", with a kernel and perhaps a bias;
- may have the attributes `image_size`, `mean` and `std` (default: 224, ImageNet's), and `layers`:
  the modules of its params by layer, first to last, for the layer-wise decay of learning rates.

The module's code is imported, and so it runs. It comes from the environment or from the current
folder, and never from a run or an export, which may be anybody's.
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib
import importlib.machinery
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from jaxcls.config import is_own_network
from jaxcls.config.decoding import ConfigError, nearest
from jaxcls.distributed.random_keys import random_key
from jaxcls.models.interface import (
    CLASSIFIER,
    IMAGENET_MEAN,
    IMAGENET_STD,
    NetworkSpec,
    PyTree,
    Variables,
)
from jaxcls.system.errors import one_line

FLOAT32 = jnp.dtype("float32")
OF_FLAX = ("parent", "name")  # arguments of every Linen module
COLLECTIONS = {"params", "batch_stats"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnSpec(NetworkSpec):
    """The spec of a user's own module.

    Attributes:
      options: the keyword arguments of the factory as JSON, which tells 1 from True.
    """

    options: str = "{}"

    @property
    def num_features(self) -> int:
        return _shapes(self)["params"][CLASSIFIER]["kernel"].shape[0]

    def build(
        self, *, num_classes: int, compute_dtype: jnp.dtype = FLOAT32, **settings: Any
    ) -> "OwnNetwork":
        """Makes the network. For 0 classes the module has one, which is never asked for."""
        assert not settings, "they are checked with the config"
        module = _make_module(self.name, self.options, num_classes or 1, compute_dtype)
        return OwnNetwork(
            spec=self, num_classes=num_classes, compute_dtype=compute_dtype, module=module
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnNetwork:
    """A user's module as a `Network`.

    Attributes:
      spec: its name, options and preprocessing.
      num_classes: the width of the classifier; 0 if only features are asked for.
      compute_dtype: the dtype of activations.
      module: what the factory returned.
    """

    spec: OwnSpec
    num_classes: int
    compute_dtype: jnp.dtype
    module: nn.Module = dataclasses.field(compare=False)  # the others identify it

    def layers(self) -> Sequence[Sequence[str]]:
        """The attribute `layers` of the module, or nothing."""
        named = getattr(self.module, "layers", ())
        if not isinstance(named, list | tuple):  # a number of layers, perhaps
            return []
        layers = [(layer,) if isinstance(layer, str) else tuple(layer) for layer in named]
        if layers and not any(CLASSIFIER in layer for layer in layers):
            layers.append((CLASSIFIER,))
        return layers

    def init(self, rngs: Any, images: Any, /) -> Variables:
        """Returns the initial variables that the module's initializers draw."""
        images = jnp.asarray(images, self.compute_dtype)
        variables = dict(self.module.init(rngs, images, train=False))
        if not self.num_classes:
            variables["params"] = {
                name: value for name, value in variables["params"].items() if name != CLASSIFIER
            }
        return variables

    def apply(
        self,
        variables: Mapping[str, PyTree],
        images: Any,
        /,
        *,
        train: bool = False,
        positions: Array | None = None,
        progress: Array | float = 0.0,
        features: bool = False,
        rngs: dict[str, Array] | None = None,
        mutable: Any = False,
    ) -> Any:
        """Applies the module; see `interface.Network.apply`."""
        given = {"positions": positions, "progress": progress}
        taken = _parameters(type(self.module).__call__)
        seen: list[Array] = []
        kept = {name: value for name, value in variables.items() if value}
        if CLASSIFIER not in kept["params"]:  # a network without classes
            shapes = _shapes(self.spec)["params"][CLASSIFIER]
            zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
            kept["params"] = {**kept["params"], CLASSIFIER: zeros}
        with nn.intercept_methods(functools.partial(_note_features, seen)):
            result: Any = self.module.apply(
                kept,
                images.astype(self.compute_dtype),
                train=train,
                rngs=rngs,
                mutable=mutable,
                **{name: value for name, value in given.items() if name in taken},
            )
        dtype = jnp.promote_types(self.compute_dtype, jnp.float32)
        if features or not self.num_classes:
            return seen[0].astype(dtype)
        if not mutable:
            return result.astype(dtype)
        logits, updated = result
        return logits.astype(dtype), updated


@functools.lru_cache(maxsize=16)
def own_spec(name: str, options: str) -> OwnSpec:
    """Returns the spec of a user's module.

    Args:
      name: "package.module:factory".
      options: the keyword arguments of the factory as JSON.

    Raises:
      ConfigError: the factory cannot be imported or called, or what it returns is no network; the
        message says why.
    """
    module = _make_module(name, options, 1, FLOAT32)
    spec = OwnSpec(
        name=name,
        options=options,
        image_size=getattr(module, "image_size", 224),
        mean=_triple(name, module, "mean", IMAGENET_MEAN),
        std=_triple(name, module, "std", IMAGENET_STD),
    )
    _check(spec)
    return spec


def source_code(name: str) -> str | None:
    """Identifies the code of a user's module; None for jaxcls's own networks.

    Returns:
      The name of the module's file and the start of its sha256. Modules that it imports do not
      count.

    Raises:
      ConfigError: as `own_spec`.
    """
    if not is_own_network(name):
        return None
    _import(name)
    file = getattr(sys.modules[name.partition(":")[0]], "__file__", None)
    if file is None:
        return None
    return f"{Path(file).name} {hashlib.sha256(Path(file).read_bytes()).hexdigest()[:12]}"


def _make_module(name: str, options: str, num_classes: int, dtype: jnp.dtype) -> nn.Module:
    factory = _import(name)
    arguments = json.loads(options)
    taken = _parameters(factory)
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
            f"takes {', '.join(name for name in taken if name not in OF_FLAX) or 'no arguments'}"
        ) from error
    try:
        module = factory(**arguments)
    except Exception as error:  # the user's code
        raise ConfigError(f"model.options: {name} failed: {_text(error)}") from error
    if not isinstance(module, nn.Module):
        raise ConfigError(
            f"model.name: {name} returned {type(module).__name__}, not a flax.linen.Module"
        )
    return module


def _import(name: str) -> Callable[..., Any]:
    where, _, attribute = name.partition(":")
    if where.endswith(".py"):
        raise ConfigError(f"model.name: write {where.removesuffix('.py')}:{attribute}, without .py")
    try:
        with _trusted_folders(where):
            found = importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name is None or f"{where}.".startswith(f"{error.name}."):
            raise ConfigError(
                f"model.name: {name} cannot be imported ({_text(error)}); {_remedy(where)}"
            ) from error
        raise ConfigError(
            f"model.name: {where} imports {error.name}, which is not installed; install it"
        ) from error
    except (Exception, SystemExit) as error:  # of the user's code
        raise ConfigError(f"model.name: {where} fails when imported: {_text(error)}") from error
    factory = getattr(found, attribute, None)
    if not callable(factory):
        own = [key for key, value in vars(found).items() if _is_defined_in(found, value)]
        raise ConfigError(
            f"model.name: {where} has no function or class {attribute!r}{nearest(attribute, own)}; "
            f"it has {', '.join(own) or 'none'}"
        )
    return factory


def _remedy(where: str) -> str:
    if _inside_run_or_export(Path.cwd()):
        return "it is not imported from this folder, which is a run or an export; use another one"
    return f"install the package of {where}, or run the command in the folder that has it"


def _is_defined_in(module: Any, value: Any) -> bool:
    return callable(value) and getattr(value, "__module__", None) == module.__name__


@contextlib.contextmanager
def _trusted_folders(where: str) -> Iterator[None]:
    """Inside, a module of the current folder is found after those of the environment.

    A run or an export may come from anybody, so nothing is imported from its folder: neither if it
    is the current folder, nor if the module's name leads there.

    Raises:
      ConfigError: the name leads into a run or an export.
    """
    here, before = Path.cwd(), list(sys.path)
    if _inside_run_or_export(here):
        sys.path[:] = [entry for entry in before if Path(entry or ".").absolute() != here]
    else:
        sys.path.append(str(here))
        top, *rest = where.split(".")
        spec = importlib.machinery.PathFinder.find_spec(top)
        for location in (spec and spec.submodule_search_locations) or ():
            for depth in range(len(rest) + 1):
                folder = Path(location, *rest[:depth])
                if folder.is_relative_to(here) and _is_run_or_export(folder):
                    sys.path[:] = before
                    raise ConfigError(
                        f"model.name: {where} is in {folder}, which is a run or an export; nothing "
                        f"is imported from there"
                    )
    try:
        yield
    finally:
        sys.path[:] = before


def _is_run_or_export(folder: Path) -> bool:
    return (folder / "config.json").exists()


def _inside_run_or_export(folder: Path) -> bool:
    """Whether a folder is a run or an export, or the folder of a run's checkpoints."""
    return _is_run_or_export(folder) or any(
        _is_run_or_export(parent) and (parent / "checkpoints").is_dir() for parent in folder.parents
    )


def _triple(
    name: str, module: nn.Module, attribute: str, default: tuple[float, float, float]
) -> tuple[float, float, float]:
    try:
        red, green, blue = map(float, getattr(module, attribute, default))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"model.name: the attribute `{attribute}` of {name} must be three numbers, for red, "
            f"green and blue"
        ) from error
    return red, green, blue


def _check(spec: OwnSpec) -> None:
    """Checks what the rest of jaxcls relies on.

    Raises:
      ConfigError: something is missing or wrong; the message says what.
    """
    try:
        shapes = _shapes(spec)
    except Exception as error:  # the user's code
        raise ConfigError(
            f"model.name: {spec.name} fails on images [2, {spec.image_size}, {spec.image_size}, 3]"
            f" with train=False: {_text(error)}; its attribute image_size says which size it takes"
        ) from error
    if others := shapes.keys() - COLLECTIONS:
        raise ConfigError(
            f"model.name: {spec.name} has the variables {', '.join(sorted(others))}; jaxcls trains "
            f"params and batch_stats"
        )
    params = shapes.get("params", {})
    classifier = params.get(CLASSIFIER, {})
    if "kernel" not in classifier:
        raise ConfigError(
            f"model.name: the last layer of {spec.name} must be named {CLASSIFIER!r} and have a "
            f"kernel; its layers are {', '.join(params) or 'none'}"
        )
    if classifier["kernel"].ndim != 2 or classifier.keys() - {"kernel", "bias"}:
        raise ConfigError(
            f"model.name: the layer {CLASSIFIER!r} of {spec.name} must be a Dense layer: a kernel "
            f"[features, classes] and perhaps a bias"
        )
    network = spec.build(num_classes=3)
    images = jax.ShapeDtypeStruct((2, spec.image_size, spec.image_size, 3), jnp.float32)
    train = functools.partial(
        network.apply,
        train=True,
        positions=jnp.arange(2),
        rngs={"dropout": random_key(0)},
        mutable=["batch_stats"],
    )
    try:
        variables = jax.eval_shape(network.init, random_key(0), images)
        logits = jax.eval_shape(network.apply, variables, images)
        jax.eval_shape(train, variables, images)
    except Exception as error:  # the user's code
        raise ConfigError(
            f"model.name: {spec.name} fails with train=True: {_text(error)}; it must return one "
            f"array of logits, and gets random numbers by the name 'dropout'"
        ) from error
    if getattr(logits, "shape", None) != (2, 3):
        raise ConfigError(
            f"model.name: for 2 images and 3 classes, {spec.name} returns an array of shape "
            f"{getattr(logits, 'shape', type(logits).__name__)}; expected (2, 3)"
        )
    named = {name for layer in network.layers() for name in layer}
    if named and named != params.keys():
        missing, unknown = sorted(params.keys() - named), sorted(named - params.keys())
        raise ConfigError(
            f"model.name: the attribute `layers` of {spec.name} must name each of its layers once"
            + (f"; missing: {', '.join(missing)}" if missing else "")
            + (f"; not among its layers: {', '.join(unknown)}" if unknown else "")
        )


@functools.lru_cache(maxsize=16)
def _shapes(spec: OwnSpec) -> dict[str, Any]:
    """Shapes and dtypes of the variables for one class."""
    module = _make_module(spec.name, spec.options, 1, FLOAT32)
    images = jax.ShapeDtypeStruct((2, spec.image_size, spec.image_size, 3), jnp.float32)
    init = functools.partial(module.init, train=False)
    return dict(jax.eval_shape(init, random_key(0), images))


def _note_features(
    seen: list[Array],
    call: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    context: Any,
) -> Any:
    """Keeps what the classifier is called with."""
    if context.module.path == (CLASSIFIER,) and context.method_name == "__call__":
        seen.append(args[0] if args else next(iter(kwargs.values())))
    return call(*args, **kwargs)


def _parameters(function: Callable[..., Any]) -> list[str]:
    try:
        return list(inspect.signature(function).parameters)
    except ValueError:  # of some builtins
        return []


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {one_line(error)}"
