import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcls.config import Config, DataConfig
from jaxcls.config.progressive import at_progress, image_size_at, progress, stage_ends, stage_of


def staged(*epochs: float, sizes: tuple[int, ...] = ()) -> Config:
    data = DataConfig(image_size=32, stage_image_sizes=sizes)
    return Config(data=data, stage_epochs=epochs, num_epochs=sum(epochs) or 1.0)


@pytest.mark.parametrize(
    ("config", "num_steps", "ends"),
    [
        (Config(), 12, (12,)),
        (staged(1, 2, 3), 12, (2, 6, 12)),
        (staged(0.5, 0.1, 0.4), 10, (5, 6, 10)),
        (staged(sizes=(16, 24, 32)), 12, (4, 8, 12)),
        (staged(sizes=(16, 24, 32)), 1, (0, 1, 1)),
        (staged(1, 1, sizes=(16, 32)), 3, (1, 3)),
    ],
)
def test_stages_end_where_their_epochs_say(
    config: Config, num_steps: int, ends: tuple[int, ...]
) -> None:
    assert stage_ends(config, num_steps) == ends


def test_size_and_stage_change_at_the_same_step() -> None:
    config = staged(1, 2, 3, sizes=(16, 24, 32))
    ends = stage_ends(config, 12)
    assert [stage_of(step, ends) for step in (0, 1, 2, 5, 6, 11, 12)] == [0, 0, 1, 1, 2, 2, 2]
    assert [image_size_at(config, step, ends) for step in (0, 1, 2, 5, 6, 11, 12)] == [
        *(16, 16, 24, 24, 32, 32, 32)
    ]
    assert image_size_at(staged(), 3, (12,)) == 32


@pytest.mark.parametrize("ends", [(2, 6, 12), (1, 2, 37035), (0, 5, 5, 9), (7,), (300, 378)])
def test_what_has_one_value_a_stage_changes_at_their_ends(ends: tuple[int, ...]) -> None:
    values = tuple(float(stage) for stage in range(len(ends)))
    at = jax.jit(lambda step: at_progress(values, progress(step, ends)))
    for border in (0, *ends):
        for step in range(max(0, border - 1), min(border + 2, ends[-1])):
            assert float(at(jnp.int32(step))) == stage_of(step, ends)


def test_progress_rises_evenly_within_one_stage() -> None:
    shares = [float(progress(step, (10,))) for step in range(10)]
    np.testing.assert_allclose(shares, (np.arange(10) + 0.5) / 10)


@pytest.mark.parametrize(("num_steps", "stages"), [(147, 3), (378, 2), (37035, 3), (100, 4)])
def test_a_stage_begins_at_its_step(num_steps: int, stages: int) -> None:
    """Where the border falls on a step, that step is the first of the stage."""
    strength = tuple(float(stage) for stage in range(stages))
    at = jax.jit(lambda step: at_progress(strength, progress(step, (num_steps,))))
    for stage in range(1, stages):
        border = num_steps * stage // stages
        assert [float(at(jnp.int32(step))) for step in (border - 1, border)] == [stage - 1, stage]


@pytest.mark.parametrize(
    ("progress", "expected"),
    [(0, 0.1), (0.2499, 0.1), (0.25, 0.2), (0.5, 0.3), (0.74, 0.3), (0.75, 0.4), (1, 0.4)],
)
def test_stages_are_equal_shares_of_the_training(progress: float, expected: float) -> None:
    value = at_progress((0.1, 0.2, 0.3, 0.4), jnp.float32(progress))
    assert float(value) == pytest.approx(expected)
    assert value.dtype == jnp.float32


@pytest.mark.parametrize("count", range(1, 8))
def test_no_stage_is_left_out(count: int) -> None:
    stages = tuple(float(index) for index in range(count))
    reached = jax.jit(jax.vmap(functools.partial(at_progress, stages)))
    steps = jnp.arange(20 * count) / (20 * count)
    counts = np.bincount(np.asarray(reached(steps), int))
    np.testing.assert_allclose(counts, 20, atol=1)  # a boundary may round


@pytest.mark.parametrize("strength", [0.3, 1, (0.3,)])
def test_one_strength_lasts_for_the_whole_training(strength: float | tuple[float, ...]) -> None:
    for share in (0.0, 0.5, 1.0):
        expected = strength[0] if isinstance(strength, tuple) else strength
        assert float(at_progress(strength, jnp.float32(share))) == pytest.approx(expected)
