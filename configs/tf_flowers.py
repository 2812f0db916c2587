"""Flowers from scratch: 3,670 photos of five kinds.

jaxcls prepare tfds:tf_flowers              (once; downloads 229 MB)
jaxcls train configs/tf_flowers.py

The set has one split; its last tenth is kept for evaluation. Neither time nor accuracy has been
measured yet.
"""

from jaxcls.config import Config, DataConfig, ModelConfig, OptimizerConfig
from jaxcls.config.augment import RandAugment, RandomCropAndResize, RandomFlip


def get_config() -> Config:
    return Config(
        model=ModelConfig(name="efficientnetv2_b0", dropout=0.2, drop_path=0.2),
        data=DataConfig(
            source="tfds:tf_flowers",
            train_split="train[:90%]",
            eval_split="train[90%:]",
            batch_size=64,
            image_size=224,
            canvas_size=448,
        ),
        augment=(
            RandomFlip(),
            RandomCropAndResize(area=(0.25, 1.0), aspect_of="pixels"),
            RandAugment(num_ops=2, magnitude=0.3),
        ),
        optimizer=OptimizerConfig(
            name="sgd",
            learning_rate=0.05,
            options={"momentum": 0.9, "nesterov": True},
            weight_decay=5e-4,
            ema_decay=0.99,
        ),
        num_epochs=60,
    )
