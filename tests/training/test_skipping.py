"""Steps whose loss or gradients are not finite, under on_non_finite "skip"."""

import dataclasses
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from command_line import Message
from jax import Array
from test_loop import assert_same_bits, final_state, one_device, stop_after
from test_step import changed, random_batch

from jaxcls.config import Config, OptimizerConfig, ParallelConfig
from jaxcls.data import device
from jaxcls.data.batches import train_batches
from jaxcls.distributed.mesh import make_mesh
from jaxcls.runs.checkpoint import Checkpoints
from jaxcls.runs.directory import checkpoint_dir
from jaxcls.runs.reporter import metric_columns, read_metrics
from jaxcls.training import loop, losses
from jaxcls.training.build import Training, build_training
from jaxcls.training.fused_update import update_each
from jaxcls.training.loop import train
from jaxcls.training.meter import DivergedError
from jaxcls.training.optimizers import optimizer_names
from jaxcls.training.parameter_rates import make_training_optimizer

POISON = 10  # a label that is no class, of which `poisoned` makes something that is not finite


def poisoned(kind: str) -> Callable[..., Array]:
    """The softmax loss, but of examples with the label POISON the loss, or its gradient, is NaN."""

    def loss(logits: Array, labels: Array, negative: Array, *, focal: float = 0.0) -> Array:
        del negative, focal
        bad = labels.sum(axis=-1) < 0.5  # no class
        losses = optax.softmax_cross_entropy(logits, labels)
        if kind == "loss":
            return jnp.where(bad, jnp.nan, losses)
        # The root of 0 has the value 0 and an infinite slope.
        return losses + jnp.sqrt(jnp.where(bad, 0 * logits.sum(axis=-1), 1)) - ~bad

    return loss


