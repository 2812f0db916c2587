"""Sets of TensorFlow Datasets, read without TensorFlow.

Reading needs ArrayRecord files only. Preparing (`jaxcls.data.tfds_prepare`) runs the set's own
code, which may download files and needs TensorFlow for some sets (the extra `prepare`).
"""

import contextlib
import dataclasses
import functools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from google.protobuf.message import DecodeError

from jaxcls.data.feature_keys import Features, choose_keys
from jaxcls.data.source import Record, Source
from jaxcls.data.splits import describe_splits, parse_split
from jaxcls.data.tfds_folders import find_prepared, open_builder
from jaxcls.system.errors import DataError, mistake_behind, one_line
from jaxcls.system.file_names import printable
from jaxcls.system.shell import command, path_word

if TYPE_CHECKING:
    from jaxcls.config import DataConfig

# What ArrayRecord's reader raises: RuntimeError, of which the beginning says whether the file is
# damaged, and ValueError (from C++) for a size that makes no sense. The rest is of protobuf and of
# TFDS, for content that is not what the set's description says.
_READING_ERRORS = (OSError, RuntimeError, ValueError, TypeError, LookupError, DecodeError)
_DAMAGED = re.compile(r"(Corrupted|Truncated|Invalid) (Riegeli|chunk)|ArrayRecord file")
_LABEL = tfds.features.ClassLabel
_UNREACHABLE = "check the disk or the network, and your rights there"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TfdsSource(Source):
    """One split of a prepared TFDS set, read without TensorFlow.

    Attributes:
      folder: the folder of the prepared set.
      shards: the names of the files in it that hold the split.
      records: TFDS's data source, which does not decode the images.
      image_key: the name of the feature with the image.
      label_key: the name of the feature with the label.
    """

    folder: str
    shards: tuple[str, ...]
    records: Sequence[Any]
    image_key: str
    label_key: str

    @property
    def identity(self) -> str:
        return f"version {os.path.basename(self.folder)}, {super().identity}"

    def stored_files(self) -> dict[str, epath.Path]:
        return {shard: epath.Path(self.folder) / shard for shard in self.shards}

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        try:
            example = self.records[index]
        except _READING_ERRORS as error:
            raise self._unreadable(index, one_line(error), damaged=_is_damage(error)) from error
        image, label = example[self.image_key], example[self.label_key]
        if image is None or label is None:
            raise self._unreadable(index, "the file is cut off between two blocks", damaged=True)
        numbers = sorted({int(number) for number in np.ravel(label)})
        for number in numbers:
            if not 0 <= number < self.num_classes:
                raise DataError(
                    f"{self.describe(index)}: label {number} is not one of the {self.num_classes} "
                    f"classes; choose a labelled split"
                )
        return Record(bytes(image), tuple(numbers) if self.multi_label else numbers[0])

    def _unreadable(self, index: int, reason: str, *, damaged: bool) -> DataError:
        remedy = _UNREACHABLE
        if damaged:
            remedy = "the prepared files are damaged: delete that folder and prepare it again"
        return DataError(
            f"{self.describe(index)}: cannot be read from {self.folder} ({reason}); {remedy}"
        )


def _is_damage(error: Exception) -> bool:
    """Whether an error of reading concerns the content of a file, not the disk or the network."""
    if isinstance(error, RuntimeError):
        return _DAMAGED.match(str(error)) is not None
    return not isinstance(error, OSError)


def open_split(name: str, data: "DataConfig", split: str, *, field: str) -> Source:
    """Opens a split of the set `name` (NAME, NAME/CONFIG, or either with :VERSION).

    See `jaxcls.data.sources.open_source`.
    """
    if data.prepare:
        from jaxcls.data.tfds_prepare import prepare_set

        folder = prepare_set(name, data.data_dir)
    else:
        folder = find_prepared(name, data.data_dir)
    return open_prepared(
        folder,
        name=name.partition(":")[0],
        split=split,
        keys=(data.image_key, data.label_key),
        several=data.labels == "multiple",
        field=field,
    )


def prepare(name: str, data_dir: str | None) -> str:
    """Downloads and prepares the set where needed; see `jaxcls.data.sources.prepare_source`."""
    from jaxcls.data.tfds_prepare import prepare_set

    return describe_prepared(prepare_set(name, data_dir), name=name.partition(":")[0])


