import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcls.config import Config, DataConfig, OptimizerConfig, ScheduleConfig
from jaxcls.system.errors import DataError
from jaxcls.training.schedules import Plan, make_plan, make_schedule

NAMES = ("warmup_hold_cosine", "cosine", "constant", "exponential")


def guide(
    steps: np.ndarray, *, total: int, target: float, start: float = 0.0, hold: float = 0.45
) -> np.ndarray:
    """The schedule of the KerasCV guide, with its start rate put to use, in NumPy.

    Follows `lr_warmup_cosine_decay` and `WarmUpCosineDecay` of
    https://keras.io/guides/keras_cv/classification_with_keras_cv/ line by line.
    """
    warmup_steps, hold_steps = int(0.1 * total), int(hold * total)
    after = steps - warmup_steps - hold_steps
    cosine = 0.5 * target * (1 + np.cos(np.pi * after / (total - warmup_steps - hold_steps)))
    warmup = start + (target - start) * (steps / warmup_steps)
    rates = np.where(steps > warmup_steps + hold_steps, cosine, target)
    rates = np.where(steps < warmup_steps, warmup, rates)
    return np.where(steps > total, 0.0, rates)


def rates_of(
    schedule: ScheduleConfig,
    steps: np.ndarray,
    *,
    total: int,
    target: float = 1.0,
    steps_per_epoch: float = 10.0,
) -> np.ndarray:
    function = make_schedule(
        schedule, learning_rate=target, num_steps=total, steps_per_epoch=steps_per_epoch
    )
    padded = np.zeros(4096, np.int32)  # one shape, so that each operation is compiled once
    padded[: len(steps)] = steps
    return np.asarray(jax.vmap(function)(padded))[: len(steps)]


@pytest.mark.parametrize("total", [10, 97, 562 * 5, 100_000])
@pytest.mark.parametrize("start", [0.0, 0.05])
def test_the_default_is_the_schedule_of_the_guide(total: int, start: float) -> None:
    steps = np.unique(np.linspace(0, total + 20, 4001).astype(int))
    schedule = ScheduleConfig(start_learning_rate=start)
    expected = guide(steps, total=total, target=1e-2, start=start)
    actual = rates_of(schedule, steps, total=total, target=1e-2)
    np.testing.assert_allclose(actual, expected, atol=1e-8)


def test_the_guide_s_shares_are_cut_to_whole_steps() -> None:
    # 10 % and 45 % of 97 steps are 9.7 and 43.65: the peak lasts from step 9 to step 9 + 43.
    rates = rates_of(ScheduleConfig(), np.arange(97), total=97)
    assert (rates == 1).nonzero()[0].tolist() == list(range(9, 53))
    np.testing.assert_allclose(rates[:9], np.arange(9) / 9, rtol=1e-6)
    assert rates[53] < 1


def test_cosine_is_the_guide_without_its_hold() -> None:
    steps = np.arange(220)
    schedule = ScheduleConfig(name="cosine", hold=0.9)  # not used
    expected = guide(steps, total=200, target=0.3, hold=0.0)
    np.testing.assert_allclose(
        rates_of(schedule, steps, total=200, target=0.3), expected, atol=1e-7
    )


def test_constant_stays_at_the_peak_after_the_warmup() -> None:
    rates = rates_of(ScheduleConfig(name="constant", warmup=0.25), np.arange(12), total=8)
    np.testing.assert_array_equal(rates, [0, 0.5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0])


def test_exponential_falls_in_stairs_counted_from_step_0() -> None:
    schedule = ScheduleConfig(
        name="exponential", warmup=0.1, decay_rate=0.97, decay_epochs=2.4, hold=0.45
    )
    steps = np.arange(100)
    rates = rates_of(schedule, steps, total=100, steps_per_epoch=2.5)  # a stair is 6 steps
    expected = 0.97 ** (steps // 6)
    expected[:10] = np.arange(10) / 10
    np.testing.assert_allclose(rates, expected, rtol=1e-5)
    assert rates[10] == pytest.approx(0.97)  # the second stair, though the warmup has just ended
    assert rates[95] == rates[90] > rates[96]


@pytest.mark.parametrize("name", NAMES)
def test_the_rate_is_0_at_the_end_and_after_it(name: str) -> None:
    schedule = ScheduleConfig(name=name)  # pyright: ignore[reportArgumentType]
    rates = rates_of(schedule, np.array([99, 100, 101, 10**6]), total=100)
    assert rates[0] > 0
    np.testing.assert_array_equal(rates[1:], 0)


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(NAMES),
    total=st.sampled_from([1, 2, 3, 10, 11, 97]),
    warmup=st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0]),
    hold=st.sampled_from([0.0, 0.45, 1.0]),
    start=st.sampled_from([0.0, 0.2, 2.0]),
)
def test_every_rate_is_finite_and_lies_between_the_start_and_the_peak(
    name: str, total: int, warmup: float, hold: float, start: float
) -> None:
    schedule = ScheduleConfig(
        name=name,  # pyright: ignore[reportArgumentType]
        warmup=warmup,
        hold=min(hold, 1 - warmup),
        start_learning_rate=start,
    )
    rates = rates_of(schedule, np.arange(100), total=total)
    assert np.isfinite(rates).all()
    assert (rates >= 0).all()
    assert (rates <= max(1, start)).all()
    assert rates[0] == (start if int(warmup * total) else 1)
    assert not rates[total:].any()


