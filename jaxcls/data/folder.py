"""A folder of photos: PATH/SPLIT/CLASS/*, or PATH/CLASS/*, which jaxcls splits.

Files are ordered, by a seeded hash of their names, so that every part of the order has the classes
in proportion. So any slice, such as train[:90%], is stratified, and so are the `train` and `test`
of PATH/CLASS/*: the same share of each class is in `test`.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from jaxcls.config.decoding import nearest
from jaxcls.data.folder_index import index_folder
from jaxcls.data.folder_layout import HOLD_OUT, FolderLayout, read_layout
from jaxcls.data.labelled_files import FileSource, FileSplit, spread, train_and_test
from jaxcls.data.listing import is_hidden
from jaxcls.data.source import require_single_labels
from jaxcls.data.splits import describe_splits, parse_split
from jaxcls.system.errors import DataError
from jaxcls.system.file_names import composed, printable
from jaxcls.system.output import warn_once
from jaxcls.system.paths import local_path

if TYPE_CHECKING:
    from jaxcls.config import DataConfig


def open_split(path: str, data: "DataConfig", split: str, *, field: str = "split") -> FileSource:
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
    return FileSource(
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


def _splits(layout: FolderLayout, *, test_share: float, seed: int) -> dict[str, FileSplit[str]]:
    """The splits by name: those of PATH/SPLIT/CLASS/*, or `train` and `test` of PATH/CLASS/*."""
    if layout.has_splits:
        return {
            split: FileSplit(tuple((file, name) for _, file, name in spread(found, seed)))
            for split, found in layout.classes.items()
        }
    placed = spread(layout.classes.get("", {}), seed)
    train, test = train_and_test(placed, test_share=test_share)
    classes = {name for _, name in train}
    untested = sorted(classes - {name for _, name in test})
    if untested and test_share:
        warn_once(
            f"{printable(layout.root)}: {len(untested)} of {len(classes)} classes have no image in "
            f"the split test, for example {untested[0]!r}; data.test_share, {test_share:g}, is too "
            f"small for them"
        )
    return {"train": FileSplit(tuple(train)), "test": FileSplit(tuple(test))}


def _class_names(root: Path, train: FileSplit[str]) -> tuple[str, ...]:
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
