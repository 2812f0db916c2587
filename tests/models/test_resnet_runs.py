"""A small ResNet through all that a training of EfficientNet can do, by the commands."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import Run
from PIL import Image

from jaxcls.models import registry
from jaxcls.models.resnet import ResNetSpec
from jaxcls.runs.restore import restore_run

SMALL = ResNetSpec(name="small_resnet", repeats=(1, 1), bottleneck=True, image_size=16)

CONFIG = """
from jaxcls.config import *
from jaxcls.config.augment import Mix, RandomCrop


def get_config():
    return Config(
        model=ModelConfig(name="small_resnet", dropout=(0.0, 0.2), drop_path=0.1, batch_norm=4),
        data=DataConfig(
            source="digits", batch_size=64, image_size=16, stage_image_sizes=(8, 16),
            canvas_size=8, crop_fraction=16 / 18,
        ),
        augment=(RandomCrop(), Mix(group_size=4)),
        optimizer=OptimizerConfig(
            learning_rate=0.05, ema_decay=0.9, layer_decay=0.9, micro_batches=2,
            freeze={"stem.*": 0.5}, rates={"block2.*": 0.5},
        ),
        parallel=ParallelConfig(state="fsdp"),
        checkpoint=CheckpointConfig(every_steps=2),
        num_steps=4,
        log_images=0,
    )
"""


@pytest.mark.long
def test_it_trains_resumes_and_is_used(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.SPECS, SMALL.name, SMALL)
    Path("config.py").write_text(CONFIG)
    assert run("train", "config.py", "--workdir", "run").status == 0
    shutil.rmtree("run/checkpoints/4")
    resumed = run("train", "config.py", "--workdir", "run")
    assert resumed.status == 0, resumed.err
    assert "resuming after step 2" in resumed.err
    assert restore_run("run").step == 4

    metrics = json.loads(run("evaluate", "run", "--json").out.splitlines()[-1])
    assert metrics["num_examples"] == 355
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save("a.png")
    predicted = run("predict", "run", "a.png", "--format", "json")
    assert predicted.status == 0, predicted.err

    assert run("export", "run", "-o", "exported", "--platforms", "cpu").status == 0
    exported = run("evaluate", "exported/weights.safetensors", "--data.source", "digits", "--json")
    assert json.loads(exported.out.splitlines()[-1])["loss"] == pytest.approx(metrics["loss"])
    assert run("convert", "run", "-o", "weights.safetensors").status == 0
    tuned = run(
        *("train", "config.py", "--workdir", "tuned", "--num-steps", "1"),
        *("--model.weights", "weights.safetensors"),
    )
    assert tuned.status == 0, tuned.err

    report = run("compile", "config.py", "--json")
    assert report.status == 0, report.err
    assert json.loads(report.out.splitlines()[-1])["fits"]
