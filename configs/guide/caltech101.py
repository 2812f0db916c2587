"""Caltech 101 from scratch, after the KerasCV guide "Classification with KerasCV".

jaxcls prepare tfds:caltech101              (once; downloads 137 MB)
jaxcls train configs/guide/caltech101.py

About 3,060 training and 6,080 test photos of 102 labels (101 things, and background). As in the
guide: EfficientNetV2-B0 at 224, batches of 32, SGD with momentum 0.9, a target learning rate of
0.01, held for 45 % of the steps, and decay 5e-4, here read as coupled weight decay. Its start_lr of
0.05 lies above the target and its code ignores it; ours starts at 0. The augmentation is
the guide's: flip, crop and resize, RandAugment at 0.3, and one of CutMix and MixUp a batch. Neither
time nor accuracy has been measured yet.
"""

from jaxcls.augment_config import Mix, RandAugment, RandomCropAndResize, RandomFlip
from jaxcls.config import Config, DataConfig, ModelConfig, OptimizerConfig, ScheduleConfig


def get_config() -> Config:
    return Config(
        model=ModelConfig(name="efficientnetv2_b0"),
        data=DataConfig(
            source="tfds:caltech101",
            batch_size=32,
            image_size=224,
            canvas_size=320,  # photos are about 300x200: nearly all lie unshrunk
        ),
        augment=(
            RandomFlip(),
            RandomCropAndResize(area=(0.8, 1.0), aspect=(0.9, 1.1)),
            RandAugment(num_ops=3, magnitude=0.3),
            Mix(),
        ),
        optimizer=OptimizerConfig(
            name="sgd", learning_rate=0.01, options={"momentum": 0.9}, weight_decay=5e-4
        ),
        schedule=ScheduleConfig(
            name="warmup_hold_cosine", start_learning_rate=0.0, warmup=0.1, hold=0.45
        ),
        num_epochs=100,
    )
