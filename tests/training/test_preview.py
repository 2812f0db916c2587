import dataclasses

import jax
import numpy as np
import pytest

from jaxcls.config import Config
from jaxcls.config.augment import Mix, RandAugment, RandomCrop
from jaxcls.data.device import device_batches
from jaxcls.data.sources import open_source
from jaxcls.distributed.mesh import make_mesh
from jaxcls.pictures.gallery import augmentation_rows
from jaxcls.training.build import build_training
from jaxcls.training.preview import first_augmented


@pytest.mark.parametrize("devices", [pytest.param(1, marks=pytest.mark.long), 4])
def test_it_shows_the_first_rows_of_the_step(tiny_config: Config, devices: int) -> None:
    config = dataclasses.replace(
        tiny_config,
        augment=(RandomCrop(), RandAugment(num_ops=1, ops=("Invert",)), Mix()),
        log_images=5,
    )
    source = open_source(config.data, "train")
    training = build_training(
        config,
        num_classes=10,
        num_examples=len(source),
        mesh=make_mesh(jax.devices()[:devices]),
    )
    with device_batches(source, config.data, seed=config.seed, mesh=training.mesh) as batches:
        images = first_augmented(training, next(batches))
    final = augmentation_rows(config, source, step=0, count=5)[-1]
    np.testing.assert_array_equal(images, np.stack(final.images[:5]))
