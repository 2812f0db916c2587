"""ResNet-50 v1.5 on ImageNet with torchvision's recipe: SGD, 90 epochs, the rate falls by steps.

jaxcls prepare tfds:imagenet2012            (once; says which two files to fetch by hand)
jaxcls train configs/imagenet/resnet50.py --compute-dtype bfloat16

For one to eight accelerators: 256 images a step. With more, give a larger --data.batch-size, a
multiple of 32 for each device, and --optimizer.learning-rate 0.1 for each 256 images. Expected:
76.13 % top-1 (card of torchvision's ResNet50_Weights.IMAGENET1K_V1; the recipe is the default of
references/classification/train.py); the time is not published. Not yet trained with jaxcls.
As there, batch norm is over 32 images, which were one GPU's. What differs: biases and norms have no
weight decay here, and the scale of each block's last batch norm starts at 0. With model.name
resnet18, 34, 101 or 152 the source has 69.76, 73.31, 77.37 or 78.31 %.

MLPerf Training asks the same network for 75.9 %. Its reference uses large batches with LARS, label
smoothing 0.1, a linear warmup and a polynomial decay of power 2; jaxcls has the first two and the
warmup (--optimizer.name lars, --loss.label-smoothing 0.1, --schedule.warmup), but not that decay.
"""

from jaxcls.config import (
    Config,
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
)
from jaxcls.config.augment import RandomCropAndResize, RandomFlip


def get_config() -> Config:
    return Config(
        model=ModelConfig(name="resnet50", dropout=0.0, drop_path=0.0, batch_norm=32),
        data=DataConfig(
            source="tfds:imagenet2012",
            eval_split="validation",
            batch_size=256,
            image_size=224,
            canvas_size=448,
            crop_fraction=224 / 256,
            interpolation="bilinear",
            num_threads=6,
        ),
        augment=(
            RandomFlip(),
            RandomCropAndResize(area=(0.08, 1.0), aspect_of="pixels"),
        ),
        loss=LossConfig(name="softmax", label_smoothing=0.0),
        optimizer=OptimizerConfig(
            name="sgd", learning_rate=0.1, options={"momentum": 0.9}, weight_decay=1e-4
        ),
        schedule=ScheduleConfig(name="exponential", warmup=0.0, decay_rate=0.1, decay_epochs=30),
        num_epochs=90,
    )
