"""Each config is valid, and its data path works on a small set with the real one's features."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core import registered

from jaxcls.config import Config, load_config
from jaxcls.data.batches import eval_batches, train_batches
from jaxcls.data.sources import open_source
from jaxcls.training.schedules import make_plan

ROOT = Path(__file__).parents[1] / "configs"
CONFIGS = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.py"))
NUM_EXAMPLES = 20


@pytest.mark.parametrize("name", CONFIGS)
def test_config_is_valid_and_says_how_to_run_it(name: str) -> None:
    assert isinstance(load_config(ROOT / name), Config)
    text = (ROOT / name).read_text()
    assert f"jaxcls train configs/{name}" in text
    source = load_config(ROOT / name).data.source
    assert not source.startswith("tfds:") or f"jaxcls prepare {source}" in text


def prepare_small(name: str, data_dir: Path) -> None:
    """Prepares a few examples under the name, version and features of a set that TFDS knows."""
    real: Any = tfds.builder(name, data_dir=data_dir / "unused")
    features = real.info.features

    def encode(number: int) -> bytes:
        height, width, _ = features["image"].shape
        pixels = np.full((height or 30 + number, width or 50, 3), 9 * number, np.uint8)
        suffix = ".png" if name == "cifar10" else ".jpg"
        return cv2.imencode(suffix, pixels)[1].tobytes()

    def example(number: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, feature in features.items():
            if isinstance(feature, tfds.features.ClassLabel):
                values[key] = number % 2
            else:
                values[key] = encode(number) if key == "image" else f"{key} {number}"
        return values

    with registered.skip_registration():

        class Small(tfds.core.GeneratorBasedBuilder):
            VERSION = real.version
            url_infos = None

            def _info(self) -> tfds.core.DatasetInfo:
                return tfds.core.DatasetInfo(
                    builder=self, features=features, supervised_keys=real.info.supervised_keys
                )

            def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
                splits = ("train", "test", "validation")
                return {split: self._generate_examples() for split in splits}

            def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
                return ((number, example(number)) for number in range(NUM_EXAMPLES))

    Small.name = name
    Small(data_dir=data_dir).download_and_prepare(file_format="array_record")


@pytest.mark.parametrize(
    "name", [name for name in CONFIGS if name not in ("digits.py", "photos.py")]
)
def test_data_path_of_a_config(name: str, tmp_path: Path) -> None:
    config = load_config(ROOT / name)
    data = config.data
    prepare_small(data.source.removeprefix("tfds:"), tmp_path)
    small = {
        "data_dir": str(tmp_path), "batch_size": 4, "image_size": 16, "canvas_size": 32,
        "num_threads": 1,
    }  # fmt: skip
    data = type(data)(**{**vars(data), **small})
    source, eval_source = (
        open_source(data, split) for split in (data.train_split, data.eval_split)
    )
    assert source.class_names == eval_source.class_names
    assert make_plan(config, 10**6).num_steps > 0
    batches = train_batches(source, data, seed=0, rows=range(4))
    batch = next(batches)
    batches.close()
    assert batch["images"].any()
    assert (batch["sizes"].max(axis=1) == 32).all()
    seen = sum(
        int(b["mask"].sum()) for b in eval_batches(eval_source, data, batch_size=4, rows=range(4))
    )
    sizes = (len(source), len(eval_source))
    assert seen == sizes[1]
    assert sizes == ((18, 2) if "[" in data.train_split else (NUM_EXAMPLES, NUM_EXAMPLES))
