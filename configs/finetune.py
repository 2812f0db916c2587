"""Published weights, fine-tuned on your own photos.

jaxcls train configs/finetune.py --data.source folder:photos
jaxcls train configs/finetune.py --data.source folder:photos --model.weights PRESET
"""

from jaxcls.augment_config import RandAugment, RandomCropAndResize, RandomFlip
from jaxcls.config import (
    Config,
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
)


def get_config() -> Config:
    return Config(
        model=ModelConfig(
            name="auto",
            weights="efficientnetv2_b0_imagenet",
            head_scale=0.0,
            dropout=0.2,
            drop_path=0.1,
            freeze_batch_norm=True,
        ),
        data=DataConfig(
            source="folder:photos",
            batch_size=32,
            image_size=0,
            canvas_size=0,
            crop_fraction=0,
            interpolation="auto",
            last_batch="straddle",
        ),
        augment=(
            RandomFlip(),
            RandomCropAndResize(area=(0.35, 1.0), aspect_of="pixels"),
            RandAugment(num_ops=2, magnitude=0.2),
        ),
        loss=LossConfig(label_smoothing=0.1),
        optimizer=OptimizerConfig(
            name="adamw",
            learning_rate=1e-3,
            weight_decay=0.01,
            layer_decay=0.9,
            ema_decay=0.98,
        ),
        schedule=ScheduleConfig(name="cosine", warmup=0.1),
        num_epochs=10,
    )
