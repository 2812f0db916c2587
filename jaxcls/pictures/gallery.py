"""Shows what a config's augmentation does to its training images, one operation after another."""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxcls.augment.randaugment import Draw, Layers, apply_layers
from jaxcls.config import Config
from jaxcls.config.augment import (
    NEED_RGB,
    RESIZES,
    Augmentation,
    CenterCrop,
    Mix,
    OpName,
)
from jaxcls.data.batches import train_batches
from jaxcls.data.sources import Source
from jaxcls.system.errors import UserError
from jaxcls.training.preview import augmented, whole_groups
from jaxcls.training.schedules import make_plan

SWEEP = tuple(step / 8 for step in range(9))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a gallery.

    Attributes:
      title: what was done to the images.
      images: uint8 [height, width, channels] each, of any sizes.
      captions: a caption for each image.
    """

    title: str
    images: Sequence[np.ndarray]
    captions: Sequence[str]


def training_images(
    config: Config, source: Source, *, count: int
) -> tuple[list[np.ndarray], list[str]]:
    """Returns the first images of the first training batch, before augmentation.

    Args:
      config: the config of the training.
      source: its training data.
      count: the number of images; fewer if the batch or the data set has fewer.

    Returns:
      Images, uint8 [height, width, channels] each, and the names of their classes.
    """
    data = dataclasses.replace(config.data, last_batch="straddle")  # for small data sets
    count = min(count, config.data.batch_size, len(source))
    batch = _first_images(dataclasses.replace(config, data=data), source, step=0, count=count)
    return _valid_images(batch), _names(batch["labels"], source.class_names)


def augmentation_rows(config: Config, source: Source, *, step: int, count: int) -> list[Row]:
    """Returns images of a training batch: raw, after each operation, and as the network gets them.

    The random draws are those of the training step. CutMix and MixUp are both shown, with the draws
    that the step would use if it applied them.

    Args:
      config: the config of the training.
      source: its training data.
      step: the training step, from 0.
      count: the number of images; rounded up to whole mixing groups.

    Raises:
      UserError: the batch has fewer images.
    """
    _check_count(count, config)
    count = whole_groups(count, config.augment)  # a batch has whole groups, so it is large enough
    batch = _first_images(config, source, step=step, count=count)
    ends = make_plan(config, len(source)).stage_ends

    def row(title: str, augment: Sequence[Augmentation]) -> Row:
        images, labels = augmented(
            config,
            batch,
            augment=augment,
            num_classes=source.num_classes,
            step=step,
            stage_ends=ends,
        )
        captions = _captions(labels, source.class_names)
        return Row(title=title, images=list(np.asarray(images)), captions=captions)

    names = _names(batch["labels"], source.class_names)
    rows = [Row(title="raw", images=_valid_images(batch), captions=names)]
    for number, entry in enumerate(config.augment, start=1):
        before = list(config.augment[: number - 1])
        if isinstance(entry, Mix):
            for title, chosen in (("CutMix", (1.0, 0.0)), ("MixUp", (0.0, 1.0))):
                if getattr(entry, title.lower()):
                    one = dataclasses.replace(entry, cutmix=chosen[0], mixup=chosen[1])
                    rows.append(row(title, [*before, one]))
        else:
            entries = [*before, entry]
            if not any(isinstance(other, RESIZES) for other in entries):
                entries.append(CenterCrop())
            rows.append(row(type(entry).__name__, entries))
    rows.append(row("final", config.augment))
    return rows


def magnitude_rows(
    config: Config, source: Source, *, op: OpName, step: int, count: int
) -> list[Row]:
    """Applies one operation at magnitudes from 0 to 1; returns a row for each image.

    If the operation draws its strength uniformly up to the magnitude, the highest strength is used.

    Raises:
      UserError: the batch has fewer images, or the operation needs RGB and the images are not.
    """
    _check_count(count, config)
    if op in NEED_RGB and config.data.channels != 3:
        raise UserError(
            f"--op: {op} needs red, green and blue, but data.channels is {config.data.channels}; "
            f"name another operation"
        )
    batch = _first_images(config, source, step=step, count=count)
    images, _ = augmented(
        config,
        batch,
        augment=(CenterCrop(),),
        num_classes=source.num_classes,
        step=step,
        stage_ends=make_plan(config, len(source)).stage_ends,
    )
    pixels = jnp.moveaxis(images, 3, 1)

    @jax.jit
    def at(magnitude: jax.Array) -> jax.Array:
        same, zero = jnp.full((count, 1), magnitude), jnp.zeros((count, 1), jnp.float32)
        draw = Draw(
            magnitude=same, std=zero, first=zero, second=zero, uniform=zero + 1, sign=zero + 1
        )
        layers = Layers(choice=jnp.zeros((count, 1), jnp.int32), draws=draw)
        return jnp.moveaxis(apply_layers(pixels, (op,), layers), 1, 3)

    names = _names(batch["labels"], source.class_names)
    columns = [np.asarray(at(jnp.asarray(magnitude, jnp.float32))) for magnitude in SWEEP]
    return [
        Row(
            title=f"{op}: {names[index]}",
            images=[column[index] for column in columns],
            captions=[f"magnitude {magnitude:g}" for magnitude in SWEEP],
        )
        for index in range(count)
    ]


def _valid_images(batch: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Cuts the images of a training batch out of their canvases."""
    return [
        canvas[:height, :width]
        for canvas, (height, width) in zip(batch["images"], batch["sizes"], strict=True)
    ]


def _check_count(count: int, config: Config) -> None:
    if not 1 <= count <= config.data.batch_size:
        raise UserError(
            f"--count: must be from 1 to data.batch_size, {config.data.batch_size}, got {count}"
        )


def _first_images(config: Config, source: Source, *, step: int, count: int) -> dict:
    batches = train_batches(source, config.data, seed=config.seed, rows=range(count), start=step)
    with contextlib.closing(batches):
        return next(batches)


def _names(labels: np.ndarray, names: Sequence[str]) -> list[str]:
    """Returns the classes of each row of a batch's labels, as `train_batches` makes them."""
    return _captions(labels, names) if labels.ndim == 2 else [names[int(label)] for label in labels]


def _captions(labels: jax.Array | np.ndarray, names: Sequence[str]) -> list[str]:
    """Returns the classes of each row of soft labels, with their weights if these are not all 1."""
    captions = []
    for weights in np.asarray(labels, np.float32):
        classes = [
            index for index in np.argsort(-weights, kind="stable") if weights[index] >= 0.005
        ]
        if len(classes) == 1 or (weights[classes] == 1).all():
            captions.append(" + ".join(names[int(c)] for c in classes) or "no class")
        else:
            captions.append(" + ".join(f"{names[int(c)]} ({weights[c]:.2f})" for c in classes))
    return captions
