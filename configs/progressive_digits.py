"""Handwritten digits with progressive learning, and the same training at one image size.

jaxcls train configs/progressive_digits.py    16, then 24, then 32 pixels
jaxcls sweep configs/progressive_digits.py    that and 32 pixels throughout, with three seeds each
jaxcls runs runs/progressive_digits
"""

import dataclasses
from collections.abc import Iterator

from jaxcls.config import CheckpointConfig, Config, DataConfig, ModelConfig, OptimizerConfig
from jaxcls.config.augment import RandomCrop


def get_config() -> Config:
    return Config(
        model=ModelConfig(name="efficientnetv2_b0", dropout=(0.1, 0.15, 0.2), drop_path=0.1),
        data=DataConfig(
            source="digits",
            batch_size=64,
            image_size=32,
            stage_image_sizes=(16, 24, 32),
            canvas_size=8,
            crop_fraction=32 / 36,
            cache_gib=1,
            prefetch=8,
        ),
        augment=(RandomCrop(),),
        optimizer=OptimizerConfig(
            name="sgd",
            learning_rate=0.1,
            options={"momentum": 0.9, "nesterov": True},
            weight_decay=5e-4,
            ema_decay=0.99,
        ),
        checkpoint=CheckpointConfig(every_steps=110),
        num_epochs=40,
        eval_every_steps=110,
    )


def sweep() -> Iterator[tuple[str, Config]]:
    progressive = get_config()
    fixed = dataclasses.replace(
        progressive,
        model=dataclasses.replace(progressive.model, dropout=0.2),
        data=dataclasses.replace(progressive.data, stage_image_sizes=()),
    )
    for seed in range(3):
        yield f"progressive-seed={seed}", dataclasses.replace(progressive, seed=seed)
        yield f"fixed-seed={seed}", dataclasses.replace(fixed, seed=seed)
