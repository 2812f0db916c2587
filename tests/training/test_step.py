import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from jaxcls.config import Config
from jaxcls.config.augment import (
    CenterCrop,
    Mix,
    RandAugment,
    RandomCropAndResize,
    RandomErasing,
    RandomFlip,
)
from jaxcls.distributed.mesh import make_mesh, split_by_example
from jaxcls.training.build import Training, build_training

NUM_CLASSES = 10


_trainings: dict[tuple[str, int, bool], Training] = {}


def make_training(config: Config, *, devices: int) -> Training:
    """Made once for each config, so that its step is compiled once."""
    key = repr(config), devices, jax.config.read("jax_enable_x64")
    if key not in _trainings:
        mesh = make_mesh(jax.devices()[:devices])
        _trainings[key] = build_training(
            config, num_classes=NUM_CLASSES, num_examples=1000, mesh=mesh
        )
    return _trainings[key]


def random_batch(training: Training, step: int) -> dict[str, Array]:
    """The same examples at a step for any mesh."""
    generator = np.random.default_rng(step)
    data = training.config.data
    shape = (data.batch_size, data.canvas_size, data.canvas_size, 3)
    sizes = generator.integers(data.canvas_size // 2, data.canvas_size + 1, (data.batch_size, 2))
    batch = {
        "images": generator.integers(256, size=shape, dtype=np.uint8),
        "sizes": sizes.astype(np.int32),
        "labels": generator.integers(NUM_CLASSES, size=data.batch_size, dtype=np.int32),
    }
    return jax.device_put(batch, split_by_example(training.mesh))


def take_steps(training: Training, state: Any, steps: range) -> tuple[Any, list[dict[str, Array]]]:
    metrics = []
    for step in steps:
        state, step_metrics = training.steps[training.config.data.image_size](
            state, random_batch(training, step)
        )
        metrics.append(step_metrics)
    return state, jax.device_get(metrics)


def move(training: Training, state: Any) -> Any:
    """A copy of a state on another mesh; a step donates what it is given."""
    return jax.device_put(
        jax.device_get(state), jax.tree.map(lambda x: x.sharding, training.abstract_state())
    )


def distance(tree: Any, other: Any) -> float:
    """Norm of the difference relative to the norm of the second."""
    flat, flat_other = (
        np.concatenate([np.ravel(np.asarray(x, np.float64)) for x in jax.tree.leaves(t)])
        for t in (tree, other)
    )
    return float(np.linalg.norm(flat - flat_other) / np.linalg.norm(flat_other))


def changed(config: Config, section: str, **values: Any) -> Config:
    part = dataclasses.replace(getattr(config, section), **values)
    return dataclasses.replace(config, **{section: part})


def augmented(config: Config) -> Config:
    """With every kind of augmentation, of which one mixes images and labels."""
    change = RandAugment(ops=("Equalize", "ShearX"), num_ops=1)
    noise = RandomErasing(probability=0.5)
    augment = (RandomFlip(), RandomCropAndResize(), change, noise, Mix(group_size=2))
    return dataclasses.replace(config, augment=augment)


@pytest.fixture(
    scope="module",
    params=[
        "tiny",
        *(
            pytest.param(name, marks=pytest.mark.long)
            for name in ("all_blocks", "tiny_resnet", "efficientnetv2_b0")
        ),
    ],
)
def float32_pair(request: pytest.FixtureRequest, tiny_config: Config) -> tuple[Training, Training]:
    config = changed(tiny_config, "model", name=request.param)
    return make_training(config, devices=1), make_training(config, devices=8)


@pytest.mark.parametrize("start", [0, 10])
def test_one_step_on_eight_devices_equals_one_device(
    float32_pair: tuple[Training, Training], start: int
) -> None:
    """From identical states. (Float32 curves part by rounding alone, whatever the code.)"""
    single, sharded = float32_pair
    before, _ = take_steps(single, single.init(), range(start))
    before = jax.device_get(before)
    one, [metrics_one] = take_steps(single, move(single, before), range(start, start + 1))
    eight, [metrics_eight] = take_steps(sharded, move(sharded, before), range(start, start + 1))

    np.testing.assert_allclose(metrics_eight["loss"], metrics_one["loss"], rtol=1e-5)
    assert metrics_eight["top1"] == metrics_one["top1"]

    def update(after: Any) -> Any:
        return jax.tree.map(np.subtract, jax.device_get(after.params), before.params)

    if start:  # at step 0 the warmup's learning rate is 0
        assert distance(update(eight), update(one)) < 1e-3
    moments = [jax.device_get(state.opt_state) for state in (eight, one)]
    assert distance(*moments) < 1e-3
    statistics = [jax.device_get(state.batch_stats) for state in (eight, one)]
    assert distance(*statistics) < 1e-5


@pytest.mark.long  # test_pipeline.py compares augmented images bit by bit
def test_one_augmented_step_on_eight_devices_equals_two(tiny_config: Config) -> None:
    config = changed(augmented(tiny_config), "model", batch_norm=4)
    few, many = (make_training(config, devices=devices) for devices in (2, 8))
    start = jax.device_get(few.init())
    expected, [expected_metrics] = take_steps(few, move(few, start), range(1))
    actual, [metrics] = take_steps(many, move(many, start), range(1))
    np.testing.assert_allclose(metrics["loss"], expected_metrics["loss"], rtol=1e-5)
    assert distance(actual.batch_stats, expected.batch_stats) < 1e-5
    assert distance(actual.opt_state, expected.opt_state) < 1e-3


@pytest.mark.parametrize("batch_norm", ["global", pytest.param(4, marks=pytest.mark.long)])
def test_twenty_float64_steps_on_eight_devices_equal_one_device(
    tiny_config: Config, batch_norm: Any
) -> None:
    with jax.enable_x64(True):
        config = dataclasses.replace(tiny_config, compute_dtype="float64", num_steps=20)
        config = changed(config, "model", name="all_blocks", batch_norm=batch_norm)
        states = {}
        for devices in (1, 8):
            training = make_training(config, devices=devices)
            state, _ = take_steps(training, training.init(), range(20))
            states[devices] = jax.device_get(state)
    assert states[1].params["stem_conv"]["kernel"].dtype == np.float64
    assert distance(states[8].params, states[1].params) < 1e-8
    assert distance(states[8].batch_stats, states[1].batch_stats) < 1e-8
    assert distance(states[8].ema, states[1].ema) < 1e-8


@pytest.mark.parametrize(
    ("name", "devices", "mixing"),
    [
        ("tiny", 1, False),
        pytest.param("all_blocks", 1, False, marks=pytest.mark.long),
        pytest.param("tiny_resnet", 1, False, marks=pytest.mark.long),
        pytest.param("all_blocks", 2, True, marks=pytest.mark.long),
    ],
)
def test_micro_batches_equal_the_whole_batch_with_grouped_batch_norm(
    tiny_config: Config, name: str, devices: int, mixing: bool
) -> None:
    """In float64, so that only a fault can tell them apart; draws and pairs are the same, too."""
    config = augmented(tiny_config) if mixing else tiny_config
    config = changed(config, "model", name=name, batch_norm=4)
    config = dataclasses.replace(config, compute_dtype="float64", num_steps=20)
    with jax.enable_x64(True):
        whole = make_training(config, devices=devices)
        cut = make_training(changed(config, "optimizer", micro_batches=4), devices=devices)
        start, _ = take_steps(whole, whole.init(), range(2))
        start = jax.device_get(start)
        expected, [expected_metrics] = take_steps(whole, move(whole, start), range(2, 3))
        actual, [actual_metrics] = take_steps(cut, move(cut, start), range(2, 3))
        expected, actual = jax.device_get((expected, actual))
    np.testing.assert_allclose(actual_metrics["loss"], expected_metrics["loss"], rtol=1e-10)
    for name in ("params", "batch_stats", "opt_state", "ema"):
        assert distance(getattr(actual, name), getattr(expected, name)) < 1e-10


def test_a_step_follows_from_seed_and_step_alone(tiny_config: Config) -> None:
    training = make_training(tiny_config, devices=1)
    first, metrics = take_steps(training, training.init(), range(3))
    second, metrics_again = take_steps(training, training.init(), range(3))
    assert distance(first, second) == 0
    assert metrics == metrics_again
    other = make_training(dataclasses.replace(tiny_config, seed=1), devices=1)
    assert distance(other.init().params, training.init().params) > 0.1


def test_the_learning_rate_is_the_schedules(tiny_config: Config) -> None:
    training = make_training(tiny_config, devices=1)
    _, metrics = take_steps(training, training.init(), range(3))
    expected = np.array([training.plan.learning_rate(step) for step in range(3)])
    np.testing.assert_allclose([m["learning_rate"] for m in metrics], expected, rtol=1e-6)


def count_all_reduces(text: str) -> int:
    return len(re.findall(r" all-reduce(?:-start)?\(", text))


def test_grouped_batch_norm_needs_one_collective_and_gathers_no_image(
    tiny_config: Config,
) -> None:
    config = changed(tiny_config, "model", name="all_blocks")
    text = {
        batch_norm: make_training(changed(config, "model", batch_norm=batch_norm), devices=8)
        .compile_step()
        .program.as_text()
        for batch_norm in (4, "global")
    }
    assert count_all_reduces(text[4]) == 1  # gradients, statistics and metrics together
    assert count_all_reduces(text["global"]) > 10
    for kind in ("all-gather", "all-to-all", "collective-permute"):
        assert kind not in text[4]


def test_micro_batches_move_no_image(tiny_config: Config) -> None:
    config = changed(augmented(tiny_config), "model", batch_norm=2)
    config = changed(config, "optimizer", micro_batches=2)
    text = make_training(config, devices=8).compile_step().program.as_text()
    for kind in ("all-gather", "all-to-all", "collective-permute"):
        assert kind not in text


def test_ema_warms_up_and_follows_the_parameters(tiny_config: Config) -> None:
    training = make_training(tiny_config, devices=1)
    before = jax.device_get(training.init())
    after, _ = take_steps(training, move(training, before), range(1))
    decay = min(0.9, 1 / 10)
    expected = jax.tree.map(
        lambda old, new: decay * old + (1 - decay) * new, before.ema["params"], after.params
    )
    assert distance(after.ema["params"], expected) < 1e-6
    without = make_training(changed(tiny_config, "optimizer", ema_decay=0.0), devices=1)
    state = without.init()
    assert state.ema is None
    assert state.eval_variables["params"] is state.params


@pytest.mark.parametrize("name", ["softmax", pytest.param("sigmoid", marks=pytest.mark.long)])
def test_a_network_learns_one_batch_by_heart(tiny_config: Config, name: str) -> None:
    config = changed(tiny_config, "loss", name=name, label_smoothing=0.0)
    config = changed(config, "model", name="all_blocks", dropout=0.0, drop_path=0.0)
    config = changed(config, "schedule", name="constant", warmup=0.0)
    config = dataclasses.replace(config, augment=(CenterCrop(),), num_steps=60)
    training = make_training(config, devices=1)
    state, batch = training.init(), random_batch(training, 0)
    history = []
    for _ in range(60):
        state, metrics = training.steps[training.config.data.image_size](state, batch)
        history.append(jax.device_get(metrics))
    assert history[-1]["loss"] < 0.2 * history[0]["loss"]
    assert history[-1]["top1"] == 1.0


def test_bfloat16_keeps_parameters_and_loss_in_float32(tiny_config: Config) -> None:
    training = make_training(dataclasses.replace(tiny_config, compute_dtype="bfloat16"), devices=1)
    reference = make_training(tiny_config, devices=1)
    state, [metrics] = take_steps(training, training.init(), range(1))
    _, [expected] = take_steps(reference, reference.init(), range(1))
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    assert metrics["loss"].dtype == np.float32
    np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=0.02)


