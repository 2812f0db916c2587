"""The module as a whole: draws, rematerialisation, compute dtype, initial values.

A two-stage model with both kinds of block stands for the large ones: it compiles in seconds.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcls.models.efficientnet import EfficientNet, block_names
from jaxcls.models.registry import create_model, model_spec

BATCH, SIZE, CLASSES = 8, 16, 5


def _tiny(**fields) -> EfficientNet:
    spec: Any = model_spec("efficientnetv2_b0")
    blocks = tuple(
        dataclasses.replace(spec.blocks[index], filters=8, repeats=2) for index in (1, 3)
    )
    spec = dataclasses.replace(spec, stem_filters=8, blocks=blocks, head_filters=16)
    return EfficientNet(spec=spec, num_classes=CLASSES, **fields)


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.random.default_rng(0).normal(size=(BATCH, SIZE, SIZE, 3)), jnp.float32)


@pytest.fixture(scope="module")
def variables(images):
    return _tiny().init(jax.random.key(0), images)


def _train(model, variables, images, positions=None, *, key=1):
    return model.apply(
        variables,
        images,
        train=True,
        positions=positions,
        rngs={"dropout": jax.random.key(key)},
        mutable=["batch_stats"],
    )[0]


def test_draws_depend_on_positions_alone(images, variables):
    """In groups of 4 examples, the two halves give the rows of the whole, in any order."""
    model = _tiny(batch_norm=4, dropout=0.5, drop_path=0.9)
    apply = jax.jit(lambda x, positions: _train(model, variables, x, positions))
    whole = apply(images, jnp.arange(8))
    np.testing.assert_array_equal(whole, jax.jit(lambda x: _train(model, variables, x))(images))
    halves = [apply(images[rows], jnp.arange(8)[rows]) for rows in (slice(0, 4), slice(4, 8))]
    np.testing.assert_allclose(whole, np.concatenate(halves), rtol=1e-5, atol=1e-6)
    moved = apply(images, jnp.arange(8) + 8)
    assert np.max(np.abs(whole - moved)) > 1e-2


def test_draws_differ_between_keys_blocks_and_examples():
    model = _tiny()
    draw = nn_uniforms(model, key=1)
    assert draw.shape == (BATCH, model.spec.num_blocks + model.spec.head_filters)
    assert len(np.unique(draw)) == draw.size
    assert not np.any(np.isin(draw, nn_uniforms(model, key=2)))


def nn_uniforms(model, *, key):
    method = lambda module: module.uniforms(BATCH, None)  # noqa: E731
    return np.asarray(model.apply({}, rngs={"dropout": jax.random.key(key)}, method=method))


def test_no_rng_is_needed_without_dropout(images, variables):
    model = _tiny(dropout=0.0, drop_path=0.0)
    logits, _ = model.apply(variables, images, train=True, mutable=["batch_stats"])
    assert logits.shape == (BATCH, CLASSES)


def _gradients(model, variables, images):
    def loss(params):
        logits = _train(model, {**variables, "params": params}, images)
        return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - logits[:, 0])

    return jax.jit(jax.value_and_grad(loss))(variables["params"])


@pytest.fixture(scope="module")
def gradients(images, variables):
    return _gradients(_tiny(), variables, images)


def test_rematerialisation_gives_the_same_gradients(images, variables, gradients):
    remat = _gradients(_tiny(remat=True), variables, images)
    for ours, plain in zip(jax.tree.leaves(remat), jax.tree.leaves(gradients), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-3, atol=1e-5)


def test_bfloat16_keeps_float32_parameters_and_logits(images, variables, gradients):
    model = _tiny(compute_dtype=jnp.dtype("bfloat16"))
    made = jax.eval_shape(model.init, jax.random.key(0), images)
    assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {jnp.dtype("float32")}
    logits: Any = model.apply(variables, images)
    assert logits.dtype == jnp.float32
    exact: Any = _tiny().apply(variables, images)
    np.testing.assert_allclose(logits, exact, atol=0.03 * float(jnp.max(jnp.abs(exact))))
    loss, _ = _gradients(model, variables, images)
    assert loss == pytest.approx(float(gradients[0]), rel=0.03)


def test_frozen_batch_norm_keeps_its_statistics_and_trains_scale_and_bias(images, variables):
    """In training it computes what evaluation does, and that reaches every parameter's gradient."""
    model = _tiny(dropout=0.0, drop_path=0.0, freeze_batch_norm=True)
    rng = np.random.default_rng(5)
    stats = jax.tree.map(
        lambda leaf: jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), leaf.dtype),
        variables["batch_stats"],
    )
    variables = {**variables, "batch_stats": stats}

    def loss(params, train):
        logits, updated = model.apply(
            {**variables, "params": params}, images, train=train, mutable=["batch_stats"]
        )
        return jnp.sum(jnp.asarray(logits) ** 2), updated["batch_stats"]

    both = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)
    (grads, kept), (expected, _) = (both(variables["params"], train) for train in (True, False))
    jax.tree.map(np.testing.assert_array_equal, kept, stats)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), grads, expected)
    for name in ("scale", "bias"):
        assert np.any(grads["block1a"]["project_bn"][name])


