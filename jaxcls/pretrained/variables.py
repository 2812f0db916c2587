"""The names and shapes of a network's variables.

A name is the path of a leaf, with its collection first: "params/block1a/expand_conv/kernel",
"batch_stats/stem_bn/mean". The part between collection and leaf is the layer:
"block1a/expand_conv", "block4a/se/reduce".
"""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util
from jax import Array

from jaxcls.config.sizes import height_and_width
from jaxcls.distributed.random_keys import random_key
from jaxcls.models.image_network import BlockNetworkSpec, block_name
from jaxcls.models.interface import CLASSIFIER, NetworkSpec

type Shapes = dict[str, tuple[int, ...]]


def variable_shapes(spec: NetworkSpec, *, num_classes: int) -> Shapes:
    """Returns every variable in the order of the layers, with no classifier for 0 classes."""
    return {
        path: (*shape[:-1], num_classes) if _is_classifier(path) else shape
        for path, shape in _with_one_class(spec).items()
        if num_classes or not _is_classifier(path)
    }


def layer_of(path: str) -> str:
    """Returns the layer: "block4a/se/reduce" for "params/block4a/se/reduce/bias"."""
    return path.partition("/")[2].rpartition("/")[0]


def without_collection(path: str) -> str:
    """Returns "stem_conv/kernel" for "params/stem_conv/kernel"; the results are unique."""
    return path.partition("/")[2]


def variable_names(spec: NetworkSpec) -> tuple[str, ...]:
    """Returns the names of all variables, those of the classifier too, in the order of the layers.

    It takes less time than their shapes, because networks of different widths share the work.
    """
    if isinstance(spec, BlockNetworkSpec):
        spec = dataclasses.replace(spec.with_least_widths(), name="", mean=(0.0,), std=(1.0,))
    return tuple(_with_one_class(spec))


@functools.lru_cache(maxsize=64)
def _with_one_class(spec: NetworkSpec) -> Shapes:
    """The shapes of a network with a classifier for one class.

    In a stage all blocks but the first are equal, so that two of them are enough; and the images'
    size changes nothing.
    """
    if not isinstance(spec, BlockNetworkSpec):
        return _traced(spec)
    repeats = spec.repeats_by_stage
    shapes = _traced(dataclasses.replace(spec.with_repeats((2,) * len(repeats)), image_size=1))
    copies = {
        block_name(stage, 1): [block_name(stage, index) for index in range(1, count)]
        for stage, count in enumerate(repeats, start=1)
    }
    found: Shapes = {}
    for module, group in itertools.groupby(shapes, lambda path: path.split("/")[1]):
        paths = list(group)
        for name in copies.get(module, [module]):
            found |= {path.replace(f"/{module}/", f"/{name}/", 1): shapes[path] for path in paths}
    return found


@functools.lru_cache(maxsize=64)
def _traced(spec: NetworkSpec) -> Shapes:
    """Traces the network's initialisation, which takes half a second."""
    network: Any = spec.build(num_classes=1)
    images = jnp.zeros((1, *height_and_width(spec.image_size), spec.channels))
    # JAX sorts what a traced function returns; Flax has the variables in the order of the layers.
    init = functools.partial(nn.Module.init, network) if isinstance(network, nn.Module) else None
    found: Shapes = {}

    def trace(key: Array) -> None:
        variables = (init or network.init)(key, images)
        leaves: dict[str, Any] = traverse_util.flatten_dict(variables, sep="/")
        layers = dict.fromkeys(layer_of(path) for path in leaves)
        for layer in layers:
            found.update({path: leaves[path].shape for path in leaves if layer_of(path) == layer})

    jax.eval_shape(trace, random_key(0))
    return found


def _is_classifier(path: str) -> bool:
    return layer_of(path) == CLASSIFIER
