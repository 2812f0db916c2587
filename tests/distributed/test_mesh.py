import logging
import types
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, PartitionSpec

from jaxcls.config import Config, DataConfig, ModelConfig, OptimizerConfig, check_batch
from jaxcls.config.decoding import ConfigError
from jaxcls.distributed import mesh
from jaxcls.distributed.mesh import make_mesh, replicated, split_by_example, supports_triton


def config_of(batch_size: int, micro_batches: int = 1, batch_norm: int | None = None) -> Config:
    return Config(
        num_steps=1,
        model=ModelConfig(batch_norm=batch_norm or "global"),
        data=DataConfig(batch_size=batch_size),
        optimizer=OptimizerConfig(micro_batches=micro_batches),
    )


def test_the_mesh_has_one_automatic_axis_over_all_devices() -> None:
    mesh = make_mesh()
    assert mesh.shape == {"data": 8}
    assert mesh.axis_types == (AxisType.Auto,)
    assert list(mesh.devices) == jax.devices()


def test_a_mesh_of_chosen_devices_keeps_their_order() -> None:
    chosen = jax.devices()[2:6]
    assert list(make_mesh(chosen).devices) == chosen


def test_batches_are_split_in_order_and_the_rest_is_copied() -> None:
    mesh = make_mesh()
    values = np.arange(16)
    split = jax.device_put(values, split_by_example(mesh))
    assert split.sharding.spec == PartitionSpec("data")
    for place, shard in enumerate(split.addressable_shards):
        assert shard.device == mesh.devices[place]
        np.testing.assert_array_equal(shard.data, values[2 * place : 2 * place + 2])
    copies = jax.device_put(values, replicated(mesh)).addressable_shards
    assert len(copies) == 8
    for shard in copies:
        np.testing.assert_array_equal(shard.data, values)


@pytest.mark.parametrize(
    ("batch_size", "micro_batches", "message"),
    [
        (30, 1, "data.batch_size: 30 does not split evenly over 8 devices; use 24 or 32"),
        (3, 1, "data.batch_size: 3 does not split evenly over 8 devices; use 8"),
        (
            40,
            2,
            "data.batch_size: 40 does not split evenly over 8 devices x 2 micro-batches; "
            "use 32 or 48",
        ),
    ],
)
def test_a_batch_that_does_not_split_is_refused_with_sizes_that_do(
    batch_size: int, micro_batches: int, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        check_batch(config_of(batch_size, micro_batches), 8)
    assert str(caught.value) == message


def test_batch_norm_groups_stay_on_one_device() -> None:
    with pytest.raises(ConfigError) as caught:
        check_batch(config_of(64, 2, batch_norm=8), 8)
    assert str(caught.value) == (
        "model.batch_norm: groups of 8 do not divide the 4 examples that a device has in a "
        "micro-batch; use a divisor of 4"
    )
    check_batch(config_of(64, 2, batch_norm=4), 8)
    check_batch(config_of(64, 2, batch_norm=8), 4)


@pytest.mark.parametrize(
    ("extra", "platforms", "warnings"),
    [("cuda", "", 1), ("tpu", "", 1), ("cuda", "cpu", 0), (None, "", 0)],
)
def test_an_accelerator_that_is_idle_is_named_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    extra: str | None,
    platforms: str,
    warnings: int,
) -> None:
    (tmp_path / "device0").touch()
    files: dict[str, tuple[str, ...]] = dict.fromkeys(("cuda", "tpu"), (str(tmp_path / "gone*"),))
    if extra:
        files[extra] = (str(tmp_path / "gone*"), str(tmp_path / "device[0-9]*"))
    monkeypatch.setattr(mesh, "ACCELERATOR_FILES", files)
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    mesh.warn_of_idle_accelerator.cache_clear()
    with caplog.at_level(logging.WARNING, "jaxcls"):
        make_mesh()
        make_mesh()
    assert len(caplog.messages) == warnings
    assert all(f"the extra '{extra}'" in message for message in caplog.messages)


@settings(deadline=None)
@given(st.integers(1, 4096), st.integers(1, 64), st.integers(1, 8))
def test_the_sizes_that_are_advised_work_and_enclose_the_one_that_does_not(
    batch_size: int, num_devices: int, micro_batches: int
) -> None:
    try:
        check_batch(config_of(batch_size, micro_batches), num_devices)
    except ConfigError as error:
        advised = [int(size) for size in str(error).rpartition("use ")[2].split(" or ")]
        assert batch_size % (num_devices * micro_batches)
        assert max(advised) - batch_size < num_devices * micro_batches
        assert len(advised) == 1 or advised[0] < batch_size < advised[1]
        for size in advised:
            check_batch(config_of(size, micro_batches), num_devices)
    else:
        assert batch_size % (num_devices * micro_batches) == 0


@pytest.mark.parametrize(
    ("kind", "platform", "capability", "expected"),
    [
        ("NVIDIA H200", "gpu", "9.0", True),
        ("NVIDIA GeForce RTX 4090", "gpu", "8.9", True),
        ("NVIDIA RTX PRO 6000 Blackwell", "gpu", "12.0", True),
        ("Tesla T4", "gpu", "7.5", False),
        ("NVIDIA GeForce RTX 2080 Ti", "gpu", "7.5", False),
        ("GRID A100X-40C", "gpu", "8.0", False),
        ("AMD Instinct MI300X", "gpu", "gfx942", False),
        ("TPU v5 lite", "tpu", None, False),
    ],
)
def test_which_devices_take_kernels_of_triton(
    kind: str, platform: str, capability: str | None, expected: bool
) -> None:
    device = types.SimpleNamespace(
        device_kind=kind, platform=platform, compute_capability=capability
    )
    mesh: Any = types.SimpleNamespace(devices=np.array([device]))
    assert supports_triton(mesh) == expected


def test_a_cpu_takes_none() -> None:
    assert not supports_triton(make_mesh())
