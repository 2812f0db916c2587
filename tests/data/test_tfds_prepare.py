import errno
import socket
import sys

import numpy as np
import pytest
import requests
import tensorflow_datasets as tfds

from jaxcls.config import DataConfig
from jaxcls.data import tfds_prepare
from jaxcls.data.sources import open_source, prepare_source
from jaxcls.system.errors import DataError


class JaxclsToy(tfds.core.GeneratorBasedBuilder):
    """A set that TFDS knows by name; `example` and `fetch` stand in for what real ones do."""

    VERSION = tfds.core.Version("2.0.1")
    BUILDER_CONFIGS = (tfds.core.BuilderConfig(name="small"), tfds.core.BuilderConfig(name="large"))
    MANUAL_DOWNLOAD_INSTRUCTIONS = "fetch toys.tar by hand"
    url_infos = None

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=["cat", "dog"]),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager):
        type(self).fetch(dl_manager)
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for number in range(4):
            yield number, {"image": type(self).example(), "label": number % 2}

    @staticmethod
    def fetch(dl_manager):
        """Nothing to download."""

    @staticmethod
    def example():
        """A PNG of one pixel."""
        return bytes.fromhex(
            "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de"
            "0000000c49444154789c63e0fb2d0a0002c4014aa3bd93aa0000000049454e44ae426082"
        )


@pytest.fixture(autouse=True)
def quiet(monkeypatch, request):
    """No network, whatever the machine has; not a test may wait for one."""

    def nowhere(*_):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    monkeypatch.setattr(tfds_prepare.urllib.request, "getproxies", dict)


def config(tmp_path, name="jaxcls_toy/small", **fields):
    return DataConfig(source=f"tfds:{name}", data_dir=str(tmp_path), **fields)


def fails(match, tmp_path, name="jaxcls_toy/small"):
    with pytest.raises(DataError, match=match):
        prepare_source(f"tfds:{name}", str(tmp_path))
    assert not list(tmp_path.glob("jaxcls_toy/*/*.*.*"))  # nothing that looks finished


@pytest.mark.parametrize("name", ["jaxcls_toy/small", "jaxcls_toy/small:2.0.1"])
def test_a_set_is_prepared_when_asked_and_only_once(tmp_path, monkeypatch, name):
    with pytest.raises(
        DataError, match=f"jaxcls prepare tfds:jaxcls_toy/small --data-dir {tmp_path}"
    ):
        open_source(config(tmp_path, name), "train")
    source = open_source(config(tmp_path, name, prepare=True), "train")
    assert [source[index].label for index in range(4)].count(1) == 2
    monkeypatch.setattr(JaxclsToy, "fetch", lambda _: pytest.fail("prepared again"))
    assert len(open_source(config(tmp_path, name, prepare=True), "train")) == 4
    assert len(open_source(config(tmp_path, name), "train")) == 4
    assert prepare_source(f"tfds:{name}", str(tmp_path)) == (
        f"jaxcls_toy/small is ready in {tmp_path}/jaxcls_toy/small/2.0.1: train 4"
    )


def test_an_interrupted_preparation_is_simply_repeated(tmp_path):
    (tmp_path / "jaxcls_toy/small/incomplete.ABCDEF_2.0.1").mkdir(parents=True)
    assert "train 4" in prepare_source("tfds:jaxcls_toy/small", str(tmp_path))


def test_unknown_names(tmp_path):
    fails("TensorFlow Datasets has no 'tfds:jaxcls_toy/tiny' ", tmp_path, "jaxcls_toy/tiny")
    fails(
        "TensorFlow Datasets has no 'tfds:jaxcls_toi'.*did you mean 'jaxcls_toy'",
        tmp_path,
        "jaxcls_toi",
    )
    fails(
        "TensorFlow Datasets has no 'tfds:jaxcls_toy/small:9.9.9'",
        tmp_path,
        "jaxcls_toy/small:9.9.9",
    )


def test_pixels_need_tensorflow_for_this_one_step(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    monkeypatch.setattr(JaxclsToy, "example", lambda: np.zeros((2, 2, 3), np.uint8))
    fails(
        r"needs TensorFlow to be prepared.*\n  uv run --extra prepare jaxcls prepare "
        rf"tfds:jaxcls_toy/small --data-dir {tmp_path}\n.*pip install -e '.\[prepare\]'",
        tmp_path,
    )


def test_no_network_is_told_at_once(tmp_path, monkeypatch):
    fails(
        r"must be downloaded, but there is no network \(download.tensorflow.org",
        tmp_path,
        "tf_flowers",
    )


@pytest.mark.parametrize("name", ["cats_vs_dogs", "caltech101", "cifar10", "tf_flowers"])
def test_the_sets_of_our_configs_are_known_to_need_a_download(tmp_path, name):
    fails(f"'tfds:{name}' must be downloaded", tmp_path, name)


def test_behind_a_proxy_names_are_its_business(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds_prepare.urllib.request, "getproxies", lambda: {"http": "proxy"})

    def refuse(url, **_):
        raise requests.ConnectionError("refused")

    monkeypatch.setattr("tensorflow_datasets.core.download.downloader._open_url", refuse)
    fails("refused; check disk and network", tmp_path, "tf_flowers")


def test_a_set_to_fetch_by_hand_says_so_without_a_network(tmp_path):
    match = r"must be downloaded by hand. Manual directory (.|\n)*ILSVRC2012"
    fails(match, tmp_path, "imagenet2012")


def test_files_that_must_be_fetched_by_hand(tmp_path, monkeypatch):
    monkeypatch.setattr(JaxclsToy, "fetch", lambda manager: manager.manual_dir)
    fails(r"must be downloaded by hand. Manual directory (.|\n)*fetch toys.tar by hand", tmp_path)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full; free some space"),
        (OSError("Not enough disk space. Needed: 9 GiB"), "the disk is full; free some space"),
        (PermissionError(errno.EACCES, "Permission denied"), "cannot be written .*choose another"),
        (requests.ConnectionError("Connection reset"), "Connection reset; check disk and network"),
        (KeyError("shape"), "KeyError: 'shape'"),
    ],
)
def test_what_went_wrong_is_told(tmp_path, monkeypatch, error, message):
    def fetch(_):
        raise error

    monkeypatch.setattr(JaxclsToy, "fetch", fetch)
    fails(
        f"data.source: 'tfds:jaxcls_toy/small' cannot be prepared in {tmp_path}: .*{message}",
        tmp_path,
    )


def test_disk_that_fills_up_while_examples_are_written(tmp_path, full_disk):
    fails("the disk is full; free some space, or choose another data.data_dir", tmp_path)


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    fails("cannot be written .*choose another data.data_dir", tmp_path / "file")
