import time

import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from jaxcls.system.errors import UserError
from jaxcls.training.meter import DivergedError, Meter


def metrics(loss: float, grad_norm: float = 1.0, **others: float) -> dict[str, Array]:
    values = {"loss": loss, "grad_norm": grad_norm, **others}
    return {name: jnp.float32(value) for name, value in values.items()}


def make_meter(*, max_skipped: int = 10, said: list[str] | None = None) -> Meter:
    return Meter(batch_size=8, max_skipped=max_skipped, say=([] if said is None else said).append)


def test_the_read_values_are_averages_over_the_steps() -> None:
    meter = make_meter()
    meter.add(1, metrics(1.0, 2.0, top1=0.5))
    meter.add(2, metrics(2.0, 4.0, top1=1.0))
    meter.add(3, metrics(6.0, 0.0, top1=0.0))
    read = meter.read()
    assert {name: read[name] for name in ("loss", "grad_norm", "top1")} == {
        "loss": 3.0,
        "grad_norm": 2.0,
        "top1": 0.5,
    }
    assert all(type(value) is float for value in read.values())


def test_each_step_is_read_once() -> None:
    meter = make_meter()
    meter.add(1, metrics(1.0))
    assert meter.read()["loss"] == 1.0
    meter.add(2, metrics(5.0))
    assert meter.read()["loss"] == 5.0


def test_speeds_count_from_the_last_read_or_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    meter = make_meter()
    now += 50  # compiling
    meter.restart_clock()
    for step in range(1, 5):
        with meter.waiting():
            now += 0.125
        meter.add(step, metrics(1.0))
        now += 0.375
    read = meter.read()
    assert read["steps_per_second"] == 2.0
    assert read["images_per_second"] == 16.0
    assert read["data_wait_share"] == 0.25
    now += 1
    meter.add(5, metrics(1.0))
    read = meter.read()
    assert read["steps_per_second"] == 1.0
    assert read["data_wait_share"] == 0.0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["loss", "grad_norm", "params_norm", "ema_norm"])
def test_a_value_that_is_not_finite_names_its_step(name: str, value: float) -> None:
    meter = make_meter()
    meter.add(40, metrics(1.0))
    meter.add(41, metrics(1.0) | {name: jnp.float32(value)})
    meter.add(42, metrics(np.nan, np.nan))
    with pytest.raises(DivergedError) as caught:
        meter.read()
    message = str(caught.value)
    assert message.startswith(f"{name} is {value} at step 41; nothing was saved from this")
    assert "optimizer.learning_rate" in message
    assert isinstance(caught.value, UserError)


def test_other_metrics_may_be_anything() -> None:
    meter = make_meter()
    meter.add(1, metrics(1.0, top1=float("nan")))
    assert np.isnan(meter.read()["top1"])


def test_a_16_bit_loss_is_judged_too() -> None:
    meter = make_meter()
    meter.add(7, {"loss": jnp.bfloat16(jnp.inf), "grad_norm": jnp.float32(1)})
    with pytest.raises(DivergedError, match="loss is inf at step 7"):
        meter.read()


def add_steps(meter: Meter, first: int, *counts: int) -> None:
    """Adds one step for each count of skipped steps in a row; the loss of step n is n."""
    for step, count in enumerate(counts, first):
        value = np.nan if count else step
        meter.add(step, metrics(value, value, params_norm=1.0) | {"skipped": jnp.int32(count)})


def test_skipped_steps_are_named_once_and_left_out_of_the_means() -> None:
    said: list[str] = []
    meter = make_meter(said=said)
    add_steps(meter, 1, 0, 1)
    meter.fetch()
    add_steps(meter, 3, 2, 0, 1, 0, 1)
    assert meter.read()["loss"] == (1 + 4 + 6) / 3
    because = "because the loss or the gradients were not finite"
    assert said == [
        f"skipped step 2, {because}",
        f"skipped steps 2 to 3, step 5, step 7, {because}",
    ]
    add_steps(meter, 8, 2, 3)
    read = meter.read()
    assert read.keys() == {"images_per_second", "steps_per_second", "data_wait_share"}
    assert said[2:] == [f"skipped steps 7 to 9, {because}"]
    add_steps(meter, 10, 0)
    assert meter.read()["loss"] == 10
    assert len(said) == 3


@pytest.mark.parametrize(
    ("counts", "named"),
    [
        ((0, 1, 2, 3), "steps 12 to 14"),
        ((8, 9), "steps 4 to 12"),  # begun before the last read, or before the run was resumed
        ((1, 0, 1, 2, 3, 4, 0, 1), "steps 13 to 16"),  # over when it is read
    ],
)
def test_too_many_skipped_steps_in_a_row_end_the_training(
    counts: tuple[int, ...], named: str
) -> None:
    meter = make_meter(max_skipped=3)
    add_steps(meter, 11, *counts)
    with pytest.raises(DivergedError, match=f"^skipped {named}, because .* max_skipped_steps is 3"):
        meter.read()


def test_fewer_skipped_steps_in_a_row_do_not() -> None:
    meter = make_meter(max_skipped=3)
    add_steps(meter, 11, 1, 2, 0, 1, 2)
    assert meter.read()["loss"] == 13


def test_a_skipped_step_does_not_excuse_a_state_that_is_not_finite() -> None:
    meter = make_meter()
    meter.add(5, metrics(np.nan, params_norm=np.inf) | {"skipped": jnp.int32(1)})
    with pytest.raises(DivergedError, match=r"^params_norm is inf at step 5"):
        meter.read()
