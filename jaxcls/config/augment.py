"""The schema of the augmentation: an ordered list of operations, each a frozen dataclass.

What the operations do is in `jaxcls.augment`; here are their fields, and which order makes sense.
A strength may be one number, or one for each stage of the training, first to last (EfficientNetV2's
progressive learning). The stages are equal unless `stage_epochs` of the config says how long they
are. A strength's change compiles nothing again.
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
    """Mirrors images. Not for digits or text."""

    horizontal: Share = 0.5
    """Probability of swapping left and right."""
    vertical: Share = 0.0
    """Probability of swapping top and bottom."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CenterCrop(Augmentation):
    """Resizes the shorter side and cuts the centre, as evaluation does."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomCrop(Augmentation):
    """Resizes the shorter side and cuts a window at a random place.

    The window keeps a share `data.crop_fraction` of the shorter side.
    """


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomCropAndResize(Augmentation):
    """Cuts a random part of the image and resizes it, whatever its shape, to the image size."""

    area: Annotated[tuple[float, float], Range(0.001, 1)] = (0.8, 1.0)
    """Smallest and largest share of the image's area that the part has."""
    aspect: Aspect = (3 / 4, 4 / 3)
    """Smallest and largest aspect, width / height, of the part."""
    aspect_of: Literal["image", "pixels"] = "image"
    """Aspect 1 is the shape of the image (KerasCV), or a square of pixels (torchvision)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandAugment(Augmentation):
    """Applies a few operations, drawn for each image, at a common magnitude."""

    num_ops: Annotated[int, Range(1, 16)] = 3
    """Layers; each draws one operation."""
    magnitude: Strength = 0.5
    """Mean strength."""
    magnitude_std: Strength = 0.15
    """Standard deviation of the strength."""
    rate: Share = 10 / 11
    """Probability that a layer does anything."""
    ops: tuple[OpName, ...] = GUIDE_OPS
    """What is drawn from, uniformly and with replacement."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrivialAugment(Augmentation):
    """Applies one operation, or none, at a strength drawn uniformly from 0 to 1."""

    ops: tuple[OpName, ...] = TRIVIAL_OPS
    """What is drawn from, together with doing nothing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugMix(Augmentation):
    """Blends each image with a random mixture of several chains of operations."""

    magnitude: Strength = 0.3
    """Mean strength."""
    magnitude_std: Strength = 0.1
    """Standard deviation of the strength."""
    width: Annotated[int, Range(1, 8)] = 3
    """Chains."""
    depth: Annotated[int, Range(1, 8)] = 3
    """Longest chain; lengths are drawn from 1 up to this."""
    alpha: Annotated[float, Range(0.01)] = 1.0
    """Of the Dirichlet and Beta distributions of the weights."""
    ops: tuple[OpName, ...] = AUGMIX_OPS
    """What is drawn from."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cutout(Augmentation):
    """Covers a rectangle, whose centre is uniform; it may stick out of the image."""

    size: Strength = 0.5
    """Largest height and width of the rectangle, as shares of the image's."""
    fill: Literal["constant", "noise"] = "constant"
    """Paint it one grey, or every pixel another colour."""
    value: Share = 0.0
    """The grey of fill "constant"."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomErasing(Augmentation):
    """Covers a rectangle inside the image, in some of the images."""

    probability: Strength = 0.1
    """Of covering anything."""
    area: Interval = (0.02, 0.33)
    """Smallest and largest share of the image's area."""
    aspect: Aspect = (0.3, 3.3)
    """Smallest and largest width / height."""
    fill: Literal["constant", "noise"] = "noise"
    """Paint it one grey, or every pixel another colour."""
    value: Share = 0.0
    """The grey of fill "constant"."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mix(Augmentation):
    """Mixes each image and its label with a partner's: one of CutMix and MixUp a batch.

    The partner is the mirror place in a group of consecutive examples (first with last), so that no
    image crosses devices. The order of the data is random, hence so are the pairs.
    """

    cutmix: Share = 0.5
    """Probability that a batch gets CutMix."""
    cutmix_alpha: Alpha = 1.0
    """Of the Beta distribution of the share that stays; 0 cuts nothing."""
    mixup: Share = 0.5
    """Probability that a batch gets MixUp."""
    mixup_alpha: Alpha = 0.2
    """Of the Beta distribution of the share that stays; 0 mixes nothing."""
    group_size: Annotated[int, Range(2)] = 2
    """Consecutive examples that are paired; even, and divides a device's micro-batch."""


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
    """The list's mixer, which is its last entry if there is one."""
    return next((entry for entry in augment if isinstance(entry, Mix)), None)


def staged_strengths(augment: Sequence[Augmentation]) -> dict[str, tuple[float, ...]]:
    """The strengths that have one value a stage, by names such as augment.2.magnitude."""
    return {
        f"augment.{index}.{name}": value
        for index, entry in enumerate(augment)
        for name, hint in get_type_hints(type(entry), include_extras=True).items()
        if hint in (Strength, Alpha) and isinstance(value := getattr(entry, name), tuple)
    }


def check_augment(augment: Sequence[Augmentation]) -> None:
    """Checks the order of the list, and rules between an entry's fields.

    Raises:
      ConfigError: names the entry as `augment.INDEX`.
    """
    names = [type(entry).__name__ for entry in augment]
    resizes = [index for index, entry in enumerate(augment) if isinstance(entry, RESIZES)]
    if len(resizes) != 1:
        known = ", ".join(kind.__name__ for kind in RESIZES)
        raise ConfigError(
            f"augment: needs exactly one of {known}, which brings images to data.image_size; "
            f"got {', '.join(names) or 'nothing'}"
        )
    (resize,) = resizes
    for index, entry in enumerate(augment):
        field = f"augment.{index}"
        if isinstance(entry, RandomFlip) and index > resize + 1:
            raise ConfigError(
                f"{field}: RandomFlip stands after {names[index - 1]}; put it before or right "
                f"after {names[resize]} (augment.{resize}), which mirrors at no cost"
            )
        if index < resize and not isinstance(entry, RandomFlip):
            raise ConfigError(
                f"{field}: {names[index]} stands before {names[resize]} (augment.{resize}), where "
                f"images still differ in size; put it after that"
            )
        ops = getattr(entry, "ops", ())
        for name in ops:
            if ops.count(name) > 1:
                raise ConfigError(f"{field}.ops: {name} is listed twice; each is drawn as often")
        if isinstance(entry, Mix):
            if index != len(augment) - 1:
                raise ConfigError(
                    f"{field}: Mix stands before {names[index + 1]} (augment.{index + 1}); "
                    f"mixing comes last"
                )
            if entry.group_size % 2:
                raise ConfigError(f"{field}.group_size: must be even, got {entry.group_size}")
            if entry.cutmix + entry.mixup > 1:
                raise ConfigError(
                    f"{field}.cutmix, {field}.mixup: probabilities of the same batch, so together "
                    f"at most 1, got {entry.cutmix} + {entry.mixup}"
                )
