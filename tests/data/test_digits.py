import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from jaxcls.data.decode import decode_image
from jaxcls.data.sources import open_source, prepare_source
from jaxcls.system.errors import DataError

OPEN = """
import sys, time
from jaxcls.config import DataConfig
from jaxcls.data.sources import open_source
source = open_source(DataConfig(), "train")
source[len(source) - 1]
print(len(source), *(name for name in ("sklearn", "tensorflow", "jax") if name in sys.modules))
"""


def start(cache):
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", OPEN],
        env={**os.environ, "XDG_CACHE_HOME": str(cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_prepared_once_by_processes_that_start_together(tmp_path):
    processes = [start(tmp_path) for _ in range(2)]
    outputs = [process.communicate(timeout=60) for process in processes]
    for (out, err), process in zip(outputs, processes, strict=True):
        assert process.returncode == 0, err
        assert err == ""
        assert out.split()[0] == "1442"
        assert "tensorflow" not in out
    assert [path.name for path in (tmp_path / "jaxcls").iterdir()] == ["digits"]
    # From now on nothing but TFDS is needed.
    out, err = start(tmp_path).communicate(timeout=60)
    assert (out, err) == ("1442\n", "")


def test_is_scikit_learns_set(digits_config):
    expected, actual = [], []
    images, labels = load_digits(return_X_y=True)
    for image, label in zip(images.reshape(-1, 8, 8), labels, strict=True):
        pixels = np.round(image * (255 / 16)).astype(np.uint8)
        expected.append((pixels.tobytes(), int(label)))
    for split in ("train", "test"):
        source = open_source(digits_config, split)
        assert source.class_names == tuple("0123456789")
        for i in range(len(source)):
            pixels = decode_image(source[i].image, where="it")
            assert pixels.shape == (8, 8, 3)
            actual.append((pixels[:, :, 0].tobytes(), source[i].label))
    assert sorted(actual) == sorted(expected)


def test_split_is_fixed_and_stratified(digits_config):
    train, test = (open_source(digits_config, split) for split in ("train", "test"))
    assert (len(train), len(test)) == (1442, 355)
    counts = np.bincount([test[i].label for i in range(len(test))])
    assert counts.min() >= 34
    assert counts.max() <= 36
    digest = hashlib.sha256()
    for i in range(len(test)):
        digest.update(decode_image(test[i].image, where="it").tobytes())
    assert digest.hexdigest()[:16] == "343ddc0d01d59c54"


def test_a_disk_that_fills_up(tmp_path, full_disk):
    with pytest.raises(DataError, match=f"data.data_dir: .*{tmp_path}: the disk is full; free"):
        prepare_source("digits", str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]
