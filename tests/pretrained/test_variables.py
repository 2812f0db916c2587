"""Names and shapes from the block table, against the network's own initialisation."""

import jax
import jax.numpy as jnp
import pytest

from jaxcls.models.registry import create_model, model_spec
from jaxcls.pretrained.variables import (
    layer_of,
    variable_names,
    variable_shapes,
    without_collection,
)


@pytest.mark.parametrize(
    ("name", "num_classes"),
    [
        ("efficientnetv2_b3", 7),
        ("efficientnet_b0", 0),
        ("efficientnet_lite0", 1000),
        ("resnet50", 3),
    ],
)
def test_variables_are_those_of_the_network(name: str, num_classes: int) -> None:
    model = create_model(name, num_classes=num_classes)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    made = jax.eval_shape(model.init, jax.random.key(0), images)
    expected = {
        "/".join(key.key for key in path): leaf.shape
        for path, leaf in jax.tree.leaves_with_path(made)
    }
    spec = model_spec(name)
    assert variable_shapes(spec, num_classes=num_classes) == expected


@pytest.mark.parametrize(
    "name",
    [
        "efficientnetv2_s",
        "efficientnetv2_rw_s",
        "efficientnet_lite2",
        "efficientnet_b1",
        "resnet34",
    ],
)
def test_names_come_in_the_order_of_the_shapes(name: str) -> None:
    spec = model_spec(name)
    assert variable_names(spec) == tuple(variable_shapes(spec, num_classes=1))


def test_parts_of_a_name() -> None:
    assert layer_of("params/block4a/se/reduce/bias") == "block4a/se/reduce"
    assert layer_of("batch_stats/head_bn/var") == "head_bn"
    assert without_collection("batch_stats/head_bn/var") == "head_bn/var"
    names = [
        without_collection(p) for p in variable_shapes(model_spec("efficientnet_b0"), num_classes=1)
    ]
    assert len(set(names)) == len(names) == 311
