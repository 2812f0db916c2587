"""EfficientNetV2-B0 on ImageNet at 224, after KerasCV's basic_training recipe.

jaxcls prepare tfds:imagenet2012            (once; says which two files to fetch by hand)
jaxcls train configs/imagenet/kerascv_b0.py --compute-dtype bfloat16

For eight accelerators: 128 images and a learning rate of 0.05 for each of them. The recipe reports
75.27 % top-1; the 300 epochs are our choice. Neither time nor accuracy has been measured here yet.
A batch of canvases takes 0.2 GB, and each of data.num_threads threads makes one.
"""

from jaxcls.config import Config, DataConfig, LossConfig, ModelConfig, OptimizerConfig
from jaxcls.config.augment import Mix, RandAugment, RandomCropAndResize, RandomFlip

NUM_DEVICES = 8


def get_config() -> Config:
    return Config(
        model=ModelConfig(name="efficientnetv2_b0"),
        data=DataConfig(
            source="tfds:imagenet2012",
            eval_split="validation",
            batch_size=128 * NUM_DEVICES,
            image_size=224,
            canvas_size=256,  # enough: a crop has 0.8 of the area or more
            num_threads=6,
        ),
        augment=(
            RandomFlip(),
            RandomCropAndResize(area=(0.8, 1.0), aspect=(3 / 4, 4 / 3)),
            RandAugment(num_ops=3, magnitude=0.3),
            Mix(),
        ),
        loss=LossConfig(name="softmax", label_smoothing=0.1),
        optimizer=OptimizerConfig(
            name="sgd",
            learning_rate=0.05 * NUM_DEVICES,
            options={"momentum": 0.9},
            weight_decay=5e-4,
            ema_decay=0.9999,
        ),
        num_epochs=300,
    )
