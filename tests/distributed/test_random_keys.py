"""What a run draws and computes is the same whatever the environment says to JAX and Flax."""

import ast
import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np
import pytest

import jaxcls
from jaxcls.config import Config, DataConfig, ModelConfig, OptimizerConfig
from jaxcls.config.augment import (
    AnyAugmentation,
    AugMix,
    Mix,
    RandAugment,
    RandomCrop,
    RandomErasing,
    RandomFlip,
)
from jaxcls.distributed.mesh import make_mesh
from jaxcls.distributed.random_keys import random_key
from jaxcls.models.efficientnet import BlockSpec
from jaxcls.models.registry import SPECS
from jaxcls.training.build import Training, build_training

HERE = Path(__file__).parent
PACKAGE = Path(jaxcls.__file__).parent
OTHER_DRAWS: dict[str, Any] = {
    "jax_default_prng_impl": "rbg",
    "jax_threefry_partitionable": False,
    "jax_random_seed_offset": 5,
    "flax_fix_rng_separator": True,
}
REFUSALS: dict[str, Any] = {
    "jax_numpy_dtype_promotion": "strict",
    "jax_numpy_rank_promotion": "raise",
    "jax_disable_jit": True,
}


def configure(values: dict[str, Any]) -> None:
    for name, value in values.items():
        (flax if name.startswith("flax") else jax).config.update(name, value)


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = {
        name: getattr((flax if name.startswith("flax") else jax).config, name)
        for name in ["jax_enable_x64", *OTHER_DRAWS, *REFUSALS]
    }
    yield
    configure(before)


EVERYTHING = (
    RandomFlip(vertical=0.3),
    RandomCrop(),
    RandAugment(ops=("Solarize", "ShearX"), num_ops=1),
    AugMix(ops=("Solarize",), width=1, depth=1),
    RandomErasing(fill="noise"),
    Mix(group_size=2),
)


def make(augment: tuple[AnyAugmentation, ...] = EVERYTHING) -> Training:
    """A network of one block, by default with all that draws."""
    block = BlockSpec(fused=True, repeats=1, filters=8, expansion=1, stride=1, se_ratio=0.0)
    b0: Any = SPECS["efficientnetv2_b0"]
    spec = dataclasses.replace(
        b0, name="one_block", stem_filters=8, blocks=(block,), head_filters=32, image_size=32
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SPECS, spec.name, spec)
        config = Config(
            model=ModelConfig(name=spec.name, dropout=0.2, drop_path=0.2),
            data=DataConfig(batch_size=8, image_size=16, canvas_size=16),
            augment=augment,
            optimizer=OptimizerConfig(
                name="adamw", learning_rate=0.1, ema_decay=0.9, clip_norm=1.0
            ),
            num_steps=4,
        )
        mesh = make_mesh(jax.devices()[:1])
        return build_training(config, num_classes=10, num_examples=80, mesh=mesh)


def programs(training: Training) -> dict[str, str]:
    """What the compiler gets."""
    first: Any = training.make_state
    step = training.steps[training.config.data.image_size].lower(
        training.abstract_state(), training.abstract_batch()
    )
    return {"step": step.as_text(), "init": first.lower({}).as_text()}


@pytest.fixture(scope="module")
def usual() -> dict[str, str]:
    return programs(make())


@pytest.mark.parametrize("settings", [OTHER_DRAWS, REFUSALS])
def test_programs_are_the_same_under_other_settings(
    usual: dict[str, str], settings: dict[str, Any]
) -> None:
    configure(settings)
    assert programs(make()) == usual


def test_nothing_is_computed_in_64_bits_with_x64() -> None:
    """optax corrects Adam's bias in float64 then, and every draw without a dtype is another."""
    configure({"jax_enable_x64": True})
    training = make()
    state, batch = training.abstract_state(), training.abstract_batch()
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(state)} == {"float32", "int32"}
    for traced in (
        jax.make_jaxpr(training.steps[training.config.data.image_size])(state, batch),
        jax.make_jaxpr(training.make_state)({}),
    ):
        assert "f32[8" in str(traced) or "f32[3,3" in str(traced)
        assert re.findall(r"\b[fiu]64\[\d[^]]*\]", str(traced)) == []


@pytest.mark.slow
def test_a_step_with_x64_is_the_same_to_the_bit() -> None:
    """With the compiler's own settings, as a user has them."""
    code = f"import sys; sys.path.insert(0, {str(HERE)!r}); import test_random_keys as tests"
    environment = {name: text for name, text in os.environ.items() if name != "XLA_FLAGS"}
    compare = [sys.executable, "-c", f"{code}; tests.compare_steps_with_and_without_x64()"]
    subprocess.run(compare, env=environment, check=True)


def compare_steps_with_and_without_x64() -> None:
    generator = np.random.default_rng(0)
    batch = {
        "images": generator.integers(256, size=(8, 16, 16, 3), dtype=np.uint8),
        "sizes": np.full((8, 2), 16, np.int32),
        "labels": np.arange(8, dtype=np.int32),
    }
    (step,) = (training := make((RandomFlip(), RandomCrop()))).steps.values()
    start = jax.device_get(training.init())
    expected = jax.device_get(jax.tree.leaves(step(start, batch)))
    configure({"jax_enable_x64": True})
    (step,) = make((RandomFlip(), RandomCrop())).steps.values()
    found = jax.device_get(jax.tree.leaves(step(start, batch)))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("seed", [0, 7, 2**31, 2**32 - 1])
def test_keys_are_those_that_old_runs_drew_from(seed: int) -> None:
    expected = jax.random.key_data(jax.random.key(seed))
    configure({**OTHER_DRAWS, **REFUSALS, "jax_enable_x64": True})
    key = random_key(seed)
    assert jax.random.key_impl(key) == "threefry2x32"
    np.testing.assert_array_equal(jax.random.key_data(key), expected)


def test_keys_are_made_in_one_place() -> None:
    makers = {"key", "PRNGKey", "wrap_key_data", "key_data"}
    found = {
        path.name
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Attribute) and node.attr in makers and "random" in ast.dump(node))
        or (isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jax.random"))
    }
    assert found == {"random_keys.py"}
