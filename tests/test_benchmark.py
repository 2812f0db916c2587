import json
from pathlib import Path

import pytest

from jaxcls.benchmark import benchmark, describe
from jaxcls.cli import main
from jaxcls.config import Config

RATES = ("data", "augment", "step", "end_to_end")


def test_every_part_is_measured(tiny_config: Config) -> None:
    report = benchmark(tiny_config, seconds=0.1)
    for part in RATES:
        assert report[f"{part}_images_per_second"] > 0
    assert report["flops_per_image"] > 1e4
    assert report["bytes_per_image"] > 1e4
    assert report["compile_seconds"] > 0
    assert report["num_devices"] == 8
    assert "img/s" in describe(report)


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
