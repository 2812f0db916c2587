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
from jaxcls.training.optimizers import make_optimizer

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


@pytest.mark.parametrize(
    ("name", "options"), [("sgd", {"momentum": 0.9}), ("adamw", {}), ("rmsprop", {}), ("lion", {})]
)
@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_three_updates_equal_those_of_each_array(
    name: str, options: dict[str, Any], decay: float
) -> None:
    optimizer = optimizer_of(name, options=options)
    fused = FusedUpdate(optimizer, decay, make_mesh(jax.devices()[:1]), interpret=True)
    params = draw(0)
    assert fused.fits(params)
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


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("lars", {}),
        ("lamb", {}),
        ("adafactor", {}),
        ("sgd", {"clip_norm": 1.0}),
        ("adamw", {"options": {"mu_dtype": "bfloat16"}}),  # a state that is not float32
    ],
)
def test_an_optimizer_that_looks_at_whole_arrays_does_not_fit(
    name: str, fields: dict[str, Any]
) -> None:
    mesh = make_mesh(jax.devices()[:1])
    assert not FusedUpdate(optimizer_of(name, **fields), 0.0, mesh).fits(draw(0))
