"""Freezing, layer-wise decay and rates by pattern, on the tiny network."""

import dataclasses
from typing import Any

import jax
import numpy as np
import optax
import pytest
from test_step import changed, make_training, take_steps

from jaxcls.config import Config, OptimizerConfig
from jaxcls.config.decoding import ConfigError
from jaxcls.training.build import Training
from jaxcls.training.optimizers import make_optimizer
from jaxcls.training.parameter_rates import make_training_optimizer, rate_factors, unfreeze_steps

BACKBONE = "(stem|block|head).*"


@pytest.fixture(scope="module")
def config(tiny_config: Config) -> Config:
    """A constant rate, and everything that moves parameters: momentum, decay, averages."""
    schedule = dataclasses.replace(tiny_config.schedule, name="constant", warmup=0.0)
    return dataclasses.replace(tiny_config, schedule=schedule)


def named(tree: Any) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(tree))
    return {"/".join(part.key for part in path): np.asarray(leaf) for path, leaf in leaves}


def moved(training: Training, steps: range) -> tuple[Any, set[str]]:
    """The state after some steps, and the names of the parameters that are not what they were."""
    state = training.init()
    before = named(state.params)
    state, _ = take_steps(training, state, steps)
    after = named(state.params)
    return state, {name for name in before if not np.array_equal(before[name], after[name])}


def test_what_is_frozen_keeps_every_bit_and_needs_no_memory_or_gradient(config: Config) -> None:
    optimizer = {"name": "adamw", "options": {}, "weight_decay": 0.1}
    free = make_training(changed(config, "optimizer", **optimizer), devices=1)
    probe = make_training(
        changed(config, "optimizer", **optimizer, freeze={BACKBONE: 1.0}), devices=1
    )
    state, names = moved(probe, range(3))
    assert names == {"classifier/kernel", "classifier/bias"}
    assert moved(free, range(3))[1] == named(state.params).keys()
    kept = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim)
    assert kept == 2 * sum(leaf.size for leaf in jax.tree.leaves(state.params["classifier"]))
    flops = [t.compile_step().program.cost_analysis()["flops"] for t in (probe, free)]
    assert flops[0] < 0.6 * flops[1]


def test_gradual_unfreezing_follows_the_share_of_the_training(config: Config) -> None:
    freeze = {"stem.*": 1.0, "block[12].*": 0.5, "block3.*|head.*": 0.25}  # of 12 steps
    config = changed(changed(config, "optimizer", freeze=freeze), "model", name="all_blocks")
    training = make_training(config, devices=1)
    modules = [{name.split("/")[0][:6] for name in moved(training, range(n))[1]} for n in (3, 6, 7)]
    assert modules[0] == {"classi"}
    assert modules[1] == {"classi", "head_c", "head_b", "block3"}
    assert modules[2] == modules[1] | {"block1", "block2"}


VALUES = {"a": [[1.0, -2.0]], "b": [[3.0, 0.5]], "c": [[1.0]]}
PARAMS: Any = {key: np.array(value, np.float32) for key, value in VALUES.items()}
GRADS: Any = jax.tree.map(lambda leaf: 0.3 * leaf - 0.1, PARAMS)


def updates_of(optimizer: optax.GradientTransformation, num_steps: int) -> list[Any]:
    """The updates of some steps with the same gradients and parameters."""
    state, updates = optimizer.init(PARAMS), []
    for _ in range(num_steps):
        update, state = optimizer.update(GRADS, state, PARAMS)
        updates.append(update)
    return updates


@pytest.mark.parametrize("name", ["sgd", "adamw", "rmsprop"])
def test_a_rate_scales_the_update_and_its_decay(name: str) -> None:
    optimizer = OptimizerConfig(name=name, weight_decay=0.1)
    factors = {"a": 0.25, "b": 1.0, "c": 0.0}
    (expected,) = updates_of(make_optimizer(optimizer, lambda _: 0.5), 1)
    scaled = make_training_optimizer(
        optimizer, lambda _: 0.5, unfreeze_at=dict.fromkeys(PARAMS, 0), factors=factors, num_steps=9
    )
    (updates,) = updates_of(scaled, 1)
    for key, factor in factors.items():
        np.testing.assert_allclose(updates[key], factor * expected[key], rtol=1e-6)


