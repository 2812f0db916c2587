"""The update of all parameters in one kernel, step by step on a CPU, against optax's own."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcls.config import OptimizerConfig
from jaxcls.distributed.mesh import make_mesh
from jaxcls.training.fused_update import FusedUpdate, update_each
from jaxcls.training.optimizers import make_optimizer, optimizer_names

SHAPES = {"conv": {"kernel": (3, 3, 8, 20)}, "norm": {"scale": (20,), "bias": (20,)}}


def draw(seed: int) -> Any:
    generator = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(generator.normal(size=shape), jnp.float32),
        SHAPES,
        is_leaf=lambda value: isinstance(value, tuple),
    )


def optimizer_of(name: str, **fields: Any) -> optax.GradientTransformation:
    schedule = optax.cosine_decay_schedule(0.1, 10)
    return make_optimizer(OptimizerConfig(name=name, weight_decay=0.1, **fields), schedule)


FIT = ("adam", "adamw", "lion", "nadam", "rmsprop", "sgd")  # these at least must fit
IN_CI = ("adamw", "lion", "sgd")


def marked(name: str, *others: Any) -> Any:
    return pytest.param(name, *others, marks=() if name in IN_CI else pytest.mark.long)


@pytest.mark.parametrize(
    ("name", "decay"), [*(marked(name, 0.9) for name in optimizer_names()), ("sgd", 0.0)]
)
def test_three_updates_equal_those_of_each_array(name: str, decay: float) -> None:
    optimizer = optimizer_of(name, options={"momentum": 0.9} if name == "sgd" else {})
    fused = FusedUpdate(optimizer, decay, make_mesh(jax.devices()[:1]), interpret=True)
    params = draw(0)
    if not fused.fits(params):
        assert name not in FIT
        return
    states = [(params, optimizer.init(params), params if decay else None)] * 2
    for step in range(3):
        for number, update in enumerate((fused, update_each(optimizer, decay))):
            params, state, averages = states[number]
            states[number] = jax.jit(update)(
                draw(step + 1), state, params, averages, step=jnp.int32(step)
            )
    jax.tree.map(
        lambda actual, expected: np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6),
        *states,
    )


@pytest.mark.parametrize("name", [marked(name) for name in FIT])
def test_a_skipped_update_keeps_every_bit_but_the_counts_of_schedules(name: str) -> None:
    optimizer = optimizer_of(name)
    fused = FusedUpdate(optimizer, 0.9, make_mesh(jax.devices()[:1]), interpret=True)
    params = draw(0)
    update = jax.jit(fused)
    taken, plain = (
        update(draw(1), optimizer.init(params), params, params, step=jnp.int32(0), **skipped)
        for skipped in ({"skipped": jnp.int32(0)}, {})
    )
    jax.tree.map(np.testing.assert_array_equal, taken, plain)
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, params)
    new, state, averages = update(
        broken, taken[1], taken[0], taken[2], step=jnp.int32(1), skipped=jnp.int32(3)
    )
    jax.tree.map(np.testing.assert_array_equal, (new, averages), (taken[0], taken[2]))
    *moments, schedule = jax.tree.leaves(state)
    *old_moments, old_schedule = jax.tree.leaves(taken[1])
    jax.tree.map(np.testing.assert_array_equal, moments, old_moments)
    assert (old_schedule, schedule) == (1, 2)


def test_scalars_may_be_computed_in_any_way() -> None:
    """Loops, branches and calls that a learning rate needs; none of them is part of the kernel."""

    def rate(count: Any) -> Any:
        total = jax.lax.fori_loop(0, 5, lambda _, value: value + 0.01, jnp.float32(0))
        tenfold = jax.lax.scan(lambda carry, _: (carry * 10, None), total, None, length=2)[0]
        return jax.lax.cond(count > 0, lambda: total, lambda: jax.nn.relu(tenfold))

    optimizer = optax.chain(optax.trace(0.9), optax.scale_by_learning_rate(rate))
    fused = FusedUpdate(optimizer, 0.0, make_mesh(jax.devices()[:1]), interpret=True)
    params = draw(0)
    assert fused.fits(params)
    results = [
        jax.jit(update)(draw(1), optimizer.init(params), params, None, step=jnp.int32(0))[0]
        for update in (fused, update_each(optimizer, 0.0))
    ]
    jax.tree.map(lambda *of: np.testing.assert_allclose(*of, rtol=1e-6), *results)


def double_in_a_loop(updates: Any, params: Any) -> Any:
    del params
    return jax.tree.map(lambda leaf: jax.lax.fori_loop(0, 2, lambda _, x: x * 2, leaf), updates)


def test_a_loop_over_parameters_does_not_fit() -> None:
    optimizer = optax.stateless(double_in_a_loop)
    assert not FusedUpdate(optimizer, 0.0, make_mesh(jax.devices()[:1])).fits(draw(0))


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("lars", {}),
        ("lamb", {}),
        ("adafactor", {}),
        ("novograd", {}),  # a scalar for each parameter
        ("sgd", {"clip_norm": 1.0}),
        ("adamw", {"options": {"mu_dtype": "bfloat16"}}),  # a state that is not float32
    ],
)
def test_an_optimizer_that_looks_at_whole_arrays_does_not_fit(
    name: str, fields: dict[str, Any]
) -> None:
    mesh = make_mesh(jax.devices()[:1])
    assert not FusedUpdate(optimizer_of(name, **fields), 0.0, mesh).fits(draw(0))
