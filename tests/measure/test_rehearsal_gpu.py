"""Rehearsals through the GPU's own compiler; need the extra gpu-compiler."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from small_network import CONFIG

pytest.importorskip("jax_plugins.xla_cuda13")


def rehearsal(folder: Path, *options: str) -> dict[str, Any]:
    config = folder / "tiny.py"
    config.write_text(CONFIG)
    command = [sys.executable, "-m", "jaxcls", "compile", str(config), "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("state", ["replicated", "fsdp"])
def test_gpus_are_rehearsed_and_no_image_moves(tmp_path: Path, state: str) -> None:
    report = rehearsal(
        tmp_path, "--topology", "h200:2", "--batch-per-chip", "16", "--parallel.state", state
    )
    assert report["fits"]
    assert report["num_devices"] == 2
    assert 0 < report["parameter_bytes_per_device"] < report["memory_bytes_per_device"] < 2**30
    assert report["flops_per_image"] > 0
    assert report["estimated_step_seconds"] > report["kernels"] * 1e-6
    assert set(report["collectives"]) <= {"all-reduce", "all-gather", "reduce-scatter"}
    moved = report["collective_bytes"].get("all-gather", 0)
    assert moved <= 2 * report["parameter_bytes_per_device"]  # parameters, and nothing else
    if state == "replicated":
        assert set(report["collectives"]) == {"all-reduce"}
        assert report["collectives"]["all-reduce"] <= 3
