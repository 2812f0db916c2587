"""A folder of photos: PATH/SPLIT/CLASS/*, or PATH/CLASS/*, which jaxcls splits.

Files are ordered, by a seeded hash of their names, so that every part of the order has the classes
in proportion. So any slice, such as train[:90%], is stratified, and so are the `train` and `test`
of PATH/CLASS/*: the same share of each class is in `test`.
"""

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jaxcls.config.decoding import nearest
from jaxcls.data.folder_index import index_folder
from jaxcls.data.folder_layout import HOLD_OUT, FolderLayout, read_layout
from jaxcls.data.listing import is_hidden
from jaxcls.data.source import Label, Record, Source, require_single_labels
from jaxcls.data.splits import describe_splits, parse_split
from jaxcls.system.errors import DataError
from jaxcls.system.file_names import composed, printable
from jaxcls.system.output import warn_once
from jaxcls.system.paths import local_path

if TYPE_CHECKING:
    from jaxcls.config import DataConfig


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

    def all_labels(self) -> Sequence[Label]:
        return self.labels

    def describe(self, index: int) -> str:
        return f"image {self.example_name(index)!r}"

    def example_name(self, index: int) -> str:
        return os.path.join(self.root, self.files[index])

    def stored_files(self) -> dict[str, Path]:
        return {file: Path(self.root, file) for file in self.files}

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Record:
        try:
            data = Path(self.root, self.files[index]).read_bytes()
        except OSError as error:
            raise DataError(
                f"{self.describe(index)}: cannot be read ({error.strerror}); restore it, or remove "
                f"it and start again"
            ) from error
        return Record(data, self.labels[index])


@dataclasses.dataclass(frozen=True)
class FolderSplit:
    """The files of a split in order, each with the name of its class."""

    files: tuple[tuple[str, str], ...]

    @property
    def num_examples(self) -> int:
        return len(self.files)

    @property
    def shard_lengths(self) -> list[int]:
        return [len(self.files)]  # TFDS's split syntax needs this


def open_split(path: str, data: "DataConfig", split: str, *, field: str = "split") -> FolderSource:
    """Opens one split of a folder of photos.

    Args:
      path: PATH/SPLIT/CLASS/* if it has a folder `train` with folders, else PATH/CLASS/*. Images
        may be in deeper folders; `jaxcls.data.listing` defines what counts as an image.
      data: `test_share` (of PATH/CLASS/*: the share of each class in `test`), `split_seed` (decides
        the order of the files, and so what is in `test`), and `folder_index` ("reuse" takes the
        saved list of files, which may be out of date).
      split: in TFDS syntax; PATH/CLASS/* has `train` and `test`.
      field: the name of the field that gave the split, for error messages.

    Raises:
      DataError: there is no such folder or split, a split has no class folders, a class has no
        images or is not in `train`, two classes have the same name, there are fewer than two
        classes, or data.labels is "multiple".
    """
    require_single_labels(data)
    root = local_path(path)
    where = printable(root)
    layout = read_layout(root, index_folder(root, reuse=data.folder_index == "reuse"))
    splits = _splits(layout, test_share=data.test_share, seed=data.split_seed)
    class_names = _class_names(root, splits["train"])
    share = data.test_share
    hint = f"; data.test_share, {share:g}, is too small for the test set of so few images"
    if splits.get("test", splits["train"]).files:
        hint = ""
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


def prepare(path: str, data_dir: str | None = None) -> str:
    """Indexes the folder and saves the index; see `jaxcls.data.sources.prepare_source`."""
    del data_dir
    root = local_path(path)
    splits = _splits(read_layout(root, index_folder(root)), test_share=0, seed=0)
    sizes = describe_splits({name: split for name, split in splits.items() if split.files})
    num_classes = len(_class_names(root, splits["train"]))
    return f"{printable(root)} is ready: {num_classes} classes, {sizes}"


def _splits(layout: FolderLayout, *, test_share: float, seed: int) -> dict[str, FolderSplit]:
    """The splits by name: those of PATH/SPLIT/CLASS/*, or `train` and `test` of PATH/CLASS/*."""
    if layout.has_splits:
        return {split: _split(_spread(found, seed)) for split, found in layout.classes.items()}
    train, test, seen = [], [], set()
    for place, file, name in _spread(layout.classes.get("", {}), seed):
        # The first file of a class is always in train.
        (test if place >= 1 - test_share and name in seen else train).append((place, file, name))
        seen.add(name)
    untested = sorted(seen - {name for _, _, name in test})
    if untested and test_share:
        warn_once(
            f"{printable(layout.root)}: {len(untested)} of {len(seen)} classes have no image in "
            f"the split test, for example {untested[0]!r}; data.test_share, {test_share:g}, is too "
            f"small for them"
        )
    return {"train": _split(train), "test": _split(test)}


def _spread(by_class: Mapping[str, list[str]], seed: int) -> list[tuple[float, str, str]]:
    """Sorted (place in [0, 1], file, class); the files of a class are spread evenly over [0, 1]."""
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
        hint = f"; did you mean data.source folder:{deeper}?" if deeper != root else ""
        raise DataError(
            f"data.source: {root} has {'one class' if classes else 'no classes'}; a classifier "
            f"needs two or more, as PATH/CLASS/* or PATH/train/CLASS/*{hint}"
        )
    return tuple(sorted(classes))


def _deeper(root: Path, names: Iterable[str]) -> Path:
    """The deeper folder that the user seems to mean, where root has one folder only; else root."""
    folder, inner = root, [root / name for name in names]
    while len(inner) == 1 and inner[0].is_dir():
        folder = inner[0]
        inner = [
            child for child in folder.iterdir() if child.is_dir() and not is_hidden(child.name)
        ]
    return folder if inner and folder != root else root
