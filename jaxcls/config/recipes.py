"""Published recipes that several config files share, as functions that return a `Config`."""

from jaxcls.config.augment import (
    GUIDE_OPS,
    AnyAugmentation,
    CenterCrop,
    Cutout,
    Mix,
    OpName,
    RandAugment,
    RandomCropAndResize,
    RandomFlip,
)
from jaxcls.config.schema import (
    Config,
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
)

NUM_STAGES = 4
FIRST_SIZE = 128  # height and width in the first stage, in pixels
FIRST_LEVEL = 5.0  # RandAugment's magnitude in the first stage, on the paper's scale
LEVEL = 0.03  # magnitude here per level of the paper; for shears, level 10 is 0.3
PAPER_OPS: tuple[OpName, ...] = (*GUIDE_OPS, "Posterize", "Invert", "Rotate", "Sharpness")

# As in TensorFlow: the mean square starts at 1, and epsilon is under the square root.
RMSPROP = {"decay": 0.9, "momentum": 0.9, "eps": 1e-3, "initial_scale": 1.0}


def efficientnetv2(
    name: str,
    *,
    image_size: int,
    dropout: tuple[float, float],
    last_level: float,
    last_mixup: float = 0.0,
    bicubic: bool = False,
) -> Config:
    """The recipe of EfficientNetV2's authors for ImageNet, with progressive learning.

    Tan and Le 2021 (https://arxiv.org/abs/2104.00298), sections 4 and 5.1 and table 6: in four
    equal stages, image size, RandAugment, mixup and dropout rise evenly. Details that the paper
    does not give are from https://github.com/google/automl/efficientnetv2.

    There are two differences. RandAugment is that of this package: shears have the authors' scale,
    but rotations reach 9 degrees at their level 10 instead of 30, colours only fade, Solarize adds
    first, and SolarizeAdd and Cutout are not operations. And all 1,281,167 photos are used for
    training, while the authors held out 25,023 of them.

    Args:
      name: the name of the network.
      image_size: height and width in the last stage, in pixels; 128 in the first.
      dropout: the dropout rates in the first and in the last stage.
      last_level: RandAugment's magnitude in the last stage on the paper's scale; 5 in the first.
      last_mixup: alpha of mixup in the last stage; 0 in the first.
      bicubic: whether evaluation resizes with the bicubic filter, which B0-B3 need.
    """
    batch_size = 4096
    augment: tuple[AnyAugmentation, ...] = (
        RandomFlip(),
        RandomCropAndResize(area=(0.05, 1.0), aspect_of="pixels"),
        RandAugment(
            num_ops=2,
            magnitude=_rise(FIRST_LEVEL * LEVEL, last_level * LEVEL),
            magnitude_std=0.0,
            rate=1.0,
            ops=PAPER_OPS,
        ),
    )
    if last_mixup:
        augment += (Mix(cutmix=0.0, mixup=1.0, mixup_alpha=_rise(0.0, last_mixup)),)
    return Config(
        model=ModelConfig(name=name, dropout=_rise(*dropout), drop_path=0.2),
        data=DataConfig(
            source="tfds:imagenet2012",
            eval_split="validation",
            batch_size=batch_size,
            image_size=image_size,
            stage_image_sizes=tuple(round(size) for size in _rise(FIRST_SIZE, image_size)),
            canvas_size=512,
            crop_fraction=image_size / (image_size + 32),
            interpolation="bicubic" if bicubic else "bilinear",
            num_threads=6,
        ),
        augment=augment,
        loss=LossConfig(name="softmax", label_smoothing=0.1),
        optimizer=OptimizerConfig(
            name="rmsprop",
            learning_rate=0.016 * batch_size / 256,
            options=dict(RMSPROP),
            weight_decay=1e-5,
            ema_decay=0.9999,
        ),
        schedule=ScheduleConfig(
            name="exponential", warmup=5 / 350, decay_rate=0.97, decay_epochs=2.4
        ),
        num_epochs=350,
        compute_dtype="bfloat16",
    )


def efficientnetv2_fine_tuning(
    weights: str,
    *,
    data: DataConfig,
    warmup: float,
    weight_decay: float = 0.0,
    num_epochs: float | None = None,
    num_steps: int | None = None,
) -> Config:
    """The recipe of EfficientNetV2-S' authors' code for fine-tuning, with the paper's cosine.

    It has hardly any dropout, a learning rate of 0.001 for 512 images, mirroring, and cutout with
    noise.

    Args:
      weights: the weights to start from.
      data: the data to fine-tune on, 512 images per step.
      warmup: the share of all steps that the warmup takes.
      weight_decay: the weight decay on kernels.
      num_epochs: the length of the training in epochs; give this or `num_steps`.
      num_steps: the length of the training in steps.
    """
    return Config(
        model=ModelConfig(name="efficientnetv2_s", weights=weights, dropout=1e-6, drop_path=0.2),
        data=data,
        augment=(RandomFlip(), CenterCrop(), Cutout(size=0.5, fill="noise")),
        loss=LossConfig(name="softmax", label_smoothing=0.1),
        optimizer=OptimizerConfig(
            name="rmsprop",
            learning_rate=0.0005 * 512 / 256,
            options=dict(RMSPROP),
            weight_decay=weight_decay,
            ema_decay=0.9996,
        ),
        schedule=ScheduleConfig(name="cosine", warmup=warmup),
        num_epochs=num_epochs,
        num_steps=num_steps,
        compute_dtype="bfloat16",
    )


def _rise(first: float, last: float) -> tuple[float, ...]:
    """Evenly spaced values from the first stage to the last."""
    return tuple(
        round(first + (last - first) * stage / (NUM_STAGES - 1), 6) for stage in range(NUM_STAGES)
    )
