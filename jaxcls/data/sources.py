"""Random access to (encoded image, label): the digits, and any prepared TFDS set by its name.

A new kind of source is a subclass of `Source` and a branch in `open_source`. TensorFlow Datasets is
imported when a source is opened (1 s), TensorFlow never.
"""

import abc
import dataclasses
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from jaxcls.data.decode import DataError
from jaxcls.decoding import nearest

if TYPE_CHECKING:
    import tensorflow_datasets as tfds
    from etils import epath

    from jaxcls.config import DataConfig


@dataclasses.dataclass(frozen=True)
class Record:
    """One example as stored.

    Attributes:
      image: content of an image file.
      label: class number in [0, num_classes).
    """

    image: bytes
    label: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source(abc.ABC):
    """Random access to the records of one split; picklable, and safe to read from many threads.

    Attributes:
      name: the data set, for messages and charts.
      split: the split as asked for, for example "train[:90%]".
      class_names: one name a class, in the order of the labels.
    """

    name: str
    split: str
    class_names: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def describe(self, index: int) -> str:
        """What an error calls record `index`."""
        return f"record {index} of {self.name} {self.split!r}"

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def __getitem__(self, index: int) -> Record:
        """Reads record `index`, 0 <= index < len(self).

        Raises:
          DataError: the record cannot be read, or its label is no class number.
        """


def open_source(data: "DataConfig", split: str) -> Source:
    """Opens the data set that `data.source` names.

    Args:
      data: `source` and `data_dir` are used.
      split: a split in TFDS syntax, for example "train[:90%]".

    Raises:
      DataError: no such source, set or split, or a set that is not prepared, damaged, empty, or no
        image classification set.
    """
    scheme, _, name = data.source.partition(":")
    if data.source == "digits":
        return _open_digits(data.data_dir, split)
    if scheme == "tfds" and name:
        return _open_tfds(name, data.data_dir, split)
    known = ["digits", "tfds:NAME", "tfds:NAME:VERSION"]
    hint = nearest(scheme, ["digits", "tfds"])
    raise DataError(
        f"data.source: unknown source {data.source!r}{hint} (known: {', '.join(known)})"
    )


def _open_digits(data_dir: str | None, split: str) -> Source:
    from jaxcls.data import digits

    root = Path(data_dir).expanduser() if data_dir else _cache_dir()
    try:
        folder = digits.prepare(root)
    except OSError as error:
        raise DataError(
            f"data.data_dir: cannot prepare digits in {root} ({error}); "
            f"name a folder that can be written"
        ) from error
    return _open_prepared(folder, name="digits", split=split)


def _cache_dir() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxcls"


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
                f"({_first_line(error)}); the prepared files are damaged: delete that folder and "
                f"prepare it again"
            ) from error
        if not 0 <= label < self.num_classes:
            raise DataError(
                f"{self.describe(index)}: label {label} is none of the {self.num_classes} classes; "
                f"choose a labelled split"
            )
        return Record(image, label)


def _open_tfds(name: str, data_dir: str | None, split: str) -> Source:
    from etils import epath
    from tensorflow_datasets.core import constants

    name, _, version = name.partition(":")
    root = epath.Path(data_dir or constants.DATA_DIR).expanduser()
    folders = _prepared_folders(root / name)
    if not folders:
        raise DataError(_why_not_prepared(name, root))
    configs = sorted(
        {folder.parent.name for folder in folders if folder.parent.parent == root / name}
    )
    if len(configs) > 1:
        known = ", ".join(f"tfds:{name}/{config}" for config in configs)
        raise DataError(f"data.source: 'tfds:{name}' has several configs; choose one of {known}")
    by_version = {folder.name: folder for folder in folders}
    if version and version not in by_version:
        raise DataError(
            f"data.source: version {version!r} of {name} is not prepared in {root / name} "
            f"(there: {', '.join(sorted(by_version))})"
        )
    folder = by_version[version or max(by_version, key=_version_key)]
    return _open_prepared(folder, name=name, split=split)


def _prepared_folders(base: "epath.Path") -> list["epath.Path"]:
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


