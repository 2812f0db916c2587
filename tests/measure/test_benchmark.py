import dataclasses
import json
from pathlib import Path

import jax
import pytest

from jaxcls.commands.cli import main
from jaxcls.config import Config, DataConfig, ModelConfig
from jaxcls.distributed.mesh import make_mesh
from jaxcls.measure.benchmark import benchmark, cost_per_image, describe_benchmark
from jaxcls.training.build import build_training

RATES = ("data", "augment", "step", "end_to_end")


def test_every_part_is_measured(tiny_config: Config) -> None:
    report = benchmark(tiny_config, seconds=0.1)
    for part in RATES:
        assert report[f"{part}_images_per_second"] > 0
    assert report["flops_per_image"] > 1e4
    assert report["bytes_per_image"] > 1e4
    assert report["compile_seconds"] > 0
    assert report["augment_compile_seconds"] > 0
    for cost_of in ("flops", "bytes"):
        part, whole = (report[f"{name}{cost_of}_per_image"] for name in ("augment_", ""))
        assert 0 < part < whole
    assert report["num_devices"] == 8
    assert "img/s" in describe_benchmark(report)


def cost(config: Config, *, num_classes: int = 10, devices: int = 1) -> tuple[float, float]:
    mesh = make_mesh(jax.devices()[:devices])
    training = build_training(config, num_classes=num_classes, num_examples=1000, mesh=mesh)
    return cost_per_image(training, training.compile_step().program)


@pytest.mark.long
def test_the_cost_of_an_image_does_not_depend_on_micro_batches(tiny_config: Config) -> None:
    # Much work an image, so that the update of the parameters hardly counts.
    data = dataclasses.replace(tiny_config.data, batch_size=256, image_size=32)
    config = dataclasses.replace(tiny_config, data=data)
    whole = cost(config)
    optimizer = dataclasses.replace(config.optimizer, micro_batches=4)
    cut = cost(dataclasses.replace(config, optimizer=optimizer))
    assert cut == pytest.approx(whole, rel=0.05)


@pytest.mark.long
def test_the_flops_of_an_image_are_those_of_the_published_network() -> None:
    """B0 at 224: 0.72 G multiply-adds forward (Tan and Le 2021), and twice that backward."""
    config = Config(
        model=ModelConfig(name="efficientnetv2_b0"),
        data=DataConfig(batch_size=2, image_size=224),
        num_steps=1,
    )
    flops, _ = cost(config, num_classes=1000)
    assert 1 < flops / (2 * 3 * 0.72e9) < 1.15


def test_synthetic_data_measures_the_step_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "tiny.py"
    config.write_text(
        "from jaxcls.config import Config, DataConfig, ModelConfig\n"
        "def get_config():\n"
        "    return Config(model=ModelConfig(name='tiny'), num_steps=1, data=DataConfig(\n"
        "        source='tfds:not_prepared', batch_size=8, image_size=16, canvas_size=16))\n"
    )
    arguments = ["benchmark", str(config), "--synthetic", "--seconds", "0.1", "--json"]
    assert main(arguments) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["data_images_per_second"] is None
    assert report["end_to_end_images_per_second"] is None
    assert report["step_images_per_second"] > 0
