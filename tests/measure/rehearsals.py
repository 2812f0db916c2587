"""Rehearsals for tests: their configs, and the command.

`CONFIG` is a small network with all kinds of blocks, which compiles in seconds. `BARE` is the
config of EfficientNetV2-B0 without augmentation and moving averages.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

CONFIG = """
from jaxcls.config.augment import Mix, RandomCropAndResize, RandomFlip
from jaxcls.config import Config, DataConfig, ModelConfig, OptimizerConfig
from jaxcls.models import registry
from jaxcls.models.efficientnet import ModelSpec, BlockSpec

registry.SPECS["tiny"] = ModelSpec(
    name="tiny", stem_filters=16, head_filters=64, image_size=32,
    mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5),
    blocks=(
        BlockSpec(fused=True, repeats=1, filters=16, expansion=1, stride=1, se_ratio=0.0),
        BlockSpec(fused=False, repeats=1, filters=32, expansion=2, stride=2, se_ratio=0.25),
    ),
)

def get_config():
    return Config(
        model=ModelConfig(name="tiny", batch_norm=8),
        data=DataConfig(source="tfds:imagenet2012", image_size=32, canvas_size=40),
        augment=(RandomFlip(), RandomCropAndResize(), Mix()),
        optimizer=OptimizerConfig(options={"momentum": 0.9}, ema_decay=0.99),
        compute_dtype="bfloat16",
        num_epochs=1,
    )
"""

BARE = """
import dataclasses, runpy
from jaxcls.config.augment import CenterCrop

def get_config():
    config = runpy.run_path("configs/imagenet/kerascv_b0.py")["get_config"]()
    optimizer = dataclasses.replace(config.optimizer, ema_decay=0.0)
    return dataclasses.replace(config, augment=(CenterCrop(),), optimizer=optimizer)
"""


def rehearsal(folder: Path, *options: str, text: str = CONFIG) -> dict[str, Any]:
    config = folder / "tiny.py"
    config.write_text(text)
    command = [sys.executable, "-m", "jaxcls", "compile", str(config), "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def options_of(**options: object) -> list[str]:
    return [
        word
        for name, value in options.items()
        for word in (f"--{name.replace('__', '.').replace('_', '-')}", str(value))
    ]
