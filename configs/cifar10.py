"""CIFAR-10 from scratch: 50,000 small images of ten classes.

jaxcls prepare tfds:cifar10                 (once; downloads 170 MB and needs the extra `prepare`)
jaxcls train configs/cifar10.py

EfficientNetV2-B0 with the 32-pixel images enlarged to 64, SGD, 50 epochs. The decoded set takes
146 MiB and is kept in memory. Neither time nor accuracy has been measured yet.
"""

from jaxcls.config import Config, DataConfig, ModelConfig, OptimizerConfig


def get_config() -> Config:
    return Config(
        model=ModelConfig(name="efficientnetv2_b0", dropout=0.2, drop_path=0.1),
        data=DataConfig(
            source="tfds:cifar10",
            batch_size=256,
            image_size=64,
            canvas_size=32,
            crop_fraction=64 / 72,
            cache_gib=1,
        ),
        optimizer=OptimizerConfig(
            name="sgd",
            learning_rate=0.1,
            options={"momentum": 0.9, "nesterov": True},
            weight_decay=5e-4,
            ema_decay=0.999,
        ),
        num_epochs=50,
    )
