"""The same weights give the same logits, and the same training steps, as Keras 3."""

import copy
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import keras
import keras_weights as kw
import numpy as np
import pytest
from keras.src.applications.efficientnet_v2 import DEFAULT_BLOCKS_ARGS
from keras.src.backend.common import dtypes

from jaxcls.config.sizes import longer_side
from jaxcls.models.registry import SPECS, create_model, model_spec

# (model, image size): None is the native one; the others are small, and one is odd.
CASES = [
    ("efficientnetv2_b0", None),
    pytest.param("efficientnet_b0", 65, marks=pytest.mark.long),
    pytest.param("efficientnet_b3", 64, marks=pytest.mark.long),
    *(
        pytest.param(f"efficientnetv2_{variant}", size, marks=pytest.mark.long)
        for variant, size in [("b1", None), ("b2", None), ("b2", 65), ("b3", None)]
    ),
    *(pytest.param(f"efficientnetv2_{v}", 64, marks=pytest.mark.long) for v in "sml"),
    *(pytest.param(f"efficientnetv2_{v}", None, marks=pytest.mark.long) for v in "sml"),
    *(pytest.param(f"efficientnet_b{n}", None, marks=pytest.mark.long) for n in range(8)),
]


@pytest.mark.parametrize(("name", "image_size"), CASES)
def test_logits_equal_keras(name: str, image_size: int | None):
    size = image_size or longer_side(model_spec(name).image_size)
    theirs = kw.keras_model(name, image_size=size)
    kw.randomise(theirs, seed=1)
    ours = create_model(name, num_classes=1000)
    variables = kw.import_keras(theirs, kw.shapes_of(ours, size))
    images = np.random.default_rng(2).normal(size=(1, size, size, 3)).astype(np.float32)
    trained, fixed = ([v.value for v in group] for group in _variables(theirs))
    expected = jax.jit(lambda x: theirs.stateless_call(trained, fixed, x, training=False)[0])(
        kw.keras_images(name, images)
    )
    logits = jax.jit(ours.apply)(variables, images)
    assert logits.dtype == jnp.float32
    assert kw.relative_error(logits, expected) <= 1e-4


@pytest.fixture
def keras_float64(monkeypatch):
    """Keras in float64: inputs, layers, and no narrowing where it promotes types on JAX."""
    monkeypatch.setitem(dtypes.BIT64_TO_BIT32_DTYPE, "float64", "float64")
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")


@pytest.fixture(
    params=[
        pytest.param(1, marks=pytest.mark.slow),
        *(pytest.param(repeats, marks=pytest.mark.long) for repeats in (2, 8)),
    ]
)
def b0_of_repeats(request, monkeypatch):
    """B0 in both libraries with at most so many blocks a stage; it has 8 itself."""
    theirs = copy.deepcopy(DEFAULT_BLOCKS_ARGS["efficientnetv2-b0"])
    for stage in theirs:
        stage["num_repeat"] = min(stage["num_repeat"], request.param)
    monkeypatch.setitem(DEFAULT_BLOCKS_ARGS, "efficientnetv2-b0", theirs)
    ours: Any = SPECS["efficientnetv2_b0"]
    blocks = tuple(
        dataclasses.replace(stage, repeats=min(stage.repeats, request.param))
        for stage in ours.blocks
    )
    monkeypatch.setitem(SPECS, ours.name, dataclasses.replace(ours, blocks=blocks))


@pytest.mark.usefixtures("keras_float64", "b0_of_repeats")
def test_three_float64_training_steps_equal_keras():
    """Dropout and drop-path off; float64, so that rounding does not blur the comparison."""
    name, size, batch, learning_rate = "efficientnetv2_b0", 64, 4, 0.05
    rng = np.random.default_rng(3)
    images = rng.normal(size=(batch, size, size, 3))
    labels = np.eye(10)[rng.integers(0, 10, batch)]
    with jax.enable_x64(True):
        theirs = kw.keras_model(name, image_size=size, num_classes=10)
        kw.randomise(theirs, seed=4)
        _switch_dropout_off(theirs)
        ours = create_model(
            name, num_classes=10, dropout=0.0, drop_path=0.0, compute_dtype="float64"
        )
        variables = kw.import_keras(theirs, kw.shapes_of(ours, size))
        _train_keras(theirs, images, labels, learning_rate)
        variables = _train_ours(ours, variables, images, labels, learning_rate)
        expected = kw.import_keras(theirs, variables)
    for (path, ours_leaf), theirs_leaf in zip(
        jax.tree_util.tree_leaves_with_path(variables), jax.tree.leaves(expected), strict=True
    ):
        assert ours_leaf.dtype == np.float64, path
        assert kw.relative_error(ours_leaf, theirs_leaf) <= 1e-6, path


def _variables(model):
    return model.trainable_variables, model.non_trainable_variables


def _switch_dropout_off(model):
    for layer in model.layers:
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0


def _cross_entropy(logits, labels):
    return -jnp.mean(jnp.sum(labels * jax.nn.log_softmax(logits), axis=-1))


def _train_keras(model, images, labels, learning_rate):
    """Three steps of plain gradient descent, written back into the model."""

    def loss(trained, fixed):
        logits, fixed = model.stateless_call(trained, fixed, images, training=True)
        return _cross_entropy(logits, labels), fixed

    @jax.jit
    def step(trained, fixed):
        grads, fixed = jax.grad(loss, has_aux=True)(trained, fixed)
        return [v - learning_rate * g for v, g in zip(trained, grads, strict=True)], fixed

    trained, fixed = ([v.value for v in group] for group in _variables(model))
    for _ in range(3):
        trained, fixed = step(trained, fixed)
    for variables, values in zip(_variables(model), (trained, fixed), strict=True):
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)


def _train_ours(model, variables, images, labels, learning_rate):
    def loss(params, batch_stats):
        logits, updated = model.apply(
            {"params": params, "batch_stats": batch_stats},
            images,
            train=True,
            mutable=["batch_stats"],
        )
        return _cross_entropy(logits, labels), updated["batch_stats"]

    @jax.jit
    def step(params, batch_stats):
        grads, batch_stats = jax.grad(loss, has_aux=True)(params, batch_stats)
        return jax.tree.map(lambda p, g: p - learning_rate * g, params, grads), batch_stats

    params, batch_stats = variables["params"], variables["batch_stats"]
    for _ in range(3):
        params, batch_stats = step(params, batch_stats)
    return {"params": params, "batch_stats": batch_stats}