@pytest.mark.long  # it compiles four steps
def test_rates_by_stage_equal_the_same_step_at_fixed_rates(tiny_config: Config) -> None:
    by_stage = make_training(
        changed(tiny_config, "model", dropout=(0.1, 0.4), drop_path=(0.0, 0.3)), devices=1
    )
    before = jax.device_get(by_stage.init())
    results = {}
    for step in (0, 9):  # of 12, so in the first and in the second stage
        _, [results[step]] = take_steps(
            by_stage, move(by_stage, before.replace(step=step)), range(1)
        )
        fixed = make_training(
            changed(tiny_config, "model", dropout=0.4, drop_path=0.3)
            if step
            else changed(tiny_config, "model", dropout=0.1, drop_path=0.0),
            devices=1,
        )
        _, [expected] = take_steps(fixed, move(fixed, before.replace(step=step)), range(1))
        for name in ("loss", "grad_norm"):
            np.testing.assert_allclose(results[step][name], expected[name], rtol=1e-6)
    assert abs(results[0]["loss"] - results[9]["loss"]) > 1e-3


@pytest.mark.long
def test_max_pooling_has_the_same_gradient_on_eight_devices(tiny_config: Config) -> None:
    config = changed(tiny_config, "model", pooling="max")
    norms = []
    for devices in (1, 8):
        training = make_training(config, devices=devices)
        _, metrics = take_steps(training, training.init(), range(1))
        norms.append(np.asarray(metrics[0]["grad_norm"]))
    np.testing.assert_allclose(norms[1], norms[0], rtol=1e-4)
