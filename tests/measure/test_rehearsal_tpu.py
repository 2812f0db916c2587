"""A rehearsal through the TPU's own compiler; needs the extra tpu-compiler."""

import subprocess
import sys
from pathlib import Path

import pytest
from rehearsals import BARE, options_of, rehearsal


@pytest.mark.parametrize(
    ("topology", "devices"), [("v4:2x2x1", 4), ("v5p:2x2x2", 8), ("v6e:2x4", 8), ("tpu7x:2x2x1", 8)]
)
def test_the_devices_of_a_topology_are_those_that_jax_has_there(
    topology: str, devices: int
) -> None:
    pytest.importorskip("libtpu")
    code = f"""
from jaxcls.measure.topologies import find_topology
topology = find_topology({topology!r})
topology.prepare_compiler()
print(len(topology.devices()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == [str(devices)], done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("state", ["replicated", "fsdp"])
def test_a_small_topology_is_rehearsed(tmp_path: Path, state: str) -> None:
    pytest.importorskip("libtpu")
    options = options_of(topology="v5e:2x2", batch_per_chip=16, parallel__state=state)
    report = rehearsal(tmp_path, *options)
    assert report["fits"]
    assert report["num_devices"] == 4
    assert 0 < report["parameter_bytes_per_device"] < report["memory_bytes_per_device"] < 16 * 2**30
    assert 0 < report["hbm_bytes_per_image"] < report["bytes_per_image"] < 6e6
    assert 0 < report["cycles"] < 1e6
    assert report["flops_per_image"] > 0
    assert report["estimated_step_seconds"] >= report["cycles"] / 1.5e9
    assert report["largest_batch_per_device"] is None
    assert "all-to-all" not in report["collectives"]
    if state == "fsdp":  # parts of the kernels' gradients go round; one image's features are more
        assert report["collective_bytes"]["collective-permute"] < 16 * 16 * 16 * 32 * 2
    if state == "replicated":
        assert set(report["collectives"]) == {"all-reduce"}
        assert report["collectives"]["all-reduce"] <= 3


@pytest.mark.long
def test_b0_without_augmentation(tmp_path: Path) -> None:
    """Keras 3 moves 192 MB an image, as the compiler counts it in all memories."""
    pytest.importorskip("libtpu")
    options = options_of(
        compute_dtype="bfloat16",
        data__canvas_size=224,
        data__crop_fraction=1.0,
        batch_per_chip=128,
        topology="v5e:2x2",
    )
    report = rehearsal(tmp_path, *options, text=BARE)
    assert report["bytes_per_image"] <= 166e6
    assert report["hbm_bytes_per_image"] <= 41e6
    assert report["cycles"] <= 40e6
