"""Replicated, ZeRO-1 and FSDP: the same training, another layout, and no image that moves."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxcls.config import Config, ParallelConfig
from jaxcls.config.augment import Mix, RandomCropAndResize, RandomFlip
from jaxcls.config.decoding import ConfigError
from jaxcls.distributed.mesh import bytes_per_device, make_mesh, replicated_bytes, split_by_example
from jaxcls.runs.checkpoint import Checkpoints
from jaxcls.training.build import Training, build_training
from jaxcls.training.evaluation import make_eval_step

CHOICES = (
    ParallelConfig(),
    ParallelConfig(state="zero1"),
    ParallelConfig(state="fsdp", fsdp_devices=4),
)
NAMES = [choice.state for choice in CHOICES]


def make_training(config: Config, parallel: ParallelConfig, *, batch_norm: Any = 2) -> Training:
    model = dataclasses.replace(config.model, batch_norm=batch_norm)
    config = dataclasses.replace(config, parallel=parallel, model=model)
    return build_training(
        config, num_classes=10, num_examples=1000, mesh=make_mesh(parallel=parallel)
    )


def batch_of(training: Training, step: int) -> dict[str, jax.Array]:
    generator, data = np.random.default_rng(step), training.config.data
    size, batch_size = data.canvas_size, data.batch_size
    batch = {
        "images": generator.integers(256, size=(batch_size, size, size, 3), dtype=np.uint8),
        "sizes": np.full((batch_size, 2), size, np.int32),
        "labels": generator.integers(10, size=batch_size, dtype=np.int32),
    }
    return jax.device_put(batch, split_by_example(training.mesh))


@pytest.mark.parametrize("choice", [pytest.param("zero1", marks=pytest.mark.long), "fsdp"])
def test_each_choice_gives_the_same_twenty_losses(tiny_config: Config, choice: str) -> None:
    losses = {}
    with jax.enable_x64(True):
        config = dataclasses.replace(tiny_config, compute_dtype="float64", num_steps=20)
        for parallel in (each for each in CHOICES if each.state in ("replicated", choice)):
            training = make_training(config, parallel)
            state, history = training.init(), []
            for step in range(20):
                state, metrics = training.steps[training.config.data.image_size](
                    state, batch_of(training, step)
                )
                history.append(float(metrics["loss"]))
            assert jax.tree.map(lambda x: x.sharding, state) == training.shardings
            losses[parallel.state] = history
    np.testing.assert_allclose(losses[choice], losses["replicated"], rtol=1e-8)


def test_a_device_holds_less_of_a_split_state(tiny_config: Config) -> None:
    held, copied = {}, {}
    for parallel in CHOICES:
        state = make_training(tiny_config, parallel).abstract_state()
        held[parallel.state] = bytes_per_device(state)
        copied[parallel.state] = replicated_bytes(state)
    assert copied["replicated"] == held["replicated"]
    # One copy of parameters, of momentum and of averages each; few small arrays stay whole.
    assert held["zero1"] < 0.5 * held["replicated"]
    assert held["fsdp"] < 0.35 * held["replicated"]
    assert 0 < copied["fsdp"] < 0.1 * held["replicated"]


@pytest.mark.parametrize(
    ("name", "parallel"),
    [
        *(pytest.param("all_blocks", choice, marks=pytest.mark.long) for choice in CHOICES[:-1]),
        ("all_blocks", CHOICES[-1]),
        pytest.param("tiny_resnet", CHOICES[-1], marks=pytest.mark.long),
    ],
    ids=[*NAMES, "fsdp of a ResNet"],
)
def test_only_parameters_are_gathered(
    tiny_config: Config, name: str, parallel: ParallelConfig
) -> None:
    augment = (RandomFlip(), RandomCropAndResize(), Mix(group_size=2))
    model = dataclasses.replace(tiny_config.model, name=name)
    training = make_training(
        dataclasses.replace(tiny_config, model=model, augment=augment), parallel
    )
    text = training.compile_step().program.as_text()
    gathered = shapes_moved(text)
    allowed = {leaf.shape for leaf in jax.tree.leaves(training.abstract_state().params)}
    assert bool(gathered) == (parallel.state != "replicated")
    # The compiler may drop or reorder dimensions of one parameter, not make another one of it.
    sizes = {tuple(sorted(size for size in shape if size != 1)) for shape in allowed}
    assert {tuple(sorted(size for size in shape if size != 1)) for shape in gathered} <= sizes
    if parallel.state == "replicated":
        assert count_all_reduces(text) <= 3


def shapes_moved(text: str) -> set[tuple[int, ...]]:
    """Shapes of the results of all collectives that hand arrays on."""
    found = set()
    kinds = "all-gather|all-to-all|collective-permute"
    for result in re.findall(rf"= (.*?) (?:{kinds})(?:-done)?\(", text):
        for shape in re.findall(r"\w\d+\[([\d,]*)\]", result):
            found.add(tuple(int(size) for size in shape.split(",") if size))
    return found


def count_all_reduces(text: str) -> int:
    return len(re.findall(r" all-reduce(?:-start)?\(", text))


def test_global_batch_norm_reduces_once_forward_and_once_backward(tiny_config: Config) -> None:
    training = make_training(tiny_config, ParallelConfig(), batch_norm="global")
    layers = len(jax.tree.leaves(training.abstract_state().batch_stats)) // 2
    text = training.compile_step().program.as_text()
    assert layers < count_all_reduces(text) <= 2 * layers + 3


@pytest.mark.parametrize("parallel", CHOICES[2:], ids=NAMES[2:])
def test_a_checkpoint_of_one_choice_restores_under_another(
    tiny_config: Config, parallel: ParallelConfig, tmp_path: Path
) -> None:
    for old, new in [(ParallelConfig(), parallel), (parallel, ParallelConfig())]:
        saved = make_training(tiny_config, old).init()
        template = make_training(tiny_config, new).abstract_state()
        with Checkpoints(tmp_path / old.state) as checkpoints:
            checkpoints.save(1, saved, metadata={})
            checkpoints.wait()
            restored = checkpoints.restore(template).state
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(restored), jax.device_get(saved))
        assert [x.sharding for x in jax.tree.leaves(restored)] == [
            x.sharding for x in jax.tree.leaves(template)
        ]


def test_evaluation_takes_split_variables(tiny_config: Config) -> None:
    sums = {}
    for parallel in CHOICES:
        training = make_training(tiny_config, parallel)
        step = make_eval_step(training.model, loss="softmax", mesh=training.mesh)
        batch = batch_of(training, 0)
        batch["mask"] = jax.numpy.ones(len(batch["labels"]), bool)
        sums[parallel.state] = jax.device_get(step(training.init().eval_variables, batch))
    for state in ("zero1", "fsdp"):
        np.testing.assert_allclose(sums[state]["loss"], sums["replicated"]["loss"], rtol=1e-5)


@pytest.mark.parametrize(
    ("parallel", "shape"),
    [
        (ParallelConfig(), {"data": 8}),
        (ParallelConfig(state="fsdp"), {"data": 1, "fsdp": 8}),
        (ParallelConfig(state="fsdp", fsdp_devices=2), {"data": 4, "fsdp": 2}),
    ],
)
def test_the_mesh_follows_the_choice(parallel: ParallelConfig, shape: dict[str, int]) -> None:
    assert make_mesh(parallel=parallel).shape == shape


@pytest.mark.parametrize(
    "parallel", [ParallelConfig(state="fsdp", fsdp_devices=3), ParallelConfig(fsdp_devices=2)]
)
def test_a_mesh_that_cannot_be_is_refused(parallel: ParallelConfig) -> None:
    with pytest.raises(ConfigError, match=r"parallel\.fsdp_devices"):
        make_mesh(parallel=parallel)
