"""Fixtures of tests that read and write checkpoints."""

import gc
from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(scope="module")
def quick_collection() -> Iterator[None]:
    """What tests of other files have left need not be looked through again and again."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def no_noise_in_later_tests() -> Iterator[None]:
    yield
    gc.collect()


@pytest.fixture
def x64() -> Iterator[None]:
    """For the whole process: `jax.enable_x64` does not reach Orbax's threads."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)
