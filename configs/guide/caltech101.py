"""Caltech 101 from scratch, after the KerasCV guide "Classification with KerasCV".

jaxcls prepare tfds:caltech101              (once; downloads 137 MB)
jaxcls train configs/guide/caltech101.py

About 3,060 training and 6,080 test photos of many sizes, with 102 labels (101 things, and
background). As in the guide: EfficientNetV2-B1 at 224 with global max pooling and dropout 0.5,
batches of 32; flip, crop and resize, RandAugment, and one of CutMix and MixUp a batch; label
smoothing 0.1; SGD with momentum 0.9; warmup over 10 % of the steps, 0.01 held for 45 %, then a
cosine.

This config differs where the guide has mistakes. The guide counts 101 classes and 9,000 photos. Its
warmup starts at 0.05, above the target, which its own code ignores; here the warmup starts at 0.
Its decay of 5e-4 is taken as coupled weight decay. Neither time nor accuracy has been measured yet.
"""

from jaxcls.config import (
    Config,
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
)
from jaxcls.config.augment import Mix, RandAugment, RandomCropAndResize, RandomFlip


def get_config() -> Config:
    return Config(
        model=ModelConfig(name="efficientnetv2_b1", pooling="max", dropout=0.5),
        data=DataConfig(
            source="tfds:caltech101",
            batch_size=32,
            image_size=224,
            crop_fraction=1.0,
            canvas_size=320,  # photos are about 300x200, so nearly all fit unshrunk
        ),
        augment=(
            RandomFlip(),
            RandomCropAndResize(area=(0.8, 1.0), aspect=(0.9, 1.1)),
            RandAugment(num_ops=3, magnitude=0.3),
            Mix(),
        ),
        loss=LossConfig(label_smoothing=0.1),
        optimizer=OptimizerConfig(
            name="sgd", learning_rate=0.01, options={"momentum": 0.9}, weight_decay=5e-4
        ),
        schedule=ScheduleConfig(
            name="warmup_hold_cosine", start_learning_rate=0.0, warmup=0.1, hold=0.45
        ),
        num_epochs=100,
    )
