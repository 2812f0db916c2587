"""A folder of photos: PATH/SPLIT/CLASS/*, or PATH/CLASS/* with a split of our own.

Files are put in an order in which every stretch holds the classes in proportion, by a seeded hash
of their names. So any slice, such as train[:90%], is stratified, and so is the split that
PATH/CLASS/* gets: of each class the same share goes to `test`.
"""

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from jaxcls.config.decoding import nearest
from jaxcls.data.folder_index import read_index
from jaxcls.data.folder_layout import HOLD_OUT, FolderLayout, read_layout
from jaxcls.data.listing import is_hidden
from jaxcls.data.source import Record, Source
from jaxcls.data.splits import describe_splits, parse_split
from jaxcls.system.errors import DataError
from jaxcls.system.names import composed, printable
from jaxcls.system.output import warn_once
from jaxcls.system.paths import local_path


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderSource(Source):
    """One split of a folder of photos.

    Attributes:
      root: the folder.
      files: paths of the images under root.
      labels: class number of each file.
    """

    root: str
    files: tuple[str, ...]
    labels: tuple[int, ...]

    @property
    def identity(self) -> str:
        return f"{super().identity}, files {_hash(chr(10).join(self.files), 0).hex()}"

    def class_counts(self) -> np.ndarray:
        return np.bincount(self.labels, minlength=self.num_classes)

    def describe(self, index: int) -> str:
        return f"image {self.example_name(index)!r}"

    def example_name(self, index: int) -> str:
        return os.path.join(self.root, self.files[index])

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Record:
        try:
            data = Path(self.root, self.files[index]).read_bytes()
        except OSError as error:
            raise DataError(
                f"{self.describe(index)}: cannot be read ({error.strerror}); restore it, or start "
                f"again without it"
            ) from error
        return Record(data, self.labels[index])


@dataclasses.dataclass(frozen=True)
class FolderSplit:
    """Files of a stored split in their order, each with the name of its class."""

    files: tuple[tuple[str, str], ...]

    @property
    def num_examples(self) -> int:
        return len(self.files)

    @property
    def shard_lengths(self) -> list[int]:
        return [len(self.files)]  # what TFDS's split syntax wants to know


def open_folder(
    path: str,
    split: str,
    *,
    test_share: float,
    seed: int,
    reuse_index: bool = False,
    field: str = "split",
) -> FolderSource:
    """Opens one split of a folder of photos.

    Args:
      path: PATH/SPLIT/CLASS/* if it has a folder `train` of folders, else PATH/CLASS/*. Images may
        lie deeper; `jaxcls.data.listing` says what counts as one.
      split: in TFDS syntax; PATH/CLASS/* has `train` and `test`.
      test_share: of each class of PATH/CLASS/*, how much belongs to `test`.
      seed: decides the order of the files, and so what is in `test`.
      reuse_index: take the list of files that was made last, which may be out of date.
      field: what an error calls the split.

    Raises:
      DataError: no such folder or split, a split without folders of classes, a class without
        images, two classes of one name, a class that is not in `train`, or fewer than two classes.
    """
    root = local_path(path)
    where = printable(root)
    layout = read_layout(root, read_index(root, reuse=reuse_index))
    splits = _splits(layout, test_share=test_share, seed=seed)
    class_names = _class_names(root, splits["train"])
    hint = (
        ""
        if splits.get("test", splits["train"]).files
        else (f"; data.test_share, {test_share:g}, is too small for the test set of so few images")
    )
    split = composed(split)
    layout.require_labels(split, field=field)
    numbers = {name: number for number, name in enumerate(class_names)}
    chosen = [
        file
        for stored, part in parse_split(split, splits, name=where, field=field, hint=hint)
        for file in splits[stored].files[part]
    ]
    for file, name in chosen:
        if name not in numbers:
            known = any(other in numbers for _, other in chosen)
            raise DataError(
                f"data.source: {printable(root / file)} is of class {name!r}, which is not in "
                f"{where}/train{nearest(name, numbers)}"
                + ("" if known else f"; if such images have no labels, {HOLD_OUT}")
            )
    return FolderSource(
        name=printable(root.name),
        split=split,
        class_names=class_names,
        root=str(root),
        files=tuple(file for file, _ in chosen),
        labels=tuple(numbers[name] for _, name in chosen),
    )


def describe_folder(path: str) -> str:
    """What a folder of photos holds, as a line for a person; its index is built and kept."""
    root = local_path(path)
    splits = _splits(read_layout(root, read_index(root)), test_share=0, seed=0)
    sizes = describe_splits({name: split for name, split in splits.items() if split.files})
    num_classes = len(_class_names(root, splits["train"]))
    return f"{printable(root)} is ready: {num_classes} classes, {sizes}"


def _splits(layout: FolderLayout, *, test_share: float, seed: int) -> dict[str, FolderSplit]:
    """The stored splits, by name; of PATH/CLASS/*, `train` and `test`."""
    if layout.has_splits:
        return {split: _split(_spread(found, seed)) for split, found in layout.classes.items()}
    train, test, met = [], [], set()
    for place, file, name in _spread(layout.classes.get("", {}), seed):
        # The first of a class is always in train.
        (test if place >= 1 - test_share and name in met else train).append((place, file, name))
        met.add(name)
    untested = sorted(met - {name for _, _, name in test})
    if untested and test_share:
        warn_once(
            f"{printable(layout.root)}: {len(untested)} of {len(met)} classes have no image in the "
            f"split test, for example {untested[0]!r}; data.test_share, {test_share:g}, is too "
            f"small for them"
        )
    return {"train": _split(train), "test": _split(test)}


def _spread(by_class: Mapping[str, list[str]], seed: int) -> list[tuple[float, str, str]]:
    """(place in [0, 1], file, class), ordered; each class lies evenly over the whole range."""
    placed = []
    for name, members in by_class.items():
        shuffled = sorted(members, key=lambda file: _hash(file, seed))
        placed += [((i + 0.5) / len(members), file, name) for i, file in enumerate(shuffled)]
    return sorted(placed, key=lambda entry: (entry[0], _hash(entry[1], seed)))


def _hash(file: str, seed: int) -> bytes:
    return hashlib.blake2b(os.fsencode(f"{seed}/{file}"), digest_size=8).digest()


def _split(placed: Iterable[tuple[float, str, str]]) -> FolderSplit:
    return FolderSplit(tuple((file, name) for _, file, name in placed))


def _class_names(root: Path, train: FolderSplit) -> tuple[str, ...]:
    classes = {name for _, name in train.files}
    if len(classes) < 2:
        deeper = _deeper(root, classes)
        hint = f"; is it data.source folder:{deeper}?" if deeper != root else ""
        raise DataError(
            f"data.source: {root} has {'one class' if classes else 'no classes'}; a classifier "
            f"needs two or more, as PATH/CLASS/* or PATH/train/CLASS/*{hint}"
        )
    return tuple(sorted(classes))


def _deeper(root: Path, names: Iterable[str]) -> Path:
    """The folder of classes or splits that seems to be meant, where root has one folder only."""
    folder, inner = root, [root / name for name in names]
    while len(inner) == 1 and inner[0].is_dir():
        folder = inner[0]
        inner = [
            child for child in folder.iterdir() if child.is_dir() and not is_hidden(child.name)
        ]
    return folder if inner and folder != root else root
