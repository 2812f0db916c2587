"""Data sets of Hugging Face: hf:NAME."""

import io
import pickle
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import datasets.config
import numpy as np
import PIL.Image
import pytest

from jaxcls.config import DataConfig
from jaxcls.data import hf
from jaxcls.data.batches import train_batches
from jaxcls.data.decode import decode_image
from jaxcls.data.source import Source
from jaxcls.data.sources import open_source, prepare_source
from jaxcls.system.errors import DataError

CAT_OR_DOG = datasets.ClassLabel(names=["cat", "dog"])
FEATURES = {"image": datasets.Image(), "label": CAT_OR_DOG}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the library's own for each test."""
    folder = tmp_path_factory.mktemp("hf")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    return folder


def png(number: int) -> dict[str, Any]:
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.full((4, 4, 3), number, np.uint8)).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def make(
    numbers: Sequence[int], features: dict[str, Any] | None = None, **columns: Any
) -> datasets.Dataset:
    values = {"image": [png(number) for number in numbers], "label": [n % 2 for n in numbers]}
    features = features or FEATURES
    values = {name: (values | columns)[name] for name in features}
    return datasets.Dataset.from_dict(values, features=datasets.Features(features))


def write_parquet(folder: Path, **splits: datasets.Dataset) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, table in splits.items():
        table.to_parquet(folder / f"{split}-00000.parquet")
    return folder


def opened(path: Path | str, split: str = "train", **fields: Any) -> Source:
    return open_source(DataConfig(source=f"hf:{path}", **fields), split)


def numbers(source: Source) -> list[int]:
    """The number in each image, after a check of its label."""
    found = []
    for index in range(len(source)):
        record = source[index]
        found.append(int(decode_image(record.image, where="")[0, 0, 0]))
        assert record.label == found[-1] % 2
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_parquet(tmp_path / "set", train=make(range(10)), test=make(range(10, 14)))


def test_a_folder_of_parquet_files(folder: Path) -> None:
    train, test = opened(folder), opened(folder, "test")
    assert train.class_names == test.class_names == ("cat", "dog")
    assert (numbers(train), numbers(test)) == (list(range(10)), [10, 11, 12, 13])
    assert numbers(opened(folder, "train[:30%]+test[-1:]")) == [0, 1, 2, 13]
    assert train.class_counts().tolist() == [5, 5]
    assert train.identity != test.identity
    assert all(path.is_file() for path in train.stored_files().values())


def test_a_folder_that_save_to_disk_wrote(tmp_path: Path) -> None:
    datasets.DatasetDict({"train": make(range(6)), "val": make([6])}).save_to_disk(tmp_path / "a")
    assert numbers(opened(tmp_path / "a", "val")) == [6]
    make(range(3)).save_to_disk(tmp_path / "b")
    assert numbers(opened(tmp_path / "b")) == [0, 1, 2]
    for saved in ("a", "b"):
        with pytest.raises(DataError, match="no configurations; leave out 'small'"):
            opened(f"{tmp_path / saved}:small")


