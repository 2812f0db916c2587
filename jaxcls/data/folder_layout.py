"""Finds the split and class of each photo from the folders that it is in."""

import collections
import dataclasses
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from jaxcls.data.listing import LeftOut, Listing, describe_left_out, list_images
from jaxcls.system.errors import DataError
from jaxcls.system.file_names import composed, printable
from jaxcls.system.output import warn_once

logger = logging.getLogger("jaxcls")

# Names of folders that other tools use for splits.
_SPLIT_NAMES = {"train", "training", "test", "testing", "val", "valid", "validation", "eval"}

HOLD_OUT = (
    "evaluate on a part of train instead, with --data.train-split 'train[:80%]' "
    "--data.eval-split 'train[80%:]'"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderLayout:
    """The splits and classes of a folder of photos.

    Their names are the names of the folders in Unicode form NFC, so train and test may come from
    disks that store accents differently. Bytes that are not UTF-8 are written like \\xe9, and
    control characters like \\n.

    Attributes:
      root: the folder.
      has_splits: whether it is PATH/SPLIT/CLASS/* rather than PATH/CLASS/*.
      classes: split -> class -> files; PATH/CLASS/* has one split, "".
      unlabelled: split without class folders -> number of its images.
    """

    root: Path
    has_splits: bool
    classes: dict[str, dict[str, list[str]]]
    unlabelled: dict[str, int]

    def require_labels(self, split: str, *, field: str) -> None:
        """Checks that the splits that are asked for, in TFDS syntax, have class folders.

        Raises:
          DataError: one has none; the message names `field`.
        """
        for term in split.split("+"):
            name = term.partition("[")[0].strip()
            if name in self.unlabelled:
                count = self.unlabelled[name]
                raise DataError(
                    f"{field}: {split!r}: {printable(self.root / name)} has "
                    f"{count:,} image{'' if count == 1 else 's'} but no class folders "
                    f"({name}/CLASS/*), so there are no labels to evaluate with; {HOLD_OUT}"
                )


def read_layout(root: Path, listing: Listing) -> FolderLayout:
    """Sorts the files of a folder into splits and classes, and warns about files that are not used.

    Raises:
      DataError: folders look like splits but are not usable as such, two splits or classes have the
        same name, or a class has no images.
    """
    folders = [tuple(folder.split("/")) for folder in listing.folders]
    has_splits = any(len(parts) > 1 and parts[0] == "train" for parts in folders)
    if not has_splits:
        _check_split_names(root, folders)
    depth = 2 if has_splits else 1  # of the class folders
    names = {parts: tuple(map(_name, parts)) for parts in folders if len(parts) <= depth}
    _check_names(root, names)
    files: dict[tuple[str, ...], list[str]] = {parts: [] for parts in names}
    loose: dict[tuple[str, ...], list[str]] = collections.defaultdict(list)
    for file in listing.files:
        *within, _ = file.split("/")
        kept = files if len(within) >= depth else loose
        kept[tuple(within[:depth])].append(file)
    _tell_left_out(root, listing, [file for outside in loose.values() for file in outside])
    classes: dict[str, dict[str, list[str]]] = collections.defaultdict(dict)
    for parts, found in names.items():
        if len(parts) == depth:
            if not files[parts]:
                raise _no_images(root.joinpath(*parts))
            classes[found[0] if has_splits else ""][found[-1]] = files[parts]
    return FolderLayout(
        root=root,
        has_splits=has_splits,
        classes=dict(classes),
        unlabelled={
            found[0]: len(loose[parts])
            for parts, found in names.items()
            if len(parts) < depth and found[0] not in classes
        },
    )


def _name(folder: str) -> str:
    """Returns the name of the split or class in this folder."""
    return composed(printable(folder))


def _check_names(root: Path, names: dict[tuple[str, ...], tuple[str, ...]]) -> None:
    """Checks that no two folders have names that are equal as a split or class.

    Raises:
      DataError: two folders do; the message names both.
    """
    first: dict[tuple[str, ...], tuple[str, ...]] = {}
    for parts, found in names.items():
        other = first.setdefault(found, parts)
        if other != parts:
            raise DataError(
                f"data.source: {printable(root.joinpath(*parts[:-1]))} has two folders whose "
                f"names look the same ({found[-1]!r}) but are encoded differently "
                f"({other[-1]!a}, {parts[-1]!a}); merge or rename them"
            )
    unprintable = [parts[-1] for parts in names if printable(parts[-1]) != parts[-1]]
    if unprintable:
        warn_once(
            f"{printable(root)}: names of folders that are not UTF-8, or have control characters "
            f"({len(unprintable):,}), are written with codes, for example '{_name(unprintable[0])}'"
        )


def _tell_left_out(root: Path, listing: Listing, outside: Sequence[str]) -> None:
    left_out = dict(listing.left_out)
    if outside:
        left_out["images outside the class folders"] = LeftOut(len(outside), min(outside))
    if left_out:
        warn_once(f"{printable(root)}: not used: {describe_left_out(left_out)}")


def _no_images(folder: Path) -> DataError:
    inside = describe_left_out(list_images(folder).left_out)
    return DataError(
        f"data.source: {printable(folder)} has no images; add some or remove the folder"
        + (f" (it has {inside})" if inside else "")
    )


def _check_split_names(root: Path, folders: Iterable[Sequence[str]]) -> None:
    """Checks that no class folder seems to be a split, such as Train or Test.

    Raises:
      DataError: without `train/CLASS`, a folder with subfolders is named like a split, or no folder
        has subfolders and all are named like splits.
    """
    where = printable(root)
    tops = {parts[0] for parts in folders}
    deep = {parts[0] for parts in folders if len(parts) > 1}
    split_like = {top for top in tops if top.lower() in _SPLIT_NAMES}
    if not split_like & deep and not (len(tops) > 1 and split_like == tops):
        return
    listed = f"{where} has folders that look like splits, not classes"
    bare = sorted(
        top for top in split_like - deep if not split_like & deep or top.lower().startswith("train")
    )
    if bare:
        raise DataError(
            f"data.source: {listed} ({', '.join(sorted(split_like))}), but {' and '.join(bare)} "
            f"{'have' if len(bare) > 1 else 'has'} no class folders; put each image into the "
            f"folder of its class, as in train/CLASS/*"
        )
    found = sorted(split_like & deep)
    training = next((top for top in found if top.lower().startswith("train")), None)
    advice = (
        f"rename {where}/{training} to train" if training else "rename the one to train on to train"
    )
    raise DataError(
        f"data.source: {listed} ({', '.join(found)}), but none of them is named train; {advice}"
    )
