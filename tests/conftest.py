"""Shared by all tests: eight CPU devices, a cache folder of their own, and a network of seconds."""

import os

from xla_flags import xla_flags

# Before jax is imported anywhere: jax reads these once.
os.environ["JAX_PLATFORMS"] = os.environ.get("JAXCLS_TEST_PLATFORMS", "cpu")  # for tests/gpu
os.environ["XLA_FLAGS"] = xla_flags(devices=8)
# JAX keeps what takes a second or more, and most programs here take less.
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

import dataclasses
import gc
import signal
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from command_line import TINY_CONFIG, Message, Result, Run

from jaxcls.commands.cli import main
from jaxcls.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
)
from jaxcls.config.augment import RandomCrop
from jaxcls.distributed.mesh import make_mesh
from jaxcls.models import registry
from jaxcls.models.efficientnet import BlockSpec, ModelSpec
from jaxcls.models.resnet import ResNetSpec
from jaxcls.training.loop import Outcome, train

# A program that was started with `nohup` or in the background ignores these, and so would all
# programs that the tests start.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)

# Traces of networks are millions of objects that stay. Looking through them at the interpreter's
# own rate takes a tenth of the time of the tests.
gc.set_threshold(50_000, 20, 50)

TESTS = Path(__file__).parent

ALL_BLOCKS = ModelSpec(
    name="all_blocks",
    stem_filters=8,
    blocks=(
        BlockSpec(fused=True, repeats=1, filters=8, expansion=1, stride=1, se_ratio=0.0),
        BlockSpec(fused=True, repeats=1, filters=16, expansion=2, stride=2, se_ratio=0.0),
        BlockSpec(fused=False, repeats=2, filters=24, expansion=2, stride=2, se_ratio=0.25),
    ),
    head_filters=32,
    image_size=32,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)
TINY = dataclasses.replace(ALL_BLOCKS, name="tiny", blocks=ALL_BLOCKS.blocks[:1])
TINY_RESNET = ResNetSpec(name="tiny_resnet", repeats=(1, 1), bottleneck=True, image_size=32)


# They take longest, and `.ci/run` shares the files between two processes in this order.
LONGEST = (
    "training/test_stops_hosts.py",
    "test_readme.py",
    "augment/test_pipeline.py",
    "storm/test_storm.py",
    "training/test_hosts.py",
    "pretrained/test_keras_names.py",
    "models/test_own_module.py",
    "training/test_loop.py",
    "training/test_step.py",
    "data/test_batches.py",
    "test_guide.py",
    "augment/test_randaugment.py",
    "runs/test_buckets.py",
    "training/test_skipping.py",
    "fuzz/test_fuzz.py",
)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {TESTS / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path, len(LONGEST)))


@pytest.fixture(scope="session", autouse=True)
def cache_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Prepared data goes to a temporary folder, once for all tests."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A program that several tests use is compiled once, also if two processes share the tests."""
    folder = tmp_path_factory.getbasetemp()
    shared = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    jax.config.update("jax_compilation_cache_dir", str(shared / "compiled"))


@pytest.fixture(scope="session", autouse=True)
def tiny_models() -> Iterator[None]:
    """One of each family that compiles in two seconds, and one with all blocks of EfficientNet."""
    with pytest.MonkeyPatch.context() as patch:
        for spec in (TINY, TINY_RESNET, ALL_BLOCKS):
            patch.setitem(registry.SPECS, spec.name, spec)
        yield


@pytest.fixture(scope="session")
def tiny_config() -> Config:
    """Digits at 16 pixels with the tiny network: a step takes milliseconds."""
    return Config(
        model=ModelConfig(name="tiny", dropout=0.2, drop_path=0.2),
        data=DataConfig(
            source="digits", batch_size=32, image_size=16, canvas_size=8, crop_fraction=16 / 18
        ),
        augment=(RandomCrop(),),
        optimizer=OptimizerConfig(
            learning_rate=0.05, options={"momentum": 0.9}, weight_decay=1e-4, ema_decay=0.9
        ),
        checkpoint=CheckpointConfig(every_steps=4),
        num_steps=12,
        eval_every_steps=4,
        log_every_steps=2,
        log_images=0,  # a program to compile
    )


@pytest.fixture(scope="session")
def tiny_run(tiny_config: Config, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """A finished run of `tiny_config` on one device. Copy it before changing it."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    return folder, train(tiny_config, folder, mesh=make_mesh(jax.devices()[:1]))


@pytest.fixture(scope="session")
def run_of_all_blocks(
    tiny_config: Config, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Outcome]:
    """As `tiny_run`, of the network with all blocks of EfficientNet."""
    folder = tmp_path_factory.mktemp("runs") / "all_blocks"
    model = dataclasses.replace(tiny_config.model, name="all_blocks")
    config = dataclasses.replace(tiny_config, model=model)
    return folder, train(config, folder, mesh=make_mesh(jax.devices()[:1]))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command line in an empty folder that has a config, tiny.py."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    Path("tiny.py").write_text(TINY_CONFIG)

    def run(*arguments: object) -> Result:
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as end:  # of tyro
            status = int(end.code or 0)
        captured = capsys.readouterr()
        return Result(status, captured.out, captured.err)

    return run


@pytest.fixture
def message(run: Run) -> Message:
    """Runs a command line that must fail as the user's mistake; returns what it says."""

    def message(*arguments: object) -> str:
        result = run(*arguments)
        assert result.status == 2
        assert result.out == ""
        assert "Traceback" not in result.err
        return result.err

    return message
