"""Published trainings that several config files share, as functions from a network to a Config."""

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
FIRST_SIZE = 128  # pixels, of the first stage
FIRST_LEVEL = 5.0  # of RandAugment in the first stage, on the paper's scale
LEVEL = 0.03  # magnitude here for a level of the paper, by the shears: level 10 is 0.3
PAPER_OPS: tuple[OpName, ...] = (*GUIDE_OPS, "Posterize", "Invert", "Rotate", "Sharpness")

# TensorFlow's: the mean square starts at 1, and epsilon is under the root.
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
    """The training of EfficientNetV2's authors on ImageNet, with progressive learning.

    Tan and Le 2021 (https://arxiv.org/abs/2104.00298), sections 4 and 5.1 and table 6: four equal
    stages, from the first to the last of which image size, RandAugment, mixup and dropout rise
    evenly; what the paper leaves open is as in https://github.com/google/automl/efficientnetv2.
    RandAugment is this package's: shears are on the authors' scale, but rotations, for one, go to 9
    degrees at their level 10 and not to 30, colours only fade, Solarize adds first, and SolarizeAdd
    and Cutout are no operations of their own. All 1,281,167 photos are trained on, of which the
    authors kept 25,023 back.

    Args:
      name: of the network.
      image_size: height and width in the last stage, in pixels; 128 in the first.
      dropout: rate in the first and in the last stage.
      last_level: RandAugment's magnitude in the last stage on the paper's scale; 5 in the first.
      last_mixup: alpha of mixup in the last stage; 0 in the first.
      bicubic: whether evaluation resizes with the bicubic filter, as B0-B3 want it.
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
    """The fine-tuning of EfficientNetV2-S by its authors' code, with the paper's cosine.

    Hardly any dropout, a learning rate of 0.001 for 512 images, mirroring and cutout of noise.

    Args:
      weights: what it starts from.
      data: what it is tuned on, 512 images a step.
      warmup: share of all steps.
      weight_decay: on kernels.
      num_epochs, num_steps: the length; one of the two.
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
    """Even steps from the first stage to the last."""
    return tuple(
        round(first + (last - first) * stage / (NUM_STAGES - 1), 6) for stage in range(NUM_STAGES)
    )
