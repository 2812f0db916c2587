"""Cat or dog: the fine-tuning of the KerasCV guide "Classification with KerasCV".

jaxcls prepare tfds:cats_vs_dogs            (once; downloads 825 MB)
jaxcls train configs/guide/cats_vs_dogs.py  (the first time, fetches 29 MB of weights)

As in the guide: EfficientNetV2-B0 with ImageNet weights and a new classifier of two classes, photos
resized to 224 with their aspect kept and the centre cut out, batches of 32, plain SGD at 0.01, one
epoch. The guide trains on all 23,262 photos; here the last tenth is kept for evaluation. Neither
time nor accuracy has been measured yet.
"""

from jaxcls.config import (
    Config,
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
)
from jaxcls.config.augment import CenterCrop


def get_config() -> Config:
    return Config(
        model=ModelConfig(name="efficientnetv2_b0", weights="efficientnetv2_b0_imagenet"),
        data=DataConfig(
            source="tfds:cats_vs_dogs",
            train_split="train[:90%]",
            eval_split="train[90%:]",
            batch_size=32,
            image_size=224,
            canvas_size=448,
            crop_fraction=1.0,
        ),
        augment=(CenterCrop(),),
        loss=LossConfig(label_smoothing=0.0),
        optimizer=OptimizerConfig(name="sgd", learning_rate=0.01),
        schedule=ScheduleConfig(name="constant", warmup=0.0),
        num_epochs=1,
    )
