import json
from pathlib import Path
from typing import Any

import pytest

from jaxcls.commands.cli import main
from jaxcls.config import Config
from jaxcls.measure import rehearsal
from jaxcls.measure.gpus import GPUS
from jaxcls.measure.rehearsal import (
    bytes_wanted,
    describe_rehearsal,
    largest_batch,
    rehearse,
)
from jaxcls.measure.tpus import TPUS

CONFIG = """
from jaxcls.config import Config, DataConfig, ModelConfig
def get_config():
    return Config(model=ModelConfig(name='tiny'), num_steps=1, data=DataConfig(
        source='tfds:not_prepared', batch_size=8, image_size=16, canvas_size=16))
"""


def test_local_devices_are_rehearsed_without_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tiny.py"
    path.write_text(CONFIG)
    arguments = ["compile", str(path), "--num-classes", "10", "--batch-per-chip", "2", "--json"]
    assert main(arguments) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["fits"]
    assert report["batch_per_device"] == 2
    assert report["num_devices"] == 8
    assert report["collectives"]["all-reduce"] > 1  # global batch norm
    assert report["largest_batch_per_device"] is None
    parts = ("parameter", "optimizer", "batch", "activation", "code")
    known = sum(report[f"{part}_bytes_per_device"] for part in parts)
    assert report["memory_bytes_per_device"] == pytest.approx(known, rel=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "or give --num-classes"),
        (["--num-classes", "10", "--data.batch-size", "12"], "does not split evenly"),
        (["--num-classes", "0"], "--num-classes: must be at least 1"),
        (["--topology", "v5e:3x3"], "unknown topology 'v5e:3x3'"),
        (["--num-classes", "10", "--search"], "memory size of these devices is unknown"),
    ],
)
def test_a_mistake_is_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    path = tmp_path / "tiny.py"
    path.write_text(CONFIG)
    assert main(["compile", str(path), *options]) == 2
    assert message in capsys.readouterr().err


def test_a_step_that_is_too_large_says_what_would_help(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsal, "_local_limit", lambda device: 1000)
    report = rehearse(tiny_config, num_classes=10)
    assert not report["fits"]
    text = describe_rehearsal(report)
    assert "DOES NOT FIT" in text
    for remedy in ("--model.remat", "--optimizer.micro-batches 2", "--parallel.state fsdp"):
        assert remedy in text


def test_the_estimate_names_the_cycles_only_where_the_clock_is_known(tiny_config: Config) -> None:
    report = rehearse(tiny_config, num_classes=10, chip=TPUS["v5e"])
    for name, named in (("v5e", True), ("v6e", False)):
        clock = TPUS[name].cycles_per_second
        text = describe_rehearsal({**report, "cycles": 1e6, "cycles_per_second": clock})
        assert ("published figures and the cycles" in text) is named


@pytest.mark.parametrize("limit", [1000, 1700, 100_000, 350])
@pytest.mark.parametrize("unit", [1, 4])
@pytest.mark.parametrize("first", [8, 128])
def test_the_search_finds_the_largest_batch(limit: int, unit: int, first: int) -> None:
    attempts = []

    def attempt(batch: int) -> dict[str, Any]:
        attempts.append(batch)
        memory = 300 + 10 * batch
        return {"fits": memory <= limit, "memory_bytes_per_device": memory}

    found = largest_batch(attempt, unit=unit, limit=limit, first=(first, attempt(first)))
    assert found == (limit - 300) // 10 // unit * unit
    assert len(attempts) <= 1 + rehearsal.MAX_SEARCH_COMPILES


def test_a_gpu_fits_what_jax_reserves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    assert rehearsal._limit_of(TPUS["v5e"]) == 16 * 2**30
    assert rehearsal._limit_of(GPUS["h200"]) == int(0.75 * 151397597184)
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")
    assert rehearsal._limit_of(GPUS["h200"]) == int(0.9 * 151397597184)
    assert rehearsal._limit_of(TPUS["v5e"]) == 16 * 2**30


def test_the_compilers_complaint_is_read() -> None:
    message = "RESOURCE_EXHAUSTED: Ran out of memory in hbm. Used 20.50G of 15.75G hbm."
    assert bytes_wanted(message) == int(20.5 * 2**30)
    assert bytes_wanted("RESOURCE_EXHAUSTED: something else") is None


def test_published_figures() -> None:
    """GiB of memory, GB a second and bfloat16 TFLOP a second, of cloud.google.com/tpu/docs."""
    figures = {
        name: (chip.memory_bytes / 2**30, chip.bandwidth / 1e9, chip.bfloat16_rate / 1e12)
        for name, chip in TPUS.items()
    }
    assert figures == {
        "v4": (32, 1228, 275),
        "v5e": (16, 819, 197),
        "v5p": (95, 2765, 459),
        "v6e": (32, 1640, 918),
        "tpu7x": (96, 3690, 1153.5),  # half a chip, which is a device
    }
