"""Every config is a training that runs; the published ones have the numbers of their sources."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_configs import CONFIGS, ROOT

from jaxcls.config import Config, DataConfig, LossConfig, OptimizerConfig, load_config
from jaxcls.config.augment import (
    CenterCrop,
    Cutout,
    Mix,
    RandAugment,
    RandomCropAndResize,
    RandomErasing,
    RandomFlip,
    TrivialAugment,
)
from jaxcls.config.progressive import progress
from jaxcls.distributed.mesh import make_mesh
from jaxcls.models.registry import SPECS, model_spec
from jaxcls.training.build import build_training
from jaxcls.training.schedules import Plan, make_plan

IMAGENET = 1_281_167
STEPS_PER_EPOCH = IMAGENET // 4096  # the short last batch is left out

# Size, first and last dropout, RandAugment's last level and mixup's last alpha: from the paper's
# table 6 for S, M and L; from the reference code for the others, but RandAugment as for S.
PAPER = {
    "b0": (192, 0.2, 0.2, 15, 0),
    "b1": (192, 0.2, 0.2, 15, 0),
    "b2": (208, 0.3, 0.3, 15, 0),
    "b3": (240, 0.3, 0.3, 15, 0),
    "s": (300, 0.1, 0.3, 15, 0),
    "m": (384, 0.1, 0.4, 20, 0.2),
    "l": (384, 0.1, 0.5, 25, 0.5),
}


def rate_at(plan: Plan, step: float) -> float:
    return np.asarray(plan.learning_rate(step)).item()


def load(name: str) -> Config:
    return load_config(ROOT / name)


def small(config: Config) -> Config:
    """The same training of the tiny network on images of 32 pixels, 8 a step."""
    sizes, dropout = config.data.stage_image_sizes, config.model.dropout
    names = ("source", "train_split", "eval_split", "num_threads", "prefetch", "cache_gib")
    unread = {name: getattr(DataConfig(), name) for name in names}  # by a step
    data = dataclasses.replace(
        config.data,
        batch_size=8,
        canvas_size=48,
        image_size=32,
        crop_fraction=0.875,
        interpolation="bilinear",
        stage_image_sizes=(32,) * len(sizes),
        **unread,
    )
    model = dataclasses.replace(
        config.model,
        name="tiny",
        weights=None,
        batch_norm="global" if config.model.batch_norm == "global" else 4,
        dropout=(0.2,) * len(dropout) if isinstance(dropout, tuple) else dropout,
    )
    return dataclasses.replace(config, model=model, data=data, compute_dtype="float32")


def different() -> list[str]:
    """A config for each kind of step: numbers such as rates and strengths make no other kind."""
    found: dict[str, str] = {}
    for name in CONFIGS:
        found.setdefault(re.sub(r"\d+\.\d+", "", repr(small(load(name)))), name)
    return list(found.values())


# Each has something that the others have not; the rest is compiled with -m long.
IN_CI = {
    "finetune.py",
    "imagenet/kerascv_b0.py",
    "imagenet/resnet50.py",
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in IN_CI else pytest.mark.long)
        for name in sorted({*different(), *IN_CI})
    ],
)
def test_a_step_of_a_config_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny: Any = model_spec("tiny")
    blocks = tuple(dataclasses.replace(row, repeats=1) for row in tiny.blocks)
    monkeypatch.setitem(SPECS, "tiny", dataclasses.replace(tiny, blocks=blocks))
    training = build_training(
        small(load(name)),
        num_classes=10,
        num_examples=1000,
        mesh=make_mesh(jax.devices()[:1]),
    )
    pixels = np.random.default_rng(0).integers(0, 256, (8, 48, 48, 3), np.uint8)
    batch = {
        "images": jnp.asarray(pixels),
        "sizes": jnp.full((8, 2), 48, jnp.int32),
        "labels": jnp.arange(8, dtype=jnp.int32),
    }
    state, metrics = training.steps[training.config.data.image_size](training.init(), batch)
    state, metrics = training.steps[training.config.data.image_size](state, batch)
    assert int(state.step) == 2
    assert 0.5 < float(metrics["loss"]) / np.log(10) < 3  # log(10): ten classes at random


@pytest.mark.parametrize("name", CONFIGS)
def test_the_schedule_of_a_config_at_the_borders_of_its_stages(name: str) -> None:
    config = load(name)
    plan = make_plan(config, IMAGENET)
    assert plan.stage_ends[-1] == plan.num_steps
    borders = np.asarray((0, *plan.stage_ends))
    assert (np.diff(borders) > 0).all()
    rates = np.asarray([rate_at(plan, step) for step in borders])
    peak = config.optimizer.learning_rate
    assert rates[-1] == 0, "the training is over"
    assert ((rates[1:-1] > 0) & (rates[1:-1] <= peak * 1.0001)).all()
    warmed_up = int(config.schedule.warmup * plan.num_steps)
    assert rate_at(plan, warmed_up) == pytest.approx(peak, rel=0.15)


@pytest.mark.parametrize("network", PAPER)
def test_the_training_of_efficientnetv2_s_authors(network: str) -> None:
    size, first_dropout, last_dropout, last_level, last_mixup = PAPER[network]
    config = load(f"imagenet/efficientnetv2_{network}.py")
    assert config.model.name == f"efficientnetv2_{network}"
    assert config.data.image_size == config.data.stage_image_sizes[-1] == size
    assert config.data.stage_image_sizes == tuple(np.linspace(128, size, 4).round().astype(int))
    _, _, randaugment, *mix = config.augment
    assert isinstance(randaugment, RandAugment)
    np.testing.assert_allclose(
        config.model.dropout, np.linspace(first_dropout, last_dropout, 4), atol=1e-6
    )
    np.testing.assert_allclose(
        randaugment.magnitude, 0.03 * np.linspace(5, last_level, 4), atol=1e-6
    )
    assert bool(mix) == bool(last_mixup)
    for entry in mix:
        assert isinstance(entry, Mix)
        np.testing.assert_allclose(entry.mixup_alpha, np.linspace(0, last_mixup, 4), atol=1e-6)
        assert (entry.cutmix, entry.mixup) == (0, 1)
    assert config.optimizer == OptimizerConfig(
        name="rmsprop",
        learning_rate=0.256,
        options={"decay": 0.9, "momentum": 0.9, "eps": 0.001, "initial_scale": 1.0},
        weight_decay=1e-5,
        ema_decay=0.9999,
    )
    assert config.loss == LossConfig(name="softmax", label_smoothing=0.1)
    assert (config.model.drop_path, config.data.batch_size, config.num_epochs) == (0.2, 4096, 350)
    assert (randaugment.num_ops, randaugment.magnitude_std, randaugment.rate) == (2, 0, 1)
    plan = make_plan(config, IMAGENET)
    quarter = 350 * STEPS_PER_EPOCH / 4
    np.testing.assert_allclose(plan.stage_ends, quarter * np.arange(1, 5), atol=1)
    steps = np.asarray([10, 1000, 2000, *(quarter * np.arange(1, 4)).astype(int)])
    warmup = int(350 * STEPS_PER_EPOCH * 5 / 350)
    stairs = 0.256 * 0.97 ** np.floor(steps / (2.4 * STEPS_PER_EPOCH))
    expected = np.where(steps < warmup, 0.256 * steps / warmup, stairs)
    rates = [rate_at(plan, step) for step in steps.tolist()]
    np.testing.assert_allclose(rates, expected, rtol=2e-3)
    assert float(progress(plan.stage_ends[1], plan.stage_ends)) == pytest.approx(0.5, abs=1e-4)


def test_fine_tuning_from_the_larger_imagenet() -> None:
    config = load("imagenet/finetune_21k.py")
    plan = make_plan(config, IMAGENET)
    epoch = IMAGENET // 512
    assert plan.num_steps == pytest.approx(15 * epoch, abs=1)
    assert config.optimizer == OptimizerConfig(
        name="rmsprop",
        learning_rate=0.001,
        options={"decay": 0.9, "momentum": 0.9, "eps": 0.001, "initial_scale": 1.0},
        weight_decay=1e-5,
        ema_decay=0.9996,
    )
    assert config.augment == (RandomFlip(), CenterCrop(), Cutout(size=0.5, fill="noise"))
    assert config.loss.label_smoothing == 0.1
    assert config.model.weights == "efficientnetv2_s_imagenet21k"
    halfway = epoch + 7 * epoch  # of the cosine, after one epoch of warmup
    assert rate_at(plan, int(halfway)) == pytest.approx(0.0005, rel=1e-2)


def test_transfer_to_cifar() -> None:
    config = load("cifar10_transfer.py")
    plan = make_plan(config, 50_000)
    assert (plan.num_steps, config.data.batch_size) == (10_000, 512)
    assert rate_at(plan, 100) == pytest.approx(0.001)
    assert config.optimizer.weight_decay == 0
    assert config.augment == (RandomFlip(), CenterCrop(), Cutout(size=0.5, fill="noise"))
    assert config.model.weights == "efficientnetv2_s_imagenet"


def test_torchvision_s_recipe() -> None:
    """Against the formulas of its reference script, for 8 processes of 128 images."""
    config = load("imagenet/torchvision_s.py")
    plan = make_plan(config, IMAGENET)
    assert config.augment == (
        RandomFlip(),
        RandomCropAndResize(area=(0.08, 1.0), aspect=(3 / 4, 4 / 3), aspect_of="pixels"),
        TrivialAugment(),
        RandomErasing(
            probability=0.1, area=(0.02, 0.33), aspect=(0.3, 3.3), fill="constant", value=0.45
        ),
        Mix(cutmix=0.5, cutmix_alpha=1.0, mixup=0.5, mixup_alpha=0.2),
    )
    optimizer = config.optimizer
    assert (optimizer.name, optimizer.learning_rate, optimizer.weight_decay) == ("sgd", 0.5, 2e-5)
    assert optimizer.options == {"momentum": 0.9}
    assert (config.data.repeats, config.data.image_size, config.data.batch_size) == (4, 300, 1024)
    assert config.loss.label_smoothing == 0.1
    assert rate_at(plan, 0) == pytest.approx(0.005)
    epochs, steps_per_epoch = 600, IMAGENET / 1024
    assert plan.num_steps == pytest.approx(epochs * steps_per_epoch, rel=1e-3)
    # One step of the cosine an epoch there: the middle of an epoch is where both agree.
    for epoch in (100, 300, 599):
        theirs = 0.25 * (1 + np.cos(np.pi * (epoch - 5) / (epochs - 5)))
        step = round(epoch * steps_per_epoch)
        assert rate_at(plan, step) == pytest.approx(theirs, rel=2e-3, abs=1e-5)
    every_32 = 1 - (1 - 0.99998) * 8 * 128 * 32 / epochs
    assert config.optimizer.ema_decay == pytest.approx(every_32 ** (1 / 32), abs=1e-6)