def open_prepared(
    folder: "os.PathLike[str]",
    *,
    name: str,
    split: str,
    keys: tuple[str | None, str | None] = (None, None),
    several: bool = False,
    field: str = "split",
) -> Source:
    """Opens a split of the TFDS set in `folder`, without the code that made the set.

    Args:
      folder: the folder with dataset_info.json and ArrayRecord files.
      name: the name of the set, for error messages.
      split: in TFDS syntax.
      keys: the names of the features with the image and the label (None: found in the set's
        description).
      several: whether an image may have any number of labels.
      field: the name of the field that gave the split, for error messages.

    Raises:
      DataError: the folder is damaged, cannot be read or has no ArrayRecord files, there is no such
        split or feature, or it is not an image classification set.
    """
    with _reading(folder, name=name):
        builder = _read_builder(folder, name=name)
        features = dict(builder.info.features.items())
        supervised, splits = builder.info.supervised_keys, builder.info.splits
    usual = supervised if supervised and len(supervised) == 2 else (None, None)
    image_key, label_key = choose_keys(
        _kinds(features), keys, name=name, several=several, usual=usual
    )
    parse_split(split, splits, name=name, field=field)
    with _reading(folder, name=name):
        paths = splits[split].filepaths
        missing = _missing_files(paths)
    if missing:
        raise DataError(
            f"data.source: {len(missing)} of {len(paths)} files of {name} {split!r} are "
            f"missing in {folder}, the first {missing[0]}; delete that folder and prepare it again"
        )
    with _reading(folder, name=name):
        records = builder.as_data_source(
            split=split, decoders={image_key: tfds.decode.SkipDecoding()}
        )
    return TfdsSource(
        name=name,
        split=split,
        class_names=tuple(map(printable, _class_label(features[label_key]).names)),
        multi_label=several,
        folder=os.fspath(folder),
        shards=tuple(path.name for path in paths),
        records=records,
        image_key=image_key,
        label_key=label_key,
    )


def describe_prepared(folder: "os.PathLike[str]", *, name: str) -> str:
    """Returns a line for the user: the folder of a prepared set and the sizes of its splits."""
    with _reading(folder, name=name):
        splits = _read_builder(folder, name=name).info.splits
        return f"{name} is ready in {folder}: {describe_splits(splits)}"


@contextlib.contextmanager
def _reading(folder: "os.PathLike[str]", *, name: str) -> Iterator[None]:
    """Turns the errors of a damaged set, or of its disk or bucket, into a `DataError`.

    Around calls of TFDS only, because errors of our own code are bugs.
    """
    try:
        yield
    except (DataError, MemoryError):
        raise
    except Exception as error:  # protobuf, TFDS and the system raise many types
        # TFDS wraps errors of the system.
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
        absent = isinstance(cause, FileNotFoundError | NotADirectoryError | IsADirectoryError)
        if not absent and (isinstance(cause, OSError) or mistake_behind(cause) is not None):
            raise DataError(
                f"data.source: {folder} cannot be read ({one_line(cause)}); {_UNREACHABLE}"
            ) from error
        raise DataError(
            f"data.source: {folder} is not a complete TFDS folder ({one_line(error)}); "
            f"delete it and prepare {name} again"
        ) from error


def _read_builder(folder: "os.PathLike[str]", *, name: str) -> Any:
    """Returns the set's description and reader (Any, because TFDS's annotations are wrong)."""
    builder = open_builder(folder)
    formats = {file_format.value for file_format in builder.info.available_file_formats()}
    if "array_record" not in formats:
        root = epath.Path(folder).parents[len(name.split("/"))]
        raise DataError(
            f"data.source: {name} is prepared in {folder} as {', '.join(sorted(formats))} only, "
            f"which has no random access; convert it once with\n"
            f"  {command('prepare', f'tfds:{name}', '--data-dir', path_word(root))}\n"
            f"or set data.prepare, so that training does it"
        )
    return builder


def _kinds(features: Mapping[str, Any]) -> Features:
    of_kind = functools.partial(_keys_of, features)
    return Features(
        images=of_kind(lambda feature: isinstance(feature, tfds.features.Image)),
        labels=of_kind(lambda feature: isinstance(feature, _LABEL)),
        lists=of_kind(_is_list_of_labels),
        kinds={key: _kind(feature) for key, feature in features.items()},
    )


def _keys_of(features: Mapping[str, Any], serves: Callable[[Any], bool]) -> list[str]:
    return sorted(key for key, feature in features.items() if serves(feature))


def _is_list_of_labels(feature: Any) -> bool:
    return isinstance(feature, tfds.features.Sequence) and isinstance(feature.feature, _LABEL)


def _class_label(feature: Any) -> Any:
    """The ClassLabel of a feature that is one, or a list of them."""
    return feature.feature if _is_list_of_labels(feature) else feature


def _kind(feature: Any) -> str:
    return f"{type(feature).__name__}{'(ClassLabel)' if _is_list_of_labels(feature) else ''}"


def _missing_files(paths: Iterable[epath.Path]) -> list[str]:
    present: dict[Any, set[str]] = {}  # folder -> its files: one listing instead of many requests
    missing = []
    for path in paths:
        if path.parent not in present:
            present[path.parent] = {file.name for file in path.parent.iterdir()}
        if path.name not in present[path.parent]:
            missing.append(path.name)
    return missing
