"""A user's own Flax module as a network: `model.name` is "package.module:factory".

The factory is called with `num_classes`, the options of the config, and `dtype` (of the
activations) if it takes that. It returns a Linen module that

- maps images [batch, height, width, channels], normalised with mean and std, to logits
  [batch, num_classes], when it is called with `images` and `train`;
- may take `positions` and `progress` too, which mean the same as in `interface.Network.apply`;
- has a last layer named "classifier", with a kernel and perhaps a bias;
- may have the attributes `image_size`, `mean` and `std` (default: 224, ImageNet's; numbers for red,
  green and blue, or for each channel), and `layers`: the modules of its params by layer, first to
  last, for the layer-wise decay of learning rates.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from jaxcls.config.decoding import ConfigError
from jaxcls.config.sizes import ImageSize, height_and_width
from jaxcls.distributed.random_keys import random_key
from jaxcls.models.interface import (
    CLASSIFIER,
    NetworkSpec,
    PyTree,
    Variables,
)
from jaxcls.models.normalisation import IMAGENET_MEAN, IMAGENET_STD, for_channels
from jaxcls.models.own_code import FLOAT32, make_module, parameters, running

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
        classes = num_classes or 1
        module = make_module(self.name, self.options, num_classes=classes, dtype=compute_dtype)
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
        if not isinstance(named, list | tuple) or all(isinstance(of, int) for of in named):
            return []  # numbers of layers, perhaps
        layers = [tuple(layer) if isinstance(layer, list | tuple) else (layer,) for layer in named]
        if layers and not any(CLASSIFIER in layer for layer in layers):
            layers.append((CLASSIFIER,))
        return layers

    def init(self, rngs: Any, images: Any, /) -> Variables:
        """Returns the initial variables that the module's initializers draw."""
        with self._running(images.shape, train=False):
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
        taken = parameters(type(self.module).__call__)
        if rngs and positions is not None:  # so that micro-batches do not repeat each other's draws
            rngs = {name: jax.random.fold_in(key, positions[0]) for name, key in rngs.items()}
        classify = self.num_classes > 0 and not features
        with self._running(images.shape, train=train), _intercepting(classify=classify):
            result: Any = self.module.apply(
                {name: value for name, value in variables.items() if value},
                images.astype(self.compute_dtype),
                train=train,
                rngs=rngs,
                mutable=mutable,
                **{name: value for name, value in given.items() if name in taken},
            )
        outputs, updated = result if mutable else (result, {})
        width = self.num_classes if classify else self.spec.num_features
        shape = getattr(outputs, "shape", type(outputs).__name__)
        if shape != (images.shape[0], width):
            raise ConfigError(
                f"model.name: for {images.shape[0]} images {self.spec.name} returns "
                f"{'logits' if classify else 'features'} of shape {shape}; expected "
                f"({images.shape[0]}, {width}); it must return what {CLASSIFIER!r} makes of "
                f"features [batch, {self.spec.num_features}]"
            )
        outputs = outputs.astype(jnp.promote_types(self.compute_dtype, jnp.float32))
        return (outputs, updated) if mutable else outputs

    def _running(self, shape: Sequence[int], *, train: bool) -> AbstractContextManager[None]:
        hint = "data.image_size sets the size; random numbers have the name 'dropout'"
        if not isinstance(shape[0], int):  # as in an export
            hint = "an export takes any number of images, so write images.shape[0], not len(images)"
        sizes = ", ".join(map(str, shape))
        failure = f"model.name: {self.spec.name} fails on images [{sizes}] with train={train}"
        return running(failure, hint=hint)


@functools.lru_cache(maxsize=16)
def own_spec(name: str, options: str, image_size: ImageSize, channels: int) -> OwnSpec:
    """Returns the spec of a user's module.

    Args:
      name: "package.module:factory".
      options: the keyword arguments of the factory as JSON.
      image_size: the size of its images; 0 for the module's own.
      channels: of its images.

    Raises:
      ConfigError: the factory cannot be imported or called, or what it returns is no network; the
        message says why.
    """
    module = make_module(name, options, num_classes=1, dtype=FLOAT32)
    native = getattr(module, "image_size", 224)
    if type(native) is not int or native < 1:
        raise ConfigError(
            f"model.name: the attribute `image_size` of {name} must be a number of pixels, got "
            f"{native!r}"
        )
    spec = OwnSpec(
        name=name,
        options=options,
        image_size=image_size or native,
        mean=_numbers(name, module, "mean", IMAGENET_MEAN, channels),
        std=_numbers(name, module, "std", IMAGENET_STD, channels),
    )
    _check(spec)
    return spec


