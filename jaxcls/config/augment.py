"""The schema of the augmentation: an ordered list of operations, each a frozen dataclass.

This module has the fields of the operations and checks their order; `jaxcls.augment` implements
them. A strength is one number, or one number per stage of the training, from first to last
(EfficientNetV2's progressive learning). Stages have equal lengths unless `stage_epochs` is set.
Changing a strength does not compile the step again.
"""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Literal, get_type_hints

from jaxcls.config.decoding import Choice, ConfigError, Range

Share = Annotated[float, Range(0, 1)]
Strength = Annotated[float | tuple[float, ...], Range(0, 1)]
Alpha = Annotated[float | tuple[float, ...], Range(0)]
Interval = Annotated[tuple[float, float], Range(0, 1)]
Aspect = Annotated[tuple[float, float], Range(0.01, 100)]

OpName = Literal[
    "AutoContrast",
    "Equalize",
    "Solarize",
    "Color",
    "Contrast",
    "Brightness",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Posterize",
    "Invert",
    "Rotate",
    "Sharpness",
]
# Operations that weigh red, green and blue; the others treat each channel alone.
NEED_RGB: tuple[OpName, ...] = ("Color",)
GUIDE_OPS: tuple[OpName, ...] = (
    "AutoContrast",
    "Equalize",
    "Solarize",
    "Color",
    "Contrast",
    "Brightness",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
)
TRIVIAL_OPS: tuple[OpName, ...] = (*GUIDE_OPS, "Posterize", "Rotate", "Sharpness")
AUGMIX_OPS: tuple[OpName, ...] = (
    "AutoContrast",
    "Equalize",
    "Posterize",
    "Rotate",
    "Solarize",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentation(Choice):
    """One entry of the list `augment`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomFlip(Augmentation):
    """Mirrors images; not suitable for digits or text."""

    horizontal: Share = 0.5
    """Probability of swapping left and right."""
    vertical: Share = 0.0
    """Probability of swapping top and bottom."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CenterCrop(Augmentation):
    """Crops the centre of the image and resizes it, as evaluation does."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomCrop(Augmentation):
    """Crops a random part of the image, in the shape of the image size, and resizes it.

    Its sides are the share `data.crop_fraction` of those of the largest such part of the image.
    """


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomCropAndResize(Augmentation):
    """Crops a random rectangle of the image and resizes it to the image size."""

    area: Annotated[tuple[float, float], Range(0.001, 1)] = (0.8, 1.0)
    """Smallest and largest area of the rectangle, as shares of the image's area."""
    aspect: Aspect = (3 / 4, 4 / 3)
    """Smallest and largest aspect ratio, width / height, of the rectangle."""
    aspect_of: Literal["image", "pixels"] = "image"
    """Aspect ratio 1 is the shape of the image, which is stretched into the image size (KerasCV),
    or that of the image size (torchvision, where it is a square). Sides that do not fit into the
    image are cut off to its own."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandAugment(Augmentation):
    """Applies a few operations, drawn at random for each image, with a common magnitude."""

    num_ops: Annotated[int, Range(1, 16)] = 3
    """Number of layers; each draws one operation."""
    magnitude: Strength = 0.5
    """Mean strength of the operations."""
    magnitude_std: Strength = 0.15
    """Standard deviation of the strength."""
    rate: Share = 10 / 11
    """Probability that a layer applies its operation."""
    ops: tuple[OpName, ...] = GUIDE_OPS
    """Operations to draw from, uniformly and with replacement."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrivialAugment(Augmentation):
    """Applies one operation, or none, with a strength drawn uniformly from 0 to 1."""

    ops: tuple[OpName, ...] = TRIVIAL_OPS
    """Operations to draw from; applying none is drawn as often as each of them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugMix(Augmentation):
    """Blends each image with a random mixture of several chains of operations."""

    magnitude: Strength = 0.3
    """Mean strength of the operations."""
    magnitude_std: Strength = 0.1
    """Standard deviation of the strength."""
    width: Annotated[int, Range(1, 8)] = 3
    """Number of chains."""
    depth: Annotated[int, Range(1, 8)] = 3
    """Largest length of a chain; lengths are drawn uniformly from 1 to this."""
    alpha: Annotated[float, Range(0.01)] = 1.0
    """Parameter of the Dirichlet and Beta distributions of the weights."""
    ops: tuple[OpName, ...] = AUGMIX_OPS
    """Operations to draw from."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cutout(Augmentation):
    """Covers a rectangle at a uniform position; a part of it may be outside the image."""

    size: Strength = 0.5
    """Largest height and width of the rectangle, as shares of the image's height and width."""
    fill: Literal["constant", "noise"] = "constant"
    """Fill the rectangle with one grey (constant), or each pixel with a random colour (noise)."""
    value: Share = 0.0
    """constant: the grey, from 0 (black) to 1 (white)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomErasing(Augmentation):
    """Covers a rectangle inside the image, in some of the images."""

    probability: Strength = 0.1
    """Probability that an image gets a rectangle."""
    area: Interval = (0.02, 0.33)
    """Smallest and largest area of the rectangle, as shares of the image's area."""
    aspect: Aspect = (0.3, 3.3)
    """Smallest and largest aspect ratio, width / height, of the rectangle."""
    fill: Literal["constant", "noise"] = "noise"
    """Fill the rectangle with one grey (constant), or each pixel with a random colour (noise)."""
    value: Share = 0.0
    """constant: the grey, from 0 (black) to 1 (white)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mix(Augmentation):
    """Mixes each image and label with those of a partner, by CutMix or MixUp for a whole batch.

    Partners have mirrored positions in a group of consecutive examples (the first and the last), so
    no image crosses devices. The pairs are random, because the order of the data is.
    """

    cutmix: Share = 0.5
    """Probability that a batch gets CutMix."""
    cutmix_alpha: Alpha = 1.0
    """Parameter of the Beta distribution of the image's own share; 0 replaces nothing."""
    mixup: Share = 0.5
    """Probability that a batch gets MixUp."""
    mixup_alpha: Alpha = 0.2
    """Parameter of the Beta distribution of the image's own share; 0 mixes nothing."""
    group_size: Annotated[int, Range(2)] = 2
    """Size of a group of consecutive examples; even, and divides a device's micro-batch."""


AnyAugmentation = (
    RandomFlip
    | CenterCrop
    | RandomCrop
    | RandomCropAndResize
    | RandAugment
    | TrivialAugment
    | AugMix
    | Cutout
    | RandomErasing
    | Mix
)
RESIZES = (CenterCrop, RandomCrop, RandomCropAndResize)


def mix_of(augment: Sequence[Augmentation]) -> Mix | None:
    """The entry `Mix` of the list, which comes last, or None."""
    return next((entry for entry in augment if isinstance(entry, Mix)), None)


def staged_strengths(augment: Sequence[Augmentation]) -> dict[str, tuple[float, ...]]:
    """The strengths that have one value per stage, by names such as augment.2.magnitude."""
    return {
        f"augment.{index}.{name}": value
        for index, entry in enumerate(augment)
        for name, hint in get_type_hints(type(entry), include_extras=True).items()
        if hint in (Strength, Alpha) and isinstance(value := getattr(entry, name), tuple)
    }


def check_augment(augment: Sequence[Augmentation], *, channels: int = 3) -> None:
    """Checks the order of the list, and the rules between the fields of an entry.

    Args:
      augment: the list.
      channels: of the images (`data.channels`).

    Raises:
      ConfigError: one is broken; the message names the entry as `augment.INDEX`.
    """
    names = [type(entry).__name__ for entry in augment]
    resizes = [index for index, entry in enumerate(augment) if isinstance(entry, RESIZES)]
    if len(resizes) != 1:
        known = ", ".join(kind.__name__ for kind in RESIZES)
        raise ConfigError(
            f"augment: needs exactly one of {known}, which resizes images to data.image_size; "
            f"got {', '.join(names) or 'nothing'}"
        )
    (resize,) = resizes
    for index, entry in enumerate(augment):
        field = f"augment.{index}"
        if isinstance(entry, RandomFlip) and index > resize + 1:
            raise ConfigError(
                f"{field}: RandomFlip comes after {names[index - 1]}; put it before or right "
                f"after {names[resize]} (augment.{resize}), which can mirror at no cost"
            )
        if index < resize and not isinstance(entry, RandomFlip):
            raise ConfigError(
                f"{field}: {names[index]} comes before {names[resize]} (augment.{resize}), where "
                f"images still have different sizes; put it after that"
            )
        ops = getattr(entry, "ops", ())
        for name in ops:
            if name in NEED_RGB and channels != 3:
                others = ", ".join(op for op in ops if op not in NEED_RGB)
                raise ConfigError(
                    f"{field}.ops: {name} needs red, green and blue, but data.channels is "
                    f"{channels}; leave it out of ops: {others or 'name others'}"
                )
            if ops.count(name) > 1:
                raise ConfigError(
                    f"{field}.ops: {name} is listed twice; list it once, because all operations "
                    f"are drawn equally often"
                )
        if isinstance(entry, Mix):
            if index != len(augment) - 1:
                raise ConfigError(
                    f"{field}: Mix comes before {names[index + 1]} (augment.{index + 1}); put it "
                    f"last"
                )
            if entry.group_size % 2:
                raise ConfigError(f"{field}.group_size: must be even, got {entry.group_size}")
            if entry.cutmix + entry.mixup > 1:
                raise ConfigError(
                    f"{field}.cutmix, {field}.mixup: the sum of these probabilities must be at "
                    f"most 1, got {entry.cutmix} + {entry.mixup}"
                )
