"""The training of the storm: it has all that a resumed run must restore, and takes seconds.

Moving averages, momentum, batch statistics and dropout are in the state; 24 steps of 32 digits are
half an epoch, and the order of the examples and every draw follow from the seed.
"""

from jaxcls.config import CheckpointConfig, Config, DataConfig, ModelConfig, OptimizerConfig
from jaxcls.config.augment import RandomCrop


def get_config() -> Config:
    return Config(
        model=ModelConfig(name="storm_network:Network"),
        data=DataConfig(source="digits", batch_size=32, image_size=8, canvas_size=8, prefetch=1),
        augment=(RandomCrop(),),
        optimizer=OptimizerConfig(
            learning_rate=0.05, options={"momentum": 0.9}, weight_decay=1e-4, ema_decay=0.9
        ),
        checkpoint=CheckpointConfig(every_steps=4, keep_latest=2),
        num_steps=24,
        eval_every_steps=8,
        log_every_steps=2,
        log_images=0,
    )
