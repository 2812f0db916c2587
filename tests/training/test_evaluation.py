import dataclasses
from pathlib import Path

import jax
import pytest

from jaxcls.config import Config
from jaxcls.data.sources import open_source
from jaxcls.distributed.mesh import make_mesh, replicated
from jaxcls.models.interface import Variables
from jaxcls.runs.checkpoint import Checkpoints
from jaxcls.runs.directory import checkpoint_dir
from jaxcls.training.build import build_training
from jaxcls.training.evaluation import evaluate_split, make_eval_step
from jaxcls.training.loop import Outcome
from jaxcls.training.state import TrainState


@pytest.fixture(scope="module")
def state(tiny_run: tuple[Path, Outcome], tiny_config: Config) -> TrainState:
    mesh = make_mesh(jax.devices()[:1])
    training = build_training(tiny_config, num_classes=10, num_examples=1442, mesh=mesh)
    with Checkpoints(checkpoint_dir(tiny_run[0])) as checkpoints:
        return jax.device_get(checkpoints.restore(training.abstract_state(), 12).state)


def metrics_of(
    config: Config, variables: Variables, *, batch_size: int = 32, devices: int = 1
) -> dict[str, float]:
    mesh = make_mesh(jax.devices()[:devices])
    training = build_training(config, num_classes=10, num_examples=1442, mesh=mesh)
    step = make_eval_step(training.model, loss=config.loss.name, mesh=mesh)
    data = dataclasses.replace(config.data, batch_size=batch_size)
    source = open_source(data, "test")
    return evaluate_split(
        step, jax.device_put(variables, replicated(mesh)), source, data, mesh=mesh
    )


@pytest.mark.parametrize(("batch_size", "devices"), [(7, 1), (355, 1), (400, 1), (32, 8), (50, 3)])
def test_batches_and_devices_change_nothing(
    tiny_run: tuple[Path, Outcome],
    tiny_config: Config,
    state: TrainState,
    batch_size: int,
    devices: int,
) -> None:
    expected = tiny_run[1].metrics
    config = dataclasses.replace(
        tiny_config, data=dataclasses.replace(tiny_config.data, batch_size=48)
    )
    found = metrics_of(config, state.eval_variables, batch_size=batch_size, devices=devices)
    assert found["num_examples"] == expected["num_examples"] == 355
    assert (found["top1"], found["top5"]) == (expected["top1"], expected["top5"])
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)


def test_the_moving_averages_are_evaluated_and_not_the_parameters(
    tiny_run: tuple[Path, Outcome], tiny_config: Config, state: TrainState
) -> None:
    expected = tiny_run[1].metrics["loss"]
    raw = {"params": state.params, "batch_stats": state.batch_stats}
    assert state.ema is not None
    assert metrics_of(tiny_config, state.ema)["loss"] == pytest.approx(expected, rel=1e-6)
    assert abs(metrics_of(tiny_config, raw)["loss"] - expected) > 1e-3