@pytest.fixture(params=["loss"])
def poison(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(losses, "softmax_terms", poisoned(request.param))
    return request.param


@pytest.fixture(scope="module")
def config(tiny_config: Config) -> Config:
    return dataclasses.replace(tiny_config, on_non_finite="skip")


# --- One step ------------------------------------------------------------------------------------


def batch_of(training: Training, step: int, *, poisoned: bool = False) -> dict[str, Array]:
    """A batch of which the last example may be poisoned, so that one device sees it."""
    batch = random_batch(training, step)
    labels = batch["labels"].at[-1].set(POISON) if poisoned else batch["labels"]
    return batch | {"labels": jax.device_put(labels, batch["labels"].sharding)}


def at_step(state: Any, step: int, *, skipped: int) -> Any:
    """The state, as if it were that many steps later in the plan of the training."""
    place = np.int32(step)
    schedules = jax.tree.map(
        lambda part: part._replace(count=place) if is_schedule(part) else part,
        state.opt_state,
        is_leaf=is_schedule,
    )
    return state.replace(step=place, opt_state=schedules, skipped=np.int32(skipped))


def is_schedule(part: Any) -> bool:
    return isinstance(part, optax.ScaleByScheduleState)


@pytest.mark.parametrize(
    ("devices", "parallel", "micro_batches", "poison"),
    [
        (1, "replicated", 2, "gradients"),
        pytest.param(8, "replicated", 1, "loss", marks=pytest.mark.long),
        (8, "fsdp", 1, "gradients"),
        pytest.param(1, "replicated", 1, "loss", marks=pytest.mark.long),
        pytest.param(8, "fsdp", 2, "loss", marks=pytest.mark.long),
        pytest.param(4, "zero1", 1, "gradients", marks=pytest.mark.long),
    ],
    indirect=["poison"],
)
def test_a_skipped_step_changes_only_the_place_in_the_plan(
    config: Config, devices: int, parallel: Any, micro_batches: int, poison: str
) -> None:
    config = changed(config, "optimizer", name="adam", options={}, micro_batches=micro_batches)
    config = dataclasses.replace(config, parallel=ParallelConfig(state=parallel))
    mesh = make_mesh(jax.devices()[:devices], parallel=config.parallel)
    training = build_training(config, num_classes=10, num_examples=1000, mesh=mesh)
    step = training.compile_step().program

    def take(state: Any, number: int, *, poisoned: bool = False) -> tuple[Any, dict[str, Array]]:
        placed = jax.device_put(state, training.shardings)
        return jax.device_get(step(placed, batch_of(training, number, poisoned=poisoned)))

    one, metrics = take(training.init(), 0)
    assert metrics["skipped"] == 0
    assert (one.step, one.skipped) == (1, 0)
    two, metrics = take(one, 1, poisoned=True)
    assert np.isfinite(metrics["loss"]) == (poison == "gradients")
    assert np.isfinite(metrics["grad_norm"]) == (poison == "loss")
    assert_same_bits(two, at_step(one, 2, skipped=1))
    three, metrics = take(two, 2, poisoned=True)
    assert metrics["skipped"] == 2
    assert_same_bits(three, at_step(one, 3, skipped=2))
    four, metrics = take(three, 3)
    assert metrics["skipped"] == 0
    assert not np.array_equal(
        four.params["classifier"]["kernel"], one.params["classifier"]["kernel"]
    )
    assert_same_bits(four, take(at_step(one, 3, skipped=0), 3)[0])


# --- Optimizers ----------------------------------------------------------------------------------


def rate(count: Any) -> Any:
    return 0.1 * 0.5 ** jnp.asarray(count, jnp.float32)


def rate_without_step_2(count: Any) -> Any:
    return rate(count + jnp.where(count >= 2, 1, 0))


@pytest.mark.parametrize(
    ("name", "late"),
    [
        *((name, 0) for name in optimizer_names()),
        *((name, late) for name in ("adam", "fromage") for late in (1, 3)),
    ],
)
def test_a_skipped_step_equals_a_schedule_without_it(name: str, late: int) -> None:
    """The moments see the gradients that were taken; rates and frozen parameters follow the plan.

    Step 2, the third, is skipped. Some parameters begin to train at the step `late`.
    """
    draw = np.random.default_rng(0)
    params = {
        "bias": jnp.asarray(draw.normal(size=4)),
        "kernel": jnp.asarray(draw.normal(size=(3, 4))),
    }
    gradients = [
        jax.tree.map(lambda x: jnp.asarray(draw.normal(size=x.shape)), params) for _ in range(6)
    ]
    broken = jax.tree.map(lambda x: x * jnp.nan, params)

    def final(schedule: optax.Schedule, begin: int, plan: list[tuple[Any, int]]) -> Any:
        optimizer = make_training_optimizer(
            OptimizerConfig(name=name, weight_decay=0.1),
            schedule,
            unfreeze_at={"bias": 0, "kernel": begin},
            factors={"bias": 1.0, "kernel": 1.0},
            num_steps=100,
        )
        update = jax.jit(update_each(optimizer, 0.9))
        values = params, optimizer.init(params), params
        for grads, skipped in plan:
            values = update(
                grads,
                values[1],
                values[0],
                values[2],
                step=jnp.int32(7),
                skipped=jnp.int32(skipped),
            )
        return values[0], values[2]

    taken = [(grads, 0) for grads in gradients]
    skipping = final(rate, late, [*taken[:2], (broken, 1), *taken[2:]])
    reference = final(rate_without_step_2, late - (late > 2), taken)
    jax.tree.map(lambda *of: np.testing.assert_allclose(*of, rtol=1e-6), skipping, reference)


# --- Runs ----------------------------------------------------------------------------------------


def poison_steps(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """Poisons the batches of some steps, counted from 1."""

    def batches(*arguments: Any, start: int, **others: Any) -> Iterator[Any]:
        real = train_batches(*arguments, start=start, **others)
        try:
            for step, batch in enumerate(real, start + 1):
                yield (
                    batch | {"labels": np.full_like(batch["labels"], POISON)}
                    if step in steps
                    else batch
                )
        finally:
            real.close()

    monkeypatch.setattr(device, "train_batches", batches)


@pytest.mark.usefixtures("poison")
def test_a_run_skips_and_says_so_and_its_metrics_stay_finite(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison_steps(monkeypatch, 1, 5, 6, 9)  # the metrics of 5 and 6 are read together
    outcome = train(config, tmp_path, mesh=one_device())
    assert (outcome.step, np.isfinite(outcome.metrics["loss"])) == (12, True)
    log = (tmp_path / "log.txt").read_text()
    because = "because the loss or the gradients were not finite"
    for steps in ("step 1", "steps 5 to 6", "step 9"):
        assert log.count(f"skipped {steps}, {because}\n") == 1
    assert log.count("skipped") == 3
    rows = [row for row in read_metrics(tmp_path / "metrics.csv") if not row["eval_loss"]]
    losses = {int(row["step"]): row["loss"] for row in rows}
    assert {step for step, loss in losses.items() if not loss} == {1, 6}
    assert all(np.isfinite(float(loss)) for loss in losses.values() if loss)
    assert np.isfinite(metric_columns(rows)["images_per_second"]).all()


@pytest.mark.usefixtures("poison")
def test_a_resumed_run_counts_on_and_ends_as_the_whole_one(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: Message
) -> None:
    config = dataclasses.replace(config, max_skipped_steps=5)
    poison_steps(monkeypatch, 2, *range(5, 13))
    ends = "skipped steps 5 to 10, because the loss or the gradients were not finite, and max_s"
    with pytest.raises(DivergedError, match=f"^{ends}"):
        train(config, tmp_path / "whole", mesh=one_device())
    with monkeypatch.context() as patch:
        stop_after(patch, 6, signal.SIGTERM)
        assert train(config, tmp_path / "stopped", mesh=one_device()).step == 7
    stopped = final_state(tmp_path / "stopped", config, 7)
    assert stopped.skipped == 3
    monkeypatch.setattr(loop, "make_mesh", lambda **_: one_device())
    assert ends in message("train", tmp_path / "stopped").splitlines()[-1]
    assert_same_bits(
        final_state(tmp_path / "stopped", config, 8), final_state(tmp_path / "whole", config, 8)
    )


@pytest.mark.long
@pytest.mark.usefixtures("poison")
def test_a_run_may_change_between_the_two_when_it_resumes(
    config: Config, tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison_steps(monkeypatch, 6, 8)
    with pytest.raises(DivergedError, match=r"^loss is nan at step 6"):
        train(tiny_config, tmp_path, mesh=one_device())
    with monkeypatch.context() as patch:
        stop_after(patch, 6, signal.SIGTERM)
        assert train(config, tmp_path, mesh=one_device()).step == 7
    assert train(config, tmp_path, mesh=one_device()).step == 12
    assert final_state(tmp_path, config, 12).skipped == 0
    with Checkpoints(checkpoint_dir(tmp_path)) as checkpoints:
        assert checkpoints.steps() == [8, 12]
    assert train(tiny_config, tmp_path, mesh=one_device()).step == 12


@pytest.mark.usefixtures("poison")
def test_a_state_that_is_not_finite_still_ends_the_run(config: Config, tmp_path: Path) -> None:
    schedule = dataclasses.replace(config.schedule, name="constant", warmup=0.0)
    config = dataclasses.replace(
        changed(config, "optimizer", learning_rate=1e30), schedule=schedule, num_steps=3
    )
    with pytest.raises(DivergedError, match=r"^params_norm is (nan|inf) at step 1"):
        train(config, tmp_path, mesh=one_device())


@pytest.mark.usefixtures("poison")  # the programs are those of the tests above
def test_without_the_option_nothing_is_counted_and_results_are_the_same(
    tiny_config: Config, config: Config
) -> None:
    states, losses = [], []
    for each in (tiny_config, config):
        metrics: dict[str, Array] = {}
        training = build_training(each, num_classes=10, num_examples=1000, mesh=one_device())
        state, step = training.init(), training.compile_step().program
        for number in range(3):
            state, metrics = step(state, batch_of(training, number))
        states.append(jax.device_get(state))
        losses.append(float(metrics["loss"]))
        assert ("skipped" in metrics) == (each is config)
    assert states[0].skipped is None
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    jax.tree.map(
        lambda left, right: np.testing.assert_allclose(left, right, rtol=1e-3, atol=1e-5),
        states[0].params,
        states[1].params,
    )