@pytest.mark.parametrize("name", NAMES)
def test_without_warmup_the_first_step_has_the_peak(name: str) -> None:
    schedule = ScheduleConfig(name=name, warmup=0.0)  # pyright: ignore[reportArgumentType]
    assert rates_of(schedule, np.arange(1), total=50, target=0.25) == 0.25


@pytest.mark.parametrize("hold", [0.0, 1.0])
def test_nothing_divides_by_zero(hold: float) -> None:
    schedule = ScheduleConfig(warmup=0.0, hold=hold)
    with jax.debug_nans(True), jax.debug_infs(True):
        rates_of(schedule, np.arange(12), total=10)


def test_warmup_and_hold_may_take_all_steps() -> None:
    rates = rates_of(ScheduleConfig(warmup=0.5, hold=0.5), np.arange(12), total=10)
    np.testing.assert_allclose(rates, [0, 0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1, 1, 0, 0], rtol=1e-6)


def test_it_is_a_schedule_to_optax_also_inside_jit() -> None:
    schedule = make_schedule(ScheduleConfig(), learning_rate=0.5, num_steps=20, steps_per_epoch=5)
    tx = optax.sgd(schedule)
    params = jnp.ones(())

    @jax.jit
    def update(state: optax.OptState) -> tuple[jax.Array, optax.OptState]:
        step, state = tx.update(jnp.ones(()), state, params)
        assert isinstance(step, jax.Array)
        return -step, state

    state, rates = tx.init(params), []
    for _ in range(24):
        rate, state = update(state)
        rates.append(float(rate))
    expected = guide(np.arange(24), total=20, target=0.5)
    np.testing.assert_allclose(rates, expected, atol=1e-7)


def rate_at(plan: Plan, step: int) -> float:
    return np.asarray(plan.learning_rate(step)).item()


CONFIG = Config(
    data=DataConfig(batch_size=64), optimizer=OptimizerConfig(learning_rate=0.3), num_epochs=2.5
)


def test_a_plan_in_epochs_counts_whole_batches_when_the_last_is_dropped() -> None:
    plan = make_plan(CONFIG, num_examples=1000)
    assert plan.steps_per_epoch == 15
    assert plan.num_steps == 38  # 37.5, to the even one
    assert rate_at(plan, 20) == pytest.approx(0.3)
    assert rate_at(plan, 37) > 0
    assert rate_at(plan, 38) == 0


def test_a_plan_in_epochs_counts_every_example_when_batches_straddle() -> None:
    data = dataclasses.replace(CONFIG.data, last_batch="straddle")
    plan = make_plan(dataclasses.replace(CONFIG, data=data, num_epochs=4.0), num_examples=1000)
    assert plan.steps_per_epoch == 1000 / 64
    assert plan.num_steps == round(4 * 1000 / 64) == 62


def test_a_plan_in_steps_takes_them() -> None:
    plan = make_plan(dataclasses.replace(CONFIG, num_epochs=None, num_steps=7), num_examples=1000)
    assert plan.num_steps == 7
    assert plan.steps_per_epoch == 15


def test_a_plan_has_at_least_one_step() -> None:
    plan = make_plan(dataclasses.replace(CONFIG, num_epochs=1e-6), num_examples=1000)
    assert plan.num_steps == 1


def test_the_stairs_of_a_plan_follow_its_epochs() -> None:
    schedule = ScheduleConfig(name="exponential", warmup=0, decay_rate=0.5, decay_epochs=2)
    plan = make_plan(dataclasses.replace(CONFIG, schedule=schedule, num_epochs=10.0), 1000)
    rates = [rate_at(plan, step) for step in (0, 29, 30, 59, 60)]
    np.testing.assert_allclose(rates, [0.3, 0.3, 0.15, 0.15, 0.075], rtol=1e-6)


def test_an_epoch_without_a_batch_is_refused() -> None:
    with pytest.raises(
        DataError, match=r"data\.batch_size: 64 takes 64 examples, more than the 63"
    ):
        make_plan(CONFIG, num_examples=63)
    assert math.isclose(make_plan(CONFIG, num_examples=64).steps_per_epoch, 1)
