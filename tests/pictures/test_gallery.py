import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcls.augment.pipeline import make_augment
from jaxcls.config import Config
from jaxcls.config.augment import Cutout, Mix, RandAugment, RandomCropAndResize, RandomFlip
from jaxcls.config.progressive import progress
from jaxcls.data.batches import train_batches
from jaxcls.data.sources import open_source
from jaxcls.pictures.gallery import SWEEP, Row, augmentation_rows, magnitude_rows
from jaxcls.system.errors import UserError
from jaxcls.training.losses import soft_labels
from jaxcls.training.step import step_keys

LATE = 9  # of 12 steps
AUGMENT = (
    RandomFlip(horizontal=1.0),
    RandomCropAndResize(),
    RandAugment(ops=("Invert",), num_ops=1, rate=1.0),
    Cutout(size=(0.0, 0.9), value=1.0),  # nothing at first, so the step matters
    Mix(cutmix=0.5, mixup=0.5),
)


@pytest.fixture(scope="module")
def config(tiny_config: Config) -> Config:
    return dataclasses.replace(tiny_config, augment=AUGMENT)


@pytest.fixture(scope="module")
def rows(config: Config) -> dict[str, Row]:
    source = open_source(config.data, "train")
    return {row.title: row for row in augmentation_rows(config, source, step=LATE, count=4)}


def test_there_is_a_row_for_every_stage_in_order(rows: dict[str, Row]) -> None:
    assert list(rows) == [
        "raw",
        "RandomFlip",
        "RandomCropAndResize",
        "RandAugment",
        "Cutout",
        "CutMix",
        "MixUp",
        "final",
    ]
    for row in rows.values():
        assert len(row.images) == len(row.captions) == 4
    assert {image.shape for image in rows["raw"].images} == {(8, 8, 3)}
    assert {image.shape for image in rows["final"].images} == {(16, 16, 3)}


def test_the_last_row_is_what_the_training_step_gets(config: Config, rows: dict[str, Row]) -> None:
    source = open_source(config.data, "train")
    count = config.data.batch_size
    batches = train_batches(source, config.data, seed=config.seed, rows=range(count), start=LATE)
    batch = next(batches)
    batches.close()
    augment = make_augment(
        config.augment,
        image_size=config.data.image_size,
        crop_fraction=config.data.crop_fraction,
    )
    images, _ = jax.jit(augment)(
        step_keys(config.seed, LATE)[0],
        progress(LATE, (12,)),
        batch["images"],
        batch["sizes"],
        soft_labels(jnp.asarray(batch["labels"]), 10),
        np.arange(count, dtype=np.int32),
    )
    expected = np.asarray(jnp.round(images[:4] * 255)).astype(np.uint8)
    np.testing.assert_array_equal(np.stack(rows["final"].images), expected)


def test_each_row_adds_its_stage_to_the_one_before(rows: dict[str, Row]) -> None:
    before, inverted = (np.stack(rows[t].images) for t in ("RandomCropAndResize", "RandAugment"))
    np.testing.assert_array_equal(inverted, 255 - before)
    covered = np.stack(rows["Cutout"].images)
    changed = covered != inverted
    assert changed.any()
    assert (covered[changed] == 255).all()


def test_mixed_images_carry_the_weights_of_their_classes(rows: dict[str, Row]) -> None:
    names = set(rows["raw"].captions)
    assert set(rows["Cutout"].captions) == names
    mixed = [caption for caption in rows["CutMix"].captions if " + " in caption]
    assert mixed
    for caption in mixed:
        parts = [part.removesuffix(")").split(" (") for part in caption.split(" + ")]
        assert {name for name, _ in parts} <= names
        assert sum(float(weight) for _, weight in parts) == pytest.approx(1, abs=0.011)


def test_a_sweep_shows_one_operation_from_nothing_to_its_most(config: Config) -> None:
    source = open_source(config.data, "train")
    swept = magnitude_rows(config, source, op="Color", step=0, count=2)
    assert [row.title.split(":")[0] for row in swept] == ["Color", "Color"]
    for row in swept:
        assert len(row.images) == len(SWEEP)
    brighter = magnitude_rows(config, source, op="Brightness", step=0, count=1)[0]
    means = [image.mean() for image in brighter.images]
    assert all(later > earlier for earlier, later in itertools.pairwise(means))


def test_more_images_than_a_batch_are_refused(config: Config) -> None:
    source = open_source(config.data, "train")
    with pytest.raises(UserError, match=r"--count: must be from 1 to data\.batch_size, 32, got 33"):
        augmentation_rows(config, source, step=0, count=33)
