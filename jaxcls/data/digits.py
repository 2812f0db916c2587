"""The `digits` data set: real handwriting that needs no download.

scikit-learn ships 1,797 of the handwritten digits of the UCI repository (the test part of
"Optical Recognition of Handwritten Digits": 8x8 pixels, 17 grey levels, 13 writers). It has no
splits, so jaxcls defines them: in scikit-learn's order, every fifth digit of each class is in
`test` (355 digits) and the others are in `train` (1,442). The same writers appear in both.
"""

import contextlib
import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import tensorflow_datasets as tfds

from jaxcls.data.full_disk import disk_is_full
from jaxcls.data.source import Source, require_single_labels
from jaxcls.data.tfds import describe_prepared, open_prepared
from jaxcls.system.caches import make_cache_dir, possible_cache_dirs
from jaxcls.system.errors import DataError
from jaxcls.system.paths import local_path

if TYPE_CHECKING:
    from jaxcls.config import DataConfig


class Digits(tfds.core.GeneratorBasedBuilder):
    """scikit-learn's handwritten digits as grey 8x8 PNGs."""

    VERSION = tfds.core.Version("1.0.0")
    # Nothing is downloaded. Without this, TFDS 4.9.10 looks for checksums with importlib_resources,
    # which it does not install.
    url_infos = None

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="scikit-learn's 1,797 handwritten digits, 8x8 pixels.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=[str(digit) for digit in range(10)]),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80",
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in ("train", "test")}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
        from sklearn.datasets import load_digits  # slow to import, needed only here

        pixels, labels = load_digits(return_X_y=True)
        images = np.round(pixels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
        seen = np.zeros(10, int)
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            seen[label] += 1
            if (seen[label] % 5 == 0) == (split == "test"):
                png = cv2.imencode(".png", image)[1].tobytes()
                yield number, {"image": png, "label": int(label)}


def open_split(name: str, data: "DataConfig", split: str, *, field: str) -> Source:
    """Opens a split of the digits; see `jaxcls.data.sources.open_source`."""
    del name
    require_single_labels(data)
    return open_prepared(prepared_digits(data.data_dir), name="digits", split=split, field=field)


def prepare(name: str, data_dir: str | None) -> str:
    """Writes the data set where needed; see `jaxcls.data.sources.prepare_source`."""
    del name
    return describe_prepared(prepared_digits(data_dir), name="digits")


def prepared_digits(data_dir: str | None) -> Path:
    """Returns the folder of the digits in data_dir (None: the user's cache); writes it if needed.

    Raises:
      DataError: the folder cannot be written, or the disk is full.
    """
    if data_dir:
        root = local_path(data_dir)
    else:  # a cache that is now read-only may hold them already
        holding = (folder for folder in possible_cache_dirs() if _is_folder(_folder_in(folder)))
        root = next(holding, None) or make_cache_dir()
    try:
        return _write(root)
    except Exception as error:  # ArrayRecord's writer raises RuntimeErrors
        if disk_is_full(error):
            raise DataError(
                f"data.data_dir: cannot prepare digits in {root}: the disk is full; free some "
                f"space, or name another folder"
            ) from error
        if not isinstance(error, OSError):
            raise
        raise DataError(
            f"data.data_dir: cannot prepare digits in {root} ({error}); name a folder "
            f"that can be written"
        ) from error


def _write(data_dir: Path) -> Path:
    """Writes the data set to data_dir/digits/VERSION as ArrayRecord, unless it exists.

    Several processes may do this at the same time: each writes to its own temporary folder and
    renames that. The first one wins, and nobody ever sees a half-written folder.

    Raises:
      OSError: data_dir cannot be written.
    """
    final = _folder_in(data_dir)
    if final.exists():
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=data_dir, prefix=".preparing-digits-") as scratch:
        quiet = io.StringIO()  # no progress bars for a second's work
        with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
            Digits(data_dir=scratch).download_and_prepare(file_format="array_record")
        try:
            os.rename(Path(scratch) / "digits" / final.name, final)
        except OSError:
            if not final.exists():
                raise
    return final


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False


def _folder_in(data_dir: Path) -> Path:
    return data_dir / "digits" / str(Digits.VERSION)
