"""Sets of TensorFlow Datasets: finding, preparing and reading them.

Reading takes ArrayRecord files and no TensorFlow. Preparing runs the set's own code, which may
download and, for some sets, needs TensorFlow (the extra `prepare`).
"""

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core import constants

from jaxcls.config.decoding import nearest
from jaxcls.data.source import Record, Source
from jaxcls.data.splits import describe_splits, parse_split
from jaxcls.system.errors import DataError
from jaxcls.system.paths import expand_home
from jaxcls.system.shell import command, path_word


@dataclasses.dataclass(frozen=True, kw_only=True)
class TfdsSource(Source):
    """One split of a prepared TFDS set, read without TensorFlow.

    Attributes:
      folder: where the prepared set lies.
      records: TFDS's data source, with the image left encoded.
      image_key: feature that holds the image.
      label_key: feature that holds the label.
    """

    folder: str
    records: Sequence[Any]
    image_key: str
    label_key: str

    @property
    def identity(self) -> str:
        return f"version {os.path.basename(self.folder)}, {super().identity}"

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        try:
            example = self.records[index]
            # Both are None where a file was cut off between two blocks.
            image, label = bytes(example[self.image_key]), int(example[self.label_key])
        except Exception as error:  # the readers raise anything from RuntimeError to TypeError
            raise DataError(
                f"{self.describe(index)}: cannot be read from {self.folder} "
                f"({first_line(error)}); the prepared files are damaged: delete that folder and "
                f"prepare it again"
            ) from error
        if not 0 <= label < self.num_classes:
            raise DataError(
                f"{self.describe(index)}: label {label} is none of the {self.num_classes} classes; "
                f"choose a labelled split"
            )
        return Record(image, label)


class NotPreparedError(DataError):
    """The set is not there, or not finished; the message says how to prepare it."""


def data_root(data_dir: str | None) -> epath.Path:
    """The folder that holds the prepared sets: data_dir, or the usual place of TFDS."""
    return epath.Path(expand_home(os.fspath(data_dir or constants.DATA_DIR)))


def find_prepared(name: str, data_dir: str | None) -> epath.Path:
    """The folder of a prepared set: the newest version, unless the name says which.

    Args:
      name: NAME, NAME/CONFIG, or either with :VERSION.
      data_dir: where to look (None: the usual place of TFDS).

    Raises:
      NotPreparedError: it is not there; the message has the command that prepares it.
      DataError: it has several configs and the name does not say which.
    """
    name, _, version = name.partition(":")
    root = data_root(data_dir)
    folders = _prepared_folders(root / name)
    if not folders:
        raise NotPreparedError(_why_not_prepared(name, root))
    configs = sorted(
        {folder.parent.name for folder in folders if folder.parent.parent == root / name}
    )
    if len(configs) > 1:
        known = ", ".join(f"tfds:{name}/{config}" for config in configs)
        raise DataError(f"data.source: 'tfds:{name}' has several configs; choose one of {known}")
    by_version = {folder.name: folder for folder in folders}
    if version and version not in by_version:
        raise NotPreparedError(
            f"data.source: version {version!r} of {name} is not prepared in {root / name} "
            f"(there: {', '.join(sorted(by_version))})"
        )
    return by_version[version or max(by_version, key=_version_key)]


def _prepared_folders(base: epath.Path) -> list[epath.Path]:
    """Finished folders under base, at VERSION or CONFIG/VERSION."""
    if not base.is_dir():
        return []
    children = [child for child in base.iterdir() if child.is_dir()]
    grandchildren = [
        grandchild
        for child in children
        if not _is_version(child.name)
        for grandchild in child.iterdir()
        if grandchild.is_dir()
    ]
    return [folder for folder in children + grandchildren if _is_version(folder.name)]


def _is_version(name: str) -> bool:
    return re.fullmatch(r"\d+\.\d+\.\d+", name) is not None


