import dataclasses
import itertools

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.core import registered

from jaxcls.config import DataConfig
from jaxcls.data.source import Record, Source
from jaxcls.data.sources import open_source


@dataclasses.dataclass(frozen=True, kw_only=True)
class NumberedSource(Source):
    """Record i is a 4x4 grey image of value i % 256 with label i % 10."""

    name: str = "numbered"
    split: str = "train"
    class_names: tuple[str, ...] = tuple("0123456789")
    size: int = 100

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return Record(png(np.full((4, 4, 3), index % 256, np.uint8)), index % 10)


def png(image):
    return cv2.imencode(".png", image)[1].tobytes()


def prepare_set(data_dir, *, name, features, splits, supervised_keys=None):
    """Prepares a TFDS set as ArrayRecord; `splits` is name -> list of examples."""
    with registered.skip_registration():

        class Photos(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.2.0")
            url_infos = None

            def _info(self):
                return tfds.core.DatasetInfo(
                    builder=self,
                    features=tfds.features.FeaturesDict(features),
                    supervised_keys=supervised_keys,
                )

            def _split_generators(self, dl_manager):
                return {split: self._generate_examples(split) for split in splits}

            def _generate_examples(self, split):
                yield from enumerate(splits[split])

    Photos.name = name
    Photos(data_dir=data_dir).download_and_prepare(file_format="array_record")
    return data_dir / name / "1.2.0"


@pytest.fixture
def full_disk(monkeypatch):
    """ArrayRecord's own writer, which finds the disk full wherever it writes."""
    monkeypatch.setattr(
        "array_record.python.array_record_module.ArrayRecordWriter",
        lambda _, options: ArrayRecordWriter("/dev/full", options),
    )


@pytest.fixture
def numbered():
    return NumberedSource


@pytest.fixture
def make_set(tmp_path):
    def make(name="photos", *, features=None, splits=None, **kwargs):
        shape = (None, None, 3)
        features = features or {
            "image": tfds.features.Image(shape=shape, encoding_format="png"),
            "label": tfds.features.ClassLabel(names=["cat", "dog"]),
        }
        if splits is None:
            images = [np.full((3 + i, 5, 3), 10 * i, np.uint8) for i in range(10)]
            examples = [{"image": png(image), "label": i % 2} for i, image in enumerate(images)]
            splits = {"train": examples, "validation": examples[:2]}
        return prepare_set(tmp_path, name=name, features=features, splits=splits, **kwargs)

    return make


@pytest.fixture
def make_photos(tmp_path):
    """Makes a folder of 4x4 images, each of another grey: folder -> number of images."""

    def make(folders, *, suffix=".png"):
        root = tmp_path / f"photos{len(list(tmp_path.iterdir()))}"
        numbers = itertools.count()
        for folder, count in folders.items():
            (root / folder).mkdir(parents=True)
            for _ in range(count):
                number = next(numbers)
                (root / folder / f"{number:04}{suffix}").write_bytes(
                    png(np.full((4, 4, 3), number % 256, np.uint8))
                )
        return root

    return make


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("digits")


@pytest.fixture(scope="session")
def digits_config(digits_dir):
    return DataConfig(
        source="digits", data_dir=str(digits_dir), batch_size=32, image_size=16, canvas_size=16
    )


@pytest.fixture(scope="session")
def digits(digits_config):
    return open_source(digits_config, "train")