def _why_not_prepared(name: str, root: "epath.Path") -> str:
    import tensorflow_datasets as tfds

    builder = name.partition("/")[0]
    if (root / name).is_dir() and any(
        child.name.startswith("incomplete.") for child in (root / name).iterdir()
    ):
        problem = (
            f"was not finished preparing in {root / name}: delete that folder, then prepare it"
        )
    elif builder in (known := tfds.list_builders(with_community_datasets=False)):
        problem = f"is not prepared (looked in {root / name}): prepare it"
    else:
        prepared = [child.name for child in root.iterdir()] if root.is_dir() else []
        return (
            f"data.source: 'tfds:{name}' is neither prepared in {root} nor known to TensorFlow "
            f"Datasets{nearest(builder, [*prepared, *known])}"
        )
    return f"data.source: 'tfds:{name}' {problem} once with\n  {_prepare_command(name, root)}"


def _prepare_command(name: str, root: "epath.Path") -> str:
    return (
        f'python -c "import tensorflow_datasets as tfds; tfds.builder({name!r}, '
        f"data_dir={str(root)!r}).download_and_prepare(file_format='array_record')\"\n"
        f"(if it says that TensorFlow is missing, first pip install 'jaxcls[prepare]'; "
        f"training does not need it)"
    )


def _open_prepared(folder: "os.PathLike[str]", *, name: str, split: str) -> Source:
    """Opens a split of the TFDS set in `folder`, without the code that made it."""
    import tensorflow_datasets as tfds

    try:
        builder = cast(Any, tfds.builder_from_directory(folder))  # TFDS's annotations mislead
    except Exception as error:  # damaged JSON raises protobuf's, TFDS's and the system's errors
        raise DataError(
            f"data.source: {folder} is no complete TFDS folder ({_first_line(error)}); "
            f"delete it and prepare {name} again"
        ) from error
    info = builder.info
    features: Mapping[str, Any] = info.features
    formats = {file_format.value for file_format in info.available_file_formats()}
    if "array_record" not in formats:
        raise DataError(
            f"data.source: {name} is prepared in {folder} as {', '.join(sorted(formats))} only, "
            f"which cannot be read without TensorFlow; convert it once with\n"
            f"  tfds convert_format --dataset_version_dir={folder} --out_file_format=array_record\n"
            f"(after pip install 'jaxcls[prepare]'), or prepare it again in another data.data_dir"
        )
    image_key, label_key = _find_keys(features, info.supervised_keys, name=name)
    _check_split(info, name=name, split=split, folder=folder)
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


def _find_keys(
    features: Mapping[str, Any], supervised: tuple[Any, ...] | None, *, name: str
) -> tuple[str, str]:
    """Names of the image and the label: the supervised pair, or the only ones of their kind."""
    import tensorflow_datasets as tfds

    images = _keys_of(features, tfds.features.Image)
    labels = _keys_of(features, tfds.features.ClassLabel)
    if supervised and supervised[0] in images and supervised[1] in labels:
        return supervised[0], supervised[1]
    if len(images) == len(labels) == 1:
        return images[0], labels[0]
    described = ", ".join(
        f"{key}: {type(feature).__name__}" for key, feature in sorted(features.items())
    )
    raise DataError(
        f"data.source: {name} is no image classification set: it needs one Image and one "
        f"ClassLabel, and has {described}"
    )


def _keys_of(features: Mapping[str, Any], kind: type) -> list[str]:
    return [key for key, feature in features.items() if isinstance(feature, kind)]


def _check_split(
    info: "tfds.core.DatasetInfo", *, name: str, split: str, folder: "os.PathLike[str]"
) -> None:
    try:
        chosen = info.splits[split]
    except (ValueError, KeyError) as error:
        base = re.split(r"[\[+]", split)[0]
        raise DataError(
            f"data split {split!r} of {name}: {_first_line(error)}{nearest(base, info.splits)} "
            f"(splits: {_sizes(info)})"
        ) from error
    if not chosen.num_examples:
        raise DataError(f"data split {split!r} of {name} has no examples (splits: {_sizes(info)})")
    missing = _missing_files(chosen.filepaths)
    if missing:
        raise DataError(
            f"data.source: {len(missing)} of {len(chosen.filepaths)} files of {name} {split!r} are "
            f"missing in {folder}, the first {missing[0]}; delete that folder and prepare it again"
        )


def _missing_files(paths: Iterable["epath.Path"]) -> list[str]:
    present: dict[Any, set[str]] = {}  # folder -> its files; one listing instead of many requests
    missing = []
    for path in paths:
        if path.parent not in present:
            present[path.parent] = {file.name for file in path.parent.iterdir()}
        if path.name not in present[path.parent]:
            missing.append(path.name)
    return missing


def _sizes(info: "tfds.core.DatasetInfo") -> str:
    return ", ".join(f"{name} {split.num_examples:,}" for name, split in info.splits.items())


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
