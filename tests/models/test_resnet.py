"""ResNet against Keras layers, and as a module: draws, rematerialisation, initial values."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import keras
import keras_weights as kw
import numpy as np
import pytest

from jaxcls.models.registry import create_model, model_names
from jaxcls.models.resnet import ResNet, ResNetSpec, block_names

RESNETS = [name for name in model_names() if name.startswith("resnet")]
# With 1000 classes. Source: torchvision's model cards.
COUNTS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
}
BATCH, SIZE, CLASSES = 8, 16, 5
each_block_type = pytest.mark.parametrize("bottleneck", [False, True])


# --- The whole networks --------------------------------------------------------------------------


def randomise(shapes: Any, *, seed: int) -> Any:
    """Gives every variable, moving statistics too, a random value of a plausible size."""
    rng = np.random.default_rng(seed)

    def value(path: Any, leaf: Any) -> np.ndarray:
        name, shape = path[-1].key, leaf.shape
        if name in ("scale", "var"):
            return rng.uniform(0.5, 1.5, shape).astype(np.float32)
        size = 0.1 if name in ("bias", "mean") else np.prod(shape[:-1]) ** -0.5
        return rng.normal(0, size, shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(value, shapes)


def keras_resnet(repeats: tuple[int, ...], *, bottleneck: bool, size: int) -> Any:
    """ResNet v1.5 of Keras layers, named as our modules; returns features and logits."""
    layers = keras.layers

    def conv_and_norm(x: Any, name: str, filters: int, kernel_size: int, stride: int = 1) -> Any:
        x = layers.ZeroPadding2D(kernel_size // 2)(x)
        x = layers.Conv2D(
            filters,
            kernel_size,
            stride,
            use_bias=False,
            kernel_initializer="zeros",
            name=name.format("conv"),
        )(x)
        return layers.BatchNormalization(epsilon=1e-5, name=name.format("bn"))(x)

    def block(x: Any, name: str, filters: int, stride: int, *, first: bool) -> Any:
        if bottleneck:
            y = layers.ReLU()(conv_and_norm(x, f"{name}.{{}}1", filters, 1))
            y = layers.ReLU()(conv_and_norm(y, f"{name}.{{}}2", filters, 3, stride))
            filters *= 4
            y = conv_and_norm(y, f"{name}.{{}}3", filters, 1)
        else:
            y = layers.ReLU()(conv_and_norm(x, f"{name}.{{}}1", filters, 3, stride))
            y = conv_and_norm(y, f"{name}.{{}}2", filters, 3)
        if first and (bottleneck or stride > 1):
            x = conv_and_norm(x, f"{name}.downsample_{{}}", filters, 1, stride)
        return layers.ReLU()(layers.Add()([x, y]))

    images = layers.Input((size, size, 3))
    x = layers.ReLU()(conv_and_norm(images, "stem_{}", 64, 7, 2))
    x = layers.MaxPooling2D(3, 2)(layers.ZeroPadding2D(1)(x))  # x is not below 0
    for stage, count in enumerate(repeats):
        for repeat in range(count):
            x = block(
                x,
                f"block{stage + 1}{chr(ord('a') + repeat)}",
                (64, 128, 256, 512)[stage],
                2 if stage > 0 and repeat == 0 else 1,
                first=repeat == 0,
            )
    features = layers.GlobalAveragePooling2D()(x)
    logits = layers.Dense(1000, kernel_initializer="zeros", name="classifier")(features)
    return keras.Model(images, [features, logits])


KERAS_VARIABLES = {
    "kernel": ("params", "kernel"),
    "bias": ("params", "bias"),
    "gamma": ("params", "scale"),
    "beta": ("params", "bias"),
    "moving_mean": ("batch_stats", "mean"),
    "moving_variance": ("batch_stats", "var"),
}


def assign(model: Any, variables: Any) -> None:
    """Gives a Keras model our variables; each is used once."""
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    values = {tuple(key.key for key in path): leaf for path, leaf in leaves}
    for variable in model.variables:
        layer, name = variable.path.split("/")
        collection, ours = KERAS_VARIABLES[name]
        variable.assign(values.pop((collection, *layer.split("."), ours)))
    assert not values, f"not used: {sorted(values)}"


@pytest.mark.parametrize(
    ("name", "repeats", "bottleneck", "size"),
    [
        ("resnet18", (2, 2, 2, 2), False, 33),
        pytest.param("resnet50", (3, 4, 6, 3), True, 64, marks=pytest.mark.slow),
    ],
)
def test_features_and_logits_equal_keras(
    name: str, repeats: tuple[int, ...], bottleneck: bool, size: int
) -> None:
    ours = create_model(name, num_classes=1000)
    variables = randomise(kw.shapes_of(ours, size), seed=1)
    theirs = keras_resnet(repeats, bottleneck=bottleneck, size=size)
    assign(theirs, variables)
    images = np.random.default_rng(2).normal(size=(2, size, size, 3)).astype(np.float32)
    trained, fixed = (
        [variable.value for variable in group]
        for group in (theirs.trainable_variables, theirs.non_trainable_variables)
    )
    features, logits = jax.jit(
        lambda x: theirs.stateless_call(trained, fixed, x, training=False)[0]
    )(images)
    assert kw.relative_error(jax.jit(ours.apply)(variables, images), logits) <= 1e-5
    pooled = jax.jit(partial(ours.apply, features=True))(variables, images)
    assert kw.relative_error(pooled, features) <= 1e-5


def test_every_resnet_is_counted() -> None:
    assert set(RESNETS) == set(COUNTS)


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_and_layers(name: str) -> None:
    model = create_model(name, num_classes=1000)
    params = kw.shapes_of(model, 32)["params"]
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == COUNTS[name]
    modules = [module for layer in model.layers() for module in layer]
    assert len(modules) == len(set(modules))
    assert set(modules) == set(params)
    assert model.layers()[0] == ("stem_conv", "stem_bn")
    assert model.layers()[1] == ("block1a",)
    assert model.layers()[-1] == ("classifier",)


# --- The module, with two small stages -----------------------------------------------------------


def _small(*, bottleneck: bool = True, **fields: Any) -> ResNet:
    spec = ResNetSpec(name="small", repeats=(2, 2), bottleneck=bottleneck)
    return ResNet(spec=spec, num_classes=CLASSES, **fields)


@pytest.fixture(scope="module")
def images() -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=(BATCH, SIZE, SIZE, 3)), jnp.float32)


@pytest.fixture(scope="module")
def variables(images: jax.Array) -> Any:
    """Random ones: in the initial ones the residual branches are 0."""
    return randomise(kw.shapes_of(_small(), SIZE), seed=3)


def _train(
    model: ResNet, variables: Any, images: jax.Array, positions: jax.Array | None = None
) -> jax.Array:
    return model.apply(
        variables,
        images,
        train=True,
        positions=positions,
        rngs={"dropout": jax.random.key(1)},
        mutable=["batch_stats"],
    )[0]


def test_block_names() -> None:
    spec: Any = create_model("resnet152", num_classes=2).spec
    names = [name for name, _, _ in block_names(spec)]
    assert names[:4] == ["block1a", "block1b", "block1c", "block2a"]
    assert {"block3z", "block3aa", "block3aj", "block4c"} <= set(names)
    assert len(set(names)) == spec.num_blocks == 3 + 8 + 36 + 3


@each_block_type
def test_initial_values(images: jax.Array, bottleneck: bool) -> None:
    """Each block passes on its shortcut: the scale of its last batch norm is 0, and others 1."""
    made = _small(bottleneck=bottleneck).init(jax.random.key(0), images)
    assert made["params"].keys() == {
        "stem_conv", "stem_bn", "block1a", "block1b", "block2a", "block2b", "classifier",
    }  # fmt: skip
    last = "bn3" if bottleneck else "bn2"
    scales = {
        (path[0].key, path[-2].key): np.unique(leaf).tolist()
        for path, leaf in jax.tree_util.tree_leaves_with_path(made["params"])
        if path[-1].key == "scale"
    }
    assert len(scales) == {False: 1 + 4 * 2 + 1, True: 1 + 4 * 3 + 2}[bottleneck]
    for (block, norm), values in scales.items():
        assert values == [0 if norm == last else 1], (block, norm)
    assert np.std(made["params"]["stem_conv"]["kernel"]) == pytest.approx(
        (2 / (49 * 64)) ** 0.5, rel=0.05
    )


@each_block_type
def test_a_step_from_the_initial_values_is_finite_and_lowers_the_loss(
    images: jax.Array, bottleneck: bool
) -> None:
    model = _small(bottleneck=bottleneck, dropout=0.0, drop_path=0.0)
    made = model.init(jax.random.key(0), images)
    labels = jnp.arange(BATCH) % CLASSES

    @jax.jit
    @jax.value_and_grad
    def loss_and_grads(params: Any) -> jax.Array:
        logits = _train(model, {**made, "params": params}, images)
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(BATCH), labels])

    loss, grads = loss_and_grads(made["params"])
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(grads))
    assert np.any(grads["block1a"]["bn3" if bottleneck else "bn2"]["scale"])
    params = jax.tree.map(lambda param, grad: param - 0.01 * grad, made["params"], grads)
    assert float(loss_and_grads(params)[0]) < float(loss)


def test_draws_depend_on_positions_alone(images: jax.Array, variables: Any) -> None:
    """In groups of 4 examples, the two halves give the rows of the whole."""
    model = _small(batch_norm=4, dropout=0.5, drop_path=0.9)
    apply = jax.jit(lambda x, positions: _train(model, variables, x, positions))
    whole = np.asarray(apply(images, jnp.arange(8)))
    halves = [apply(images[rows], jnp.arange(8)[rows]) for rows in (slice(0, 4), slice(4, 8))]
    np.testing.assert_allclose(whole, np.concatenate(halves), rtol=1e-5, atol=1e-5)
    assert np.max(np.abs(whole - apply(images, jnp.arange(8) + 8))) > 1e-2


def test_only_training_drops_paths(images: jax.Array, variables: Any) -> None:
    plain, dropping = (_small(dropout=0.0, drop_path=rate) for rate in (0.0, 0.9))
    np.testing.assert_array_equal(
        np.asarray(plain.apply(variables, images)), np.asarray(dropping.apply(variables, images))
    )
    trained = (np.asarray(_train(model, variables, images)) for model in (plain, dropping))
    assert np.max(np.abs(np.subtract(*trained))) > 1e-2


@pytest.mark.long
def test_rematerialisation_gives_the_same_gradients(images: jax.Array, variables: Any) -> None:
    def gradients(model: ResNet) -> Any:
        return jax.jit(
            jax.grad(
                lambda params: jnp.sum(_train(model, {**variables, "params": params}, images) ** 2)
            )
        )(variables["params"])

    plain, remat = gradients(_small()), gradients(_small(remat=True))
    for ours, theirs in zip(jax.tree.leaves(remat), jax.tree.leaves(plain), strict=True):
        assert kw.relative_error(ours, theirs) < 1e-3


def test_bfloat16_keeps_float32_parameters_and_logits(images: jax.Array, variables: Any) -> None:
    model = _small(compute_dtype=jnp.dtype("bfloat16"))
    made = jax.eval_shape(model.init, jax.random.key(0), images)
    assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {jnp.dtype("float32")}
    logits: Any = model.apply(variables, images)
    assert logits.dtype == jnp.float32
    assert kw.relative_error(logits, _small().apply(variables, images)) < 0.03
