"""EfficientNetV2-S on ImageNet with torchvision's recipe: SGD, TrivialAugment, repeats of an image.

jaxcls prepare tfds:imagenet2012            (once; says which two files to fetch by hand)
jaxcls train configs/imagenet/torchvision_s.py
jaxcls evaluate runs/torchvision_s --data.image-size 384

For eight accelerators: 1,024 images a step, 128 for each. Expected: 84.2 % top-1 at 384 px (card
of torchvision's EfficientNet_V2_S_Weights, which links the recipe); the time is not published. Not
yet trained with jaxcls. Their 600 epochs are 150 here, because each photo counts four times here.
They update the averaged weights once in 32 steps; here that is a decay of 0.999966 in each step.
Other differences: biases have no weight decay here; TrivialAugment rotates by up to 30 degrees, not
135, shifts by up to the whole side, not 32 pixels, and only fades colours.
"""

from jaxcls.config import (
    Config,
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
)
from jaxcls.config.augment import (
    Mix,
    RandomCropAndResize,
    RandomErasing,
    RandomFlip,
    TrivialAugment,
)


def get_config() -> Config:
    return Config(
        model=ModelConfig(
            name="efficientnetv2_s",
            padding="symmetric",
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            dropout=0.2,
            drop_path=0.2,
        ),
        data=DataConfig(
            source="tfds:imagenet2012",
            eval_split="validation",
            batch_size=1024,
            repeats=4,
            image_size=300,
            canvas_size=512,
            crop_fraction=1.0,
            num_threads=6,
        ),
        augment=(
            RandomFlip(),
            RandomCropAndResize(area=(0.08, 1.0), aspect_of="pixels"),
            TrivialAugment(),
            RandomErasing(probability=0.1, fill="constant", value=0.45),
            Mix(cutmix=0.5, cutmix_alpha=1.0, mixup=0.5, mixup_alpha=0.2),
        ),
        loss=LossConfig(name="softmax", label_smoothing=0.1),
        optimizer=OptimizerConfig(
            name="sgd",
            learning_rate=0.5,
            options={"momentum": 0.9},
            weight_decay=2e-5,
            ema_decay=0.999966,
        ),
        schedule=ScheduleConfig(name="cosine", start_learning_rate=0.005, warmup=5 / 600),
        num_epochs=150,
        compute_dtype="bfloat16",
    )