def test_a_set_of_the_hub_is_read_from_the_cache(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache has what the library wrote when it had a network."""
    datasets.load_dataset(str(folder))
    (made,) = (cache / "set").iterdir()
    target = cache / "owner___photos" / "default"
    shutil.copytree(made, target)
    for arrow in target.rglob("*.arrow"):
        arrow.rename(arrow.with_name(arrow.name.replace("set-", "photos-")))
    monkeypatch.setattr("httpx.Client.send", lambda *_, **__: pytest.fail("no network is used"))
    assert numbers(opened("owner/photos")) == list(range(10))
    assert not datasets.config.HF_HUB_OFFLINE


def test_a_set_that_is_not_downloaded_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("httpx.Client.send", lambda *_, **__: pytest.fail("no network is used"))
    with pytest.raises(DataError, match=r"not in the cache .*\n  jaxcls prepare hf:owner/none\n"):
        opened("owner/none")


def test_prepare_without_a_network_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"'owner/none' cannot be fetched .* check the network"):
        prepare_source("hf:owner/none")


def test_prepare_counts_the_splits(folder: Path) -> None:
    assert prepare_source(f"hf:{folder}") == f"{folder} is ready: train 10, test 4"


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_seed_and_step_with_any_workers(folder: Path, workers: int) -> None:
    source = pickle.loads(pickle.dumps(opened(folder)))
    data = DataConfig(batch_size=4, canvas_size=4, num_workers=workers)
    for start in (0, 7):
        batch = next(train_batches(source, data, seed=3, rows=range(4), start=start))
        np.testing.assert_array_equal(batch["images"][:, 0, 0, 0], batch["index"])
        np.testing.assert_array_equal(batch["labels"], batch["index"] % 2)


def test_images_may_lie_in_files(tmp_path: Path) -> None:
    PIL.Image.new("RGB", (4, 4), (7, 7, 7)).save(tmp_path / "7.png")
    table = make([1], image=[{"bytes": None, "path": str(tmp_path / "7.png")}])
    table.save_to_disk(tmp_path / "set")
    assert decode_image(opened(tmp_path / "set")[0].image, where="")[0, 0, 0] == 7


# Features


def test_several_labels(tmp_path: Path) -> None:
    features = {"image": datasets.Image(), "tags": datasets.List(CAT_OR_DOG)}
    folder = write_parquet(tmp_path, train=make([1, 2, 3], features, tags=[[1, 0], [], [1]]))
    source = opened(folder, labels="multiple")
    assert source.multi_label
    assert [source[index].label for index in range(3)] == [(0, 1), (), (1,)]
    message = r"data\.labels: .* several labels \(tags: List\(ClassLabel\)\); .* multiple"
    with pytest.raises(DataError, match=message):
        opened(folder)


def test_the_usual_features_are_taken_of_several_or_those_that_are_named(tmp_path: Path) -> None:
    features = {**FEATURES, "thumbnail": datasets.Image(), "coarse": CAT_OR_DOG}
    table = make([1, 2], features, thumbnail=[png(9)] * 2, coarse=[0, 0])
    folder = write_parquet(tmp_path, train=table)
    assert numbers(opened(folder)) == [1, 2]
    source = opened(folder, image_key="thumbnail", label_key="coarse")
    assert (source[0].label, decode_image(source[0].image, where="")[0, 0, 0]) == (0, 9)
    with pytest.raises(DataError, match=r"data.label_key: 'coarsf' is not .* mean 'coarse'"):
        opened(folder, label_key="coarsf")


def test_what_is_no_classification_set_is_named(tmp_path: Path) -> None:
    features = {"image": datasets.Image(), "label": datasets.Value("string")}
    folder = write_parquet(tmp_path, train=make([1], features, label=["a"]))
    with pytest.raises(DataError, match=r"not an image classification set.*label: Value"):
        opened(folder)


@pytest.mark.parametrize("label", [-1, None])
def test_an_image_without_a_label_is_named(tmp_path: Path, label: int | None) -> None:
    source = opened(write_parquet(tmp_path, train=make([1, 2], label=[0, label])))
    assert source[0].label == 0
    with pytest.raises(DataError, match=r"record 1 of .*label -1 is not one of the 2 classes"):
        source[1]


def test_an_image_that_is_missing_is_named(tmp_path: Path) -> None:
    source = opened(write_parquet(tmp_path, train=make([1], image=[None])))
    with pytest.raises(DataError, match=r"record 0 of .* has no image"):
        source[0]


# What cannot be opened


def test_splits_and_folders_that_do_not_exist(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no split 'tset'; did you mean 'test'"):
        opened(folder, "tset")
    with pytest.raises(DataError, match=r"none' is not a folder"):
        opened(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty' cannot be read as a data set"):
        opened(tmp_path / "empty")


def test_a_damaged_file_is_named(folder: Path) -> None:
    (folder / "train-00000.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match="cannot be read as a data set"):
        opened(folder)


def test_without_the_library_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(DataError, match=r"needs the library datasets; pip install 'jaxcls\[hf\]'"):
        hf.open_split(str(folder), DataConfig(), "train")


def test_files_of_one_name_in_two_folders_are_told_apart(tmp_path: Path) -> None:
    datasets.DatasetDict({"train": make(range(6)), "val": make([6])}).save_to_disk(tmp_path)
    files = {**opened(tmp_path).stored_files(), **opened(tmp_path, "val").stored_files()}
    name = "data-00000-of-00001.arrow"
    assert files == {f"{split}/{name}": tmp_path / split / name for split in ("train", "val")}


def test_images_in_files_of_their_own_are_among_the_stored_files(tmp_path: Path) -> None:
    for number in range(4):
        path = tmp_path / f"photos/train/{'cat' if number % 2 == 0 else 'dog'}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number)["bytes"])
    source = opened(tmp_path / "photos", "train[:3]")
    images = [path for path in source.stored_files().values() if path.suffix == ".png"]
    assert sorted(path.read_bytes() for path in images) == sorted(source[i].image for i in range(3))
    assert {str(path) for path in images} <= source.stored_files().keys()