def test_what_begins_late_begins_afresh_at_the_rate_of_its_step() -> None:
    """Adam's averages and their correction start when the parameter does; the schedule does not."""
    optimizer = OptimizerConfig(name="adamw", weight_decay=0.1, clip_norm=0.2)
    first = {"a": 0, "b": 3, "c": 9}
    late = make_training_optimizer(
        optimizer,
        lambda step: 0.1 * (step + 1),
        unfreeze_at=first,
        factors=dict.fromkeys(PARAMS, 1.0),
        num_steps=9,
    )
    fresh = make_optimizer(optimizer, lambda step: 0.1 * (step + 1))
    fresh_late = make_optimizer(optimizer, lambda step: 0.1 * (step + 4))
    updates = updates_of(late, 6)
    for step, expected in enumerate(updates_of(fresh, 6)):
        np.testing.assert_allclose(updates[step]["a"], expected["a"], rtol=1e-5)
        assert not np.any(updates[step]["c"])
    for step, expected in enumerate(updates_of(fresh_late, 3)):
        assert not np.any(updates[step]["b"])
        np.testing.assert_allclose(updates[3 + step]["b"], expected["b"], rtol=1e-5)


def test_layer_decay_falls_from_the_classifier_to_the_stem(config: Config) -> None:
    training = make_training(changed(config, "model", name="all_blocks"), devices=1)
    params, layers = training.abstract_state().params, training.model.layers()
    optimizer = OptimizerConfig(layer_decay=0.5, rates={"block2a.*": 10.0})
    factors = {
        name.split("/")[0]: factor
        for name, factor in named(rate_factors(optimizer, params, layers)).items()
    }
    assert factors == {
        "classifier": 1,
        "head_conv": 0.5, "head_bn": 0.5,
        "block3b": 0.5**2, "block3a": 0.5**3,
        "block2a": 10 * 0.5**4,
        "block1a": 0.5**5,
        "stem_conv": 0.5**6, "stem_bn": 0.5**6,
    }  # fmt: skip


def test_the_first_pattern_that_matches_counts(config: Config) -> None:
    params = make_training(config, devices=1).abstract_state().params
    freeze = {"block1a/.*bn/.*": 0.5, "block1a.*": 1.0}
    first = named(unfreeze_steps(OptimizerConfig(freeze=freeze), params, num_steps=12))
    assert first["block1a/project_conv/kernel"] == 12
    assert first["block1a/project_bn/scale"] == 6
    assert first["classifier/bias"] == 0


def test_something_must_be_left_to_train(config: Config) -> None:
    with pytest.raises(ConfigError, match=r"optimizer\.freeze: freezes every parameter"):
        make_training(changed(config, "optimizer", freeze={".*": 1.0}), devices=1)


def test_the_fields_reach_the_training(config: Config) -> None:
    """From the config to the step: one short training with all of them."""
    config = changed(config, "optimizer", rates={"stem.*": 0.0}, layer_decay=0.9, ema_decay=0.0)
    config = changed(config, "model", freeze_batch_norm=True, head_scale=0.0, pooling="max")
    training = make_training(config, devices=1)
    model: Any = training.model
    assert model.pooling == "max"
    before = jax.device_get(training.init())
    assert not before.params["classifier"]["kernel"].any()
    state, names = moved(training, range(6))
    assert {name.split("_")[0] for name in named(before.params).keys() - names} == {"stem"}
    jax.tree.map(np.testing.assert_array_equal, state.batch_stats, before.batch_stats)


@pytest.mark.parametrize("field", ["freeze", "rates"])
def test_a_pattern_that_matches_nothing_is_an_error(config: Config, field: str) -> None:
    with pytest.raises(ConfigError, match=rf"optimizer\.{field}: 'blok1a\.\*'.*'block1a\.\*'"):
        make_training(changed(config, "optimizer", **{field: {"blok1a.*": 0.5}}), devices=1)
    with pytest.raises(ConfigError, match=r"'classifier' matches no parameter"):  # not a whole name
        make_training(changed(config, "optimizer", **{field: {"classifier": 0.5}}), devices=1)
