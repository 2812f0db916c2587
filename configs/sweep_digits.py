"""Handwritten digits at two learning rates and with two seeds: a first sweep on any machine.

jaxcls sweep configs/sweep_digits.py          all four, one after another
jaxcls sweep configs/sweep_digits.py --list   their names and numbers
jaxcls train configs/sweep_digits.py          the config that they vary
"""

import dataclasses
from collections.abc import Iterator

from jaxcls.config import Config, DataConfig, ModelConfig, OptimizerConfig
from jaxcls.config.augment import RandomCrop


def get_config() -> Config:
    return Config(
        model=ModelConfig(name="efficientnetv2_b0"),
        data=DataConfig(
            batch_size=64, image_size=32, canvas_size=8, crop_fraction=32 / 36, cache_gib=1
        ),
        augment=(RandomCrop(),),
        optimizer=OptimizerConfig(
            learning_rate=0.1, ema_decay=0.95, options={"momentum": 0.9, "nesterov": True}
        ),
        num_epochs=10,
    )


def sweep() -> Iterator[tuple[str, Config]]:
    config = get_config()
    for rate in (0.02, 0.1):
        optimizer = dataclasses.replace(config.optimizer, learning_rate=rate)
        for seed in (0, 1):
            variation = dataclasses.replace(config, optimizer=optimizer, seed=seed)
            yield f"rate={rate}-seed={seed}", variation