def _numbers(
    name: str, module: nn.Module, attribute: str, default: tuple[float, ...], channels: int
) -> tuple[float, ...]:
    try:
        numbers = tuple(map(float, getattr(module, attribute, default)))
        if len(numbers) not in (3, channels) or not all(map(math.isfinite, numbers)):
            raise ValueError
        if attribute == "std" and 0 in numbers:
            raise ValueError
    except (TypeError, ValueError) as error:
        more = "" if channels == 3 else f", or {channels} for data.channels"
        raise ConfigError(
            f"model.name: the attribute `{attribute}` of {name} must be three numbers, for red, "
            f"green and blue{more}, and those of std not 0"
        ) from error
    return for_channels(numbers, channels)


def _check(spec: OwnSpec) -> None:
    """Checks what the rest of jaxcls relies on.

    Raises:
      ConfigError: something is missing or wrong; the message says what.
    """
    shapes = _shapes(spec)
    if others := shapes.keys() - COLLECTIONS:
        raise ConfigError(
            f"model.name: {spec.name} has the variables {', '.join(sorted(others))}; jaxcls trains "
            f"params and batch_stats"
        )
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ConfigError(
                f"model.name: {spec.name} has the variable {_path(path)} of {leaf.dtype}; jaxcls "
                f"trains and averages floating-point numbers"
            )
    params = shapes.get("params", {})
    classifier = params.get(CLASSIFIER)
    if not isinstance(classifier, Mapping) or "kernel" not in classifier:
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
    images = _images(spec)
    train = functools.partial(
        network.apply,
        train=True,
        positions=jnp.arange(2),
        rngs={"dropout": random_key(0)},
        mutable=["batch_stats"],
    )
    look = functools.partial(network.apply, features=True)
    variables = jax.eval_shape(network.init, random_key(0), images)
    for apply in (network.apply, look, train):
        jax.eval_shape(apply, variables, images)
    kernel = variables["params"][CLASSIFIER]["kernel"].shape
    if kernel != (spec.num_features, 3):
        raise ConfigError(
            f"model.name: for 3 classes, the kernel of the layer {CLASSIFIER!r} of {spec.name} has "
            f"the shape {kernel}; expected ({spec.num_features}, 3)"
        )
    _check_layers(spec.name, network.layers(), params)


def _check_layers(name: str, layers: Sequence[Sequence[str]], params: Mapping[str, Any]) -> None:
    named = [module for layer in layers for module in layer]
    if not all(isinstance(module, str) for module in named):
        raise ConfigError(
            f"model.name: the attribute `layers` of {name} must have names, got {named}"
        )
    problems = {
        "missing": params.keys() - set(named),
        "not among its layers": set(named) - params.keys(),
        "named twice": {module for module in named if named.count(module) > 1},
    }
    if not named:
        return
    if any(problems.values()):
        raise ConfigError(
            f"model.name: the attribute `layers` of {name} must name each of its layers once"
            + "".join(
                f"; {what}: {', '.join(sorted(which))}" for what, which in problems.items() if which
            )
        )
    if CLASSIFIER not in layers[-1]:
        raise ConfigError(
            f"model.name: the attribute `layers` of {name} must name its layers from first to "
            f"last, so it ends with {CLASSIFIER!r}, not with {', '.join(layers[-1])}"
        )


def _path(path: jax.tree_util.KeyPath) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


@functools.lru_cache(maxsize=16)
def _shapes(spec: OwnSpec) -> dict[str, Any]:
    """Shapes and dtypes of the variables for one class."""
    return dict(jax.eval_shape(spec.build(num_classes=1).init, random_key(0), _images(spec)))


def _images(spec: OwnSpec) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((2, *height_and_width(spec.image_size), spec.channels), jnp.float32)


def _intercepting(*, classify: bool) -> AbstractContextManager[None]:
    """Inside, the classifier returns what it is called with, unless it shall classify."""

    def call_or_skip(
        call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: Any
    ) -> Any:
        if context.module.path == (CLASSIFIER,) and context.method_name == "__call__":
            return args[0] if args else next(iter(kwargs.values()))
        return call(*args, **kwargs)

    return contextlib.nullcontext() if classify else nn.intercept_methods(call_or_skip)
