"""Handwritten digits from scratch: a first run on any machine.

jaxcls train configs/digits.py

On two CPU cores it takes under 4 minutes and classifies at least 97 % of the test digits correctly.
With seed 0, 98.0 to 99.4 % were measured: machines and versions of JAX round differently.
"""

from jaxcls.config import CheckpointConfig, Config, DataConfig, ModelConfig, OptimizerConfig
from jaxcls.config.augment import RandomCrop


def get_config() -> Config:
    return Config(
        model=ModelConfig(name="efficientnetv2_b0", dropout=0.2, drop_path=0.1),
        data=DataConfig(
            source="digits",
            batch_size=64,
            image_size=32,
            canvas_size=8,
            crop_fraction=32 / 36,
            cache_gib=1,
            prefetch=8,
        ),
        augment=(RandomCrop(),),  # no flips: a mirrored digit is no digit
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
