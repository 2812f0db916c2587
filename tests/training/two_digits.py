"""A source of images with two digits side by side, which have two labels, one (twice) or none."""

import dataclasses
import functools
from typing import Any

import cv2
import numpy as np
from sklearn.datasets import load_digits

from jaxcls.config import DataConfig
from jaxcls.data.source import Record, Source

SIZES = {"train": 96, "test": 50}


@functools.cache
def records(split: str) -> tuple[Record, ...]:
    digits: Any = load_digits()
    generator = np.random.default_rng(len(split))
    made = []
    for left, right in generator.integers(len(digits.images), size=(SIZES[split], 2)):
        empty = generator.uniform() < 0.1
        image = np.hstack([digits.images[left], digits.images[right]]) * (0 if empty else 15.9)
        label = () if empty else tuple(sorted({int(digits.target[i]) for i in (left, right)}))
        made.append(Record(cv2.imencode(".png", image.astype(np.uint8))[1].tobytes(), label))
    return tuple(made)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TwoDigits(Source):
    """One split."""

    multi_label: bool = True

    def __len__(self) -> int:
        return SIZES[self.split]

    def __getitem__(self, index: int) -> Record:
        return records(self.split)[index]


def open_split(name: str, data: DataConfig, split: str, *, field: str) -> TwoDigits:
    del name, data, field
    return TwoDigits(name="two_digits", split=split, class_names=tuple(map(str, range(10))))