def _version_key(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _why_not_prepared(name: str, root: epath.Path) -> str:
    builder = name.partition("/")[0]
    folder = root / name
    known = tfds.list_builders(with_community_datasets=False)
    if folder.is_dir() and any(child.name.startswith("incomplete.") for child in folder.iterdir()):
        problem = f"was not finished preparing in {folder}: prepare it"
    elif builder in known:
        problem = f"is not prepared (looked in {folder}): prepare it"
    else:
        prepared = [child.name for child in root.iterdir()] if root.is_dir() else []
        return (
            f"data.source: 'tfds:{name}' is neither prepared in {root} nor known to TensorFlow "
            f"Datasets{nearest(builder, [*prepared, *known])}"
        )
    return (
        f"data.source: 'tfds:{name}' {problem} once with\n"
        f"  {command('prepare', f'tfds:{name}', '--data-dir', path_word(root))}\n"
        f"or set data.prepare, and training does it"
    )


def open_prepared(
    folder: "os.PathLike[str]",
    *,
    name: str,
    split: str,
    keys: tuple[str | None, str | None] = (None, None),
    field: str = "split",
) -> Source:
    """Opens a split of the TFDS set in `folder`, without the code that made it.

    Args:
      folder: holds dataset_info.json and ArrayRecord files.
      name: of the set, for messages.
      split: in TFDS syntax.
      keys: features that hold the image and the label; None: found by the set's description.
      field: what an error calls the split.

    Raises:
      DataError: a damaged folder, other files than ArrayRecord, no such split or feature, or no
        image classification set.
    """
    builder = _read_builder(folder, name=name)
    features: Mapping[str, Any] = builder.info.features
    image_key, label_key = _find_keys(features, builder.info.supervised_keys, keys, name=name)
    parse_split(split, builder.info.splits, name=name, field=field)
    _check_files(builder.info, name=name, split=split, folder=folder)
    records = builder.as_data_source(split=split, decoders={image_key: tfds.decode.SkipDecoding()})
    return TfdsSource(
        name=name,
        split=split,
        class_names=tuple(features[label_key].names),
        folder=os.fspath(folder),
        records=records,
        image_key=image_key,
        label_key=label_key,
    )


def describe_prepared(folder: "os.PathLike[str]", *, name: str) -> str:
    """Where a prepared set lies and the sizes of its splits."""
    splits = _read_builder(folder, name=name).info.splits
    return f"{name} is ready in {folder}: {describe_splits(splits)}"


def _read_builder(folder: "os.PathLike[str]", *, name: str) -> Any:
    """The set's description and reader (annotated as Any: TFDS's annotations mislead)."""
    try:
        builder = tfds.builder_from_directory(folder)
    except Exception as error:  # damaged JSON raises protobuf's, TFDS's and the system's errors
        raise DataError(
            f"data.source: {folder} is no complete TFDS folder ({first_line(error)}); "
            f"delete it and prepare {name} again"
        ) from error
    formats = {file_format.value for file_format in builder.info.available_file_formats()}
    if "array_record" not in formats:
        root = epath.Path(folder).parents[len(name.split("/"))]
        raise DataError(
            f"data.source: {name} is prepared in {folder} as {', '.join(sorted(formats))} only, "
            f"which cannot be read at any place; convert it once with\n"
            f"  {command('prepare', f'tfds:{name}', '--data-dir', path_word(root))}\n"
            f"or set data.prepare, and training does it"
        )
    return builder


def _find_keys(
    features: Mapping[str, Any],
    supervised: tuple[Any, ...] | None,
    keys: tuple[str | None, str | None],
    *,
    name: str,
) -> tuple[str, str]:
    """Names of the image and the label: as asked for, the supervised pair, or the only ones."""
    found = []
    for field, key, kind, default in zip(
        ("data.image_key", "data.label_key"),
        keys,
        (tfds.features.Image, tfds.features.ClassLabel),
        supervised if supervised and len(supervised) == 2 else (None, None),
        strict=True,
    ):
        candidates = sorted(k for k, feature in features.items() if isinstance(feature, kind))
        if key is not None and key not in candidates:
            raise DataError(
                f"{field}: {key!r} is no {kind.__name__} of {name}{nearest(key, candidates)} "
                f"(features: {_describe(features)})"
            )
        chosen = key or (default if default in candidates else None)
        if chosen is None and len(candidates) > 1:
            raise DataError(f"{field}: {name} has several ({', '.join(candidates)}); say which one")
        if chosen is None and not candidates:
            raise DataError(
                f"data.source: {name} is no image classification set: it needs an Image and a "
                f"ClassLabel, and has {_describe(features)}"
            )
        found.append(chosen or candidates[0])
    image_key, label_key = found
    return image_key, label_key


def _describe(features: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}: {type(value).__name__}" for key, value in sorted(features.items()))


def _check_files(
    info: tfds.core.DatasetInfo, *, name: str, split: str, folder: "os.PathLike[str]"
) -> None:
    paths = info.splits[split].filepaths
    missing = _missing_files(paths)
    if missing:
        raise DataError(
            f"data.source: {len(missing)} of {len(paths)} files of {name} {split!r} are "
            f"missing in {folder}, the first {missing[0]}; delete that folder and prepare it again"
        )


def _missing_files(paths: Iterable[epath.Path]) -> list[str]:
    present: dict[Any, set[str]] = {}  # folder -> its files; one listing instead of many requests
    missing = []
    for path in paths:
        if path.parent not in present:
            present[path.parent] = {file.name for file in path.parent.iterdir()}
        if path.name not in present[path.parent]:
            missing.append(path.name)
    return missing


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type."""
    return next(iter(str(error).splitlines()), type(error).__name__)