@pytest.mark.parametrize("pooling", ["average", "max"])
def test_features_are_what_the_classifier_reads(images, variables, pooling):
    logits: Any = _tiny(pooling=pooling).apply(variables, images)
    features: Any = _tiny(pooling=pooling).apply(variables, images, features=True)
    assert features.shape == (BATCH, 16)
    assert features.dtype == jnp.float32
    classifier = variables["params"]["classifier"]
    expected = features @ classifier["kernel"] + classifier["bias"]
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
    headless = dataclasses.replace(_tiny(pooling=pooling), num_classes=0)
    params = {name: leaf for name, leaf in variables["params"].items() if name != "classifier"}
    alone: Any = headless.apply({**variables, "params": params}, images)
    np.testing.assert_allclose(alone, features, rtol=1e-6)
    made = jax.eval_shape(headless.init, jax.random.key(0), images)["params"]
    assert jax.tree.structure(made) == jax.tree.structure(params)


def test_pooling(images, variables):
    """On a picture of one last pixel both are the same; on more, the largest is above the mean."""
    pooled = [
        _tiny(pooling=pooling).apply(variables, images[:, :size, :size], features=True)
        for size in (4, 16)
        for pooling in ("average", "max")
    ]
    small_mean, small_max, mean, largest = (np.asarray(array) for array in pooled)
    np.testing.assert_array_equal(small_mean, small_max)
    assert np.all(largest > mean)


@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_head_scale_scales_the_new_classifier_alone(images, variables, scale):
    made = _tiny(head_scale=scale).init(jax.random.key(0), images)
    classifier = made["params"].pop("classifier")
    whole = variables["params"]["classifier"]
    np.testing.assert_allclose(classifier["kernel"], scale * whole["kernel"], rtol=1e-5, atol=1e-7)
    others = {name: leaf for name, leaf in variables["params"].items() if name != "classifier"}
    jax.tree.map(np.testing.assert_array_equal, made["params"], others)


def test_initial_values():
    """Variances of the reference initialisers; scales 1, biases 0."""
    model = create_model("efficientnetv2_b0", num_classes=1000)
    variables = jax.jit(lambda key: model.init(key, jnp.zeros((1, 32, 32, 3))))(jax.random.key(0))
    params = variables["params"]
    for kernel, fan_out in (
        (params["stem_conv"]["kernel"], 9 * 32),
        (params["block2b"]["expand_conv"]["kernel"], 9 * 128),
        (params["block6b"]["depthwise_conv"]["kernel"], 9),
        (params["block6b"]["se"]["expand"]["kernel"], 1152),
        (params["head_conv"]["kernel"], 1280),
    ):
        assert np.std(kernel) == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
    classifier = params["classifier"]["kernel"]
    assert np.max(np.abs(classifier)) == pytest.approx(1140**-0.5, rel=0.01)
    assert np.all(params["stem_bn"]["scale"] == 1)
    assert np.all(params["block6b"]["se"]["expand"]["bias"] == 0)
    assert np.all(variables["batch_stats"]["stem_bn"]["var"] == 1)


def test_block_names():
    spec: Any = model_spec("efficientnetv2_xl")
    names = [name for name, _, _ in block_names(spec)]
    assert names[:5] == ["block1a", "block1b", "block1c", "block1d", "block2a"]
    assert "block6z" in names
    assert "block6aa" in names
    assert len(set(names)) == spec.num_blocks


def test_drop_path_keeps_the_expectation_and_its_rate_rises_from_block_to_block() -> None:
    network: Any = create_model("tiny", num_classes=2, drop_path=0.4, dropout=0.0)
    uniforms = jax.random.uniform(jax.random.key(0), (20_000, 64))
    first, *others = network.drop_path_factors(uniforms, 0.0)
    blocks = 1 + len(others)
    assert first is None
    for index, of in enumerate(others, start=1):
        rate, values = 0.4 * index / blocks, np.asarray(of)
        np.testing.assert_allclose(np.unique(values), [0, 1 / (1 - rate)], rtol=1e-6)
        assert np.mean(values == 0) == pytest.approx(rate, abs=0.01)
        assert np.mean(values) == pytest.approx(1, abs=0.02)
    assert network.drop_path_factors(None, 0.0) == [None] * blocks
