"""A folder of your own photos, from scratch: photos/train/CLASS/* or photos/CLASS/*.

jaxcls data configs/photos.py               (what is in it)
jaxcls train configs/photos.py
jaxcls train configs/photos.py --data.source folder:ANOTHER

A starting point for some thousand photos: EfficientNetV2-B0 at 224 pixels, SGD, 60 epochs. Time and
accuracy depend on the photos.
"""

from jaxcls.config import Config, DataConfig, ModelConfig, OptimizerConfig
from jaxcls.config.augment import RandAugment, RandomCropAndResize, RandomFlip


def get_config() -> Config:
    return Config(
        model=ModelConfig(name="efficientnetv2_b0", dropout=0.2, drop_path=0.2),
        data=DataConfig(source="folder:photos", batch_size=64, image_size=224, canvas_size=448),
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
