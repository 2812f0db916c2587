"""A rehearsal through the TPU's own compiler; needs the extra tpu-compiler."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from small_network import CONFIG


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
    config = tmp_path / "tiny.py"
    config.write_text(CONFIG)
    command = [sys.executable, "-m", "jaxcls", "compile", str(config), "--topology", "v5e:2x2"]
    options = ["--batch-per-chip", "16", "--json", "--parallel.state", state]
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["fits"]
    assert report["num_devices"] == 4
    assert 0 < report["parameter_bytes_per_device"] < report["memory_bytes_per_device"] < 16 * 2**30
    assert report["bytes_per_image"] > 0
    assert report["flops_per_image"] > 0
    assert report["largest_batch_per_device"] is None
    assert "all-to-all" not in report["collectives"]
    if state == "fsdp":  # parts of the kernels' gradients go round; one image's features are more
        assert report["collective_bytes"]["collective-permute"] < 16 * 16 * 16 * 32 * 2
    if state == "replicated":
        assert set(report["collectives"]) == {"all-reduce"}
        assert report["collectives"]["all-reduce"] <= 3
