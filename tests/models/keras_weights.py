"""Brings `keras.applications.EfficientNet*` and ours to the same weights, for parity tests."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

from jaxcls.models.interface import Network

KERAS_NAMES = {
    f"efficientnetv2_{variant}": f"EfficientNetV2{variant.upper()}"
    for variant in ("b0", "b1", "b2", "b3", "s", "m", "l")
} | {f"efficientnet_b{number}": f"EfficientNetB{number}" for number in range(8)}

# A Keras layer inside a block -> ours.
_LAYERS = {
    "expand_conv": "expand_conv",
    "expand_bn": "expand_bn",
    "dwconv": "depthwise_conv",  # V1
    "dwconv2": "depthwise_conv",  # V2
    "bn": "depthwise_bn",
    "se_reduce": "se/reduce",
    "se_expand": "se/expand",
    "project_conv": "project_conv",
    "project_bn": "project_bn",
}
_OUTSIDE = {
    "stem_conv": "stem_conv",
    "stem_bn": "stem_bn",
    "top_conv": "head_conv",
    "top_bn": "head_bn",
    "predictions": "classifier",
}
_VARIABLES = {
    "kernel": ("params", "kernel"),
    "bias": ("params", "bias"),
    "gamma": ("params", "scale"),
    "beta": ("params", "bias"),
    "moving_mean": ("batch_stats", "mean"),
    "moving_variance": ("batch_stats", "var"),
}


def keras_model(name: str, *, image_size: int, num_classes: int = 1000) -> Any:
    """The Keras model for one of our names, without softmax, and V2 without preprocessing.

    V1 divides by 255, and has a normalisation that does nothing without published weights.

    Its kernels are 0: to draw them takes a compilation a shape, 10 seconds a model.
    """
    preprocessing = {"include_preprocessing": False} if "v2" in name else {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            keras.initializers.VarianceScaling,
            "__call__",
            lambda self, shape, dtype=None: np.zeros(shape, dtype),
        )
        return getattr(keras.applications, KERAS_NAMES[name])(
            weights=None,
            **preprocessing,
            input_shape=(image_size, image_size, 3),
            classes=num_classes,
            classifier_activation=None,
        )


def keras_images(name: str, images: Any) -> Any:
    """What to give the Keras model so that its first convolution sees `images`."""
    return images if name.startswith("efficientnetv2") else images * 255


def weights_of(model: Any) -> list[Any]:
    """The model's variables but for dropout's random seeds and the preprocessing of V1."""
    return [
        variable
        for variable in model.variables
        if variable.name != "seed_generator_state" and "normalization" not in variable.path
    ]


def randomise(model: Any, *, seed: int) -> None:
    """Gives every weight, moving statistics too, a random value of a plausible size."""
    rng = np.random.default_rng(seed)
    for variable in weights_of(model):
        shape, kind = variable.shape, variable.name
        if kind in ("gamma", "moving_variance"):
            value = rng.uniform(0.5, 1.5, shape)
        elif kind in ("beta", "bias", "moving_mean"):
            value = rng.normal(0, 0.1, shape)
        elif len(shape) == 4 and shape[3] == 1:  # Depthwise: its fan-in is the window.
            value = rng.normal(0, 1 / 3, shape)
        else:
            value = rng.normal(0, np.prod(shape[:-1]) ** -0.5, shape)
        variable.assign(value)


def our_path(keras_path: str) -> tuple[str, ...]:
    """Where a Keras variable ("block1a_expand_conv/kernel") lies in our variables."""
    layer, kind = keras_path.split("/")[-2:]
    collection, variable = _VARIABLES[kind]
    if match := re.fullmatch(r"(block\d+[a-z]+)_(\w+)", layer):
        inside = (match[1], *_LAYERS[match[2]].split("/"))
    else:
        inside = (_OUTSIDE[layer],)
    return (collection, *inside, variable)


def import_keras(model: Any, variables: Any) -> Any:
    """Our variables (or their shapes) with the values of a Keras model's.

    Every one of ours must be given, and every one of Keras' used.
    """
    values = {our_path(variable.path): np.asarray(variable.value) for variable in weights_of(model)}

    def fill(tree: Any, path: tuple[str, ...]) -> Any:
        if isinstance(tree, dict):
            return {name: fill(child, (*path, name)) for name, child in tree.items()}
        value = values.pop(path)
        if path[-2] == "depthwise_conv":
            value = value.transpose(0, 1, 3, 2)
        return value.reshape(tree.shape)

    filled = fill(variables, ())
    assert not values, f"not used: {sorted(values)}"
    return filled


def relative_error(ours: Any, theirs: Any) -> float:
    """The largest difference, as a share of the largest value."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    return float(np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs)))


def shapes_of(model: Network, image_size: int) -> Any:
    """The shapes of our variables, without computing them."""
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images)
