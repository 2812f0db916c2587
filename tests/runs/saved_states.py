"""Small states for tests of checkpoints, and ways to save and damage them."""

from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

from jaxcls.runs.checkpoint import Checkpoints

# When Orbax fails to read one array it drops the reads in flight, which then complain one by one.
READS_DAMAGED = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:coroutine '_read_array:RuntimeWarning"),
    pytest.mark.usefixtures("quick_collection", "no_noise_in_later_tests"),
]

METADATA = {"config": {"lr": 0.1, "sizes": [1, 2]}, "labels": ["cat", "dög"], "none": None}
DTYPES = ["float32", "bfloat16", "float16", "float64", "int8", "int32", "uint8", "uint32", "bool"]

needs_8_devices = pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices")


@flax.struct.dataclass
class State:
    step: jax.Array
    params: Any
    opt_state: Any
    ema: Any = None


def make_state(seed: int = 0) -> State:
    keys = iter(jax.random.split(jax.random.key(seed), 8))
    params = {
        f"block{i}": {"kernel": jax.random.normal(next(keys), (3, 3, 8, 16)), "bias": jnp.ones(16)}
        for i in range(4)
    }
    opt_state = optax.adamw(1e-3).init(params)
    return State(step=jnp.int32(seed), params=params, opt_state=opt_state)


def template_of(state: Any) -> Any:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def assert_equal(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def save_steps(directory: Path, *steps: int, keep_latest: int = 2, **scores: float) -> None:
    with Checkpoints(directory, keep_latest=keep_latest) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_state(step), metadata=METADATA, **scores)


def data_file(folder: Path) -> Path:
    """The file with the arrays' values: the largest."""
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip_bit(file: Path, place: int, bit: int = 0) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1 << bit
    file.write_bytes(content)


def truncate(folder: Path) -> None:
    file = data_file(folder)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def mesh(*shape: int) -> Mesh:
    return jax.make_mesh(
        shape,
        ("a", "b")[: len(shape)],
        axis_types=(jax.sharding.AxisType.Auto,) * len(shape),
        devices=jax.devices()[: int(np.prod(shape))],
    )


def random_array(dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Random bits, so with NaNs of any payload, infinities and negative zeros."""
    if dtype == "bool":
        return np.random.default_rng(0).integers(0, 2, shape).astype(bool)
    content = np.random.default_rng(0).bytes(int(np.prod(shape)) * jnp.dtype(dtype).itemsize)
    return np.frombuffer(content, jnp.dtype(dtype)).reshape(shape)
