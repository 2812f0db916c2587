"""Data sets of Hugging Face: hf:NAME[:CONFIG], read by the library `datasets`.

NAME is a set on the Hub, as OWNER/SET, or a folder that begins with ., / or ~: one that
`save_to_disk` wrote, or with files that the library reads, such as Parquet or images. A set of the
Hub is read from the library's cache, without a network; data.prepare or `jaxcls prepare` downloads
it. No code of a data set is run: the library no longer does that.
"""

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxcls.data.feature_keys import Features, choose_keys
from jaxcls.data.source import Label, Record, Source
from jaxcls.data.splits import describe_splits, parse_split
from jaxcls.system.caches import set_library_caches
from jaxcls.system.errors import DataError, one_line
from jaxcls.system.file_names import printable
from jaxcls.system.paths import expand_home
from jaxcls.system.shell import command

if TYPE_CHECKING:
    from jaxcls.config import DataConfig

USUAL = ("image", "label")  # of several features


@dataclasses.dataclass(frozen=True, kw_only=True)
class HfSource(Source):
    """One split of a data set.

    Attributes:
      root: the folder of the library's tables; images may lie elsewhere.
      parts: the library's tables that the split consists of; their images are not decoded.
      image_key: the name of the feature with the image.
      label_key: the name of the feature with the label.
    """

    root: str
    parts: tuple[Any, ...]
    image_key: str
    label_key: str

    @property
    def identity(self) -> str:
        digest = hashlib.blake2b(repr(self.all_labels()).encode(), digest_size=8).hexdigest()
        return f"{super().identity}, labels {digest}"

    def all_labels(self) -> Sequence[Label]:
        return [self._label(label) for part in self.parts for label in part[self.label_key][:]]

    def stored_files(self) -> dict[str, Path]:
        tables = [file for part in self.parts for file in _table_files(part)]
        images = [image for part in self.parts for image in self._image_files(part)]
        # Images have whole paths. Where they are from the tables depends on the library's cache.
        return {os.path.relpath(file, self.root): Path(file) for file in tables} | {
            image: Path(image) for image in images
        }

    def _image_files(self, part: Any) -> list[str]:
        """The files of the images that are not in the tables."""
        images = part.with_format("arrow")[:][self.image_key]
        fields = dict(zip((field.name for field in images.type), images.flatten(), strict=True))
        return fields["path"].filter(fields["bytes"].is_null()).drop_null().to_pylist()

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __getitem__(self, index: int) -> Record:
        try:
            example = self._example(index)
            image = example[self.image_key]
            content = (image or {}).get("bytes")
            if image and content is None:
                content = Path(image["path"]).read_bytes()
        except Exception as error:  # those of Arrow and of the disk
            raise DataError(
                f"{self.describe(index)}: cannot be read ({one_line(error)}); download it again"
            ) from error
        if content is None:
            raise DataError(f"{self.describe(index)}: it has no image; choose another split")
        label = self._label(example[self.label_key])
        for number in label if isinstance(label, tuple) else (label,):
            if not 0 <= number < self.num_classes:
                raise DataError(
                    f"{self.describe(index)}: label {number} is not one of the {self.num_classes} "
                    f"classes; choose a labelled split"
                )
        return Record(content, label)

    def _example(self, index: int) -> Mapping[str, Any]:
        for part in self.parts:
            if index < len(part):
                return part[index]
            index -= len(part)
        raise IndexError(index)

    def _label(self, stored: Any) -> Label:
        numbers = sorted({-1 if one is None else int(one) for one in np.ravel(stored).tolist()})
        return tuple(numbers) if self.multi_label else numbers[0]


def open_split(name: str, data: "DataConfig", split: str, *, field: str = "split") -> HfSource:
    """Opens one split of a data set.

    Args:
      name: NAME or NAME:CONFIG.
      data: `prepare`, `labels`, `image_key` and `label_key`.
      split: in TFDS syntax.
      field: the name of the field that gave the split, for error messages.

    Raises:
      DataError: the library is not installed, there is no such set, configuration, split or
        feature, it is not downloaded, or it is not an image classification set.
    """
    tables = _load(name, download=data.prepare)
    splits = {stored: _Split(len(table)) for stored, table in tables.items()}
    several = data.labels == "multiple"
    library = _library()
    features = next(iter(tables.values())).features
    kinds = _kinds(library, features)
    image_key, label_key = choose_keys(
        kinds, (data.image_key, data.label_key), name=name, several=several, usual=USUAL
    )
    parts = []
    for stored, part in parse_split(split, splits, name=name, field=field):
        table = tables[stored].select(range(*part.indices(len(tables[stored]))))
        table = table.select_columns([image_key, label_key])
        parts.append(table.cast_column(image_key, library.Image(decode=False)))
    label = features[label_key]
    names = (label.feature if label_key in kinds.lists else label).names
    return HfSource(
        name=printable(name),
        split=split,
        root=_common_folder(tables.values()),
        class_names=tuple(map(printable, names)),
        multi_label=several,
        parts=tuple(parts),
        image_key=image_key,
        label_key=label_key,
    )


def prepare(name: str, data_dir: str | None = None) -> str:
    """Downloads the set where needed; see `jaxcls.data.sources.prepare_source`."""
    del data_dir
    tables = _load(name, download=True)
    sizes = describe_splits({split: _Split(len(table)) for split, table in tables.items()})
    return f"{printable(name)} is ready: {sizes}"


@dataclasses.dataclass(frozen=True)
class _Split:
    """The size of a stored split, in TFDS's terms."""

    num_examples: int

    @property
    def shard_lengths(self) -> list[int]:
        return [self.num_examples]


def _table_files(table: Any) -> list[str]:
    return [file["filename"] for file in table.cache_files]


def _common_folder(tables: Iterable[Any]) -> str:
    """The folder of all files of a set's tables."""
    folders = [os.path.dirname(file) for table in tables for file in _table_files(table)]
    return os.path.commonpath(folders) if folders else "."


def _kinds(library: Any, features: Mapping[str, Any]) -> Features:
    def keys_of(serves: Callable[[Any], bool]) -> list[str]:
        return sorted(key for key, feature in features.items() if serves(feature))

    def is_list(feature: Any) -> bool:
        lists = isinstance(feature, library.List | library.LargeList)
        return lists and isinstance(feature.feature, library.ClassLabel)

    return Features(
        images=keys_of(lambda feature: isinstance(feature, library.Image)),
        labels=keys_of(lambda feature: isinstance(feature, library.ClassLabel)),
        lists=keys_of(is_list),
        kinds={
            key: f"{type(feature).__name__}{'(ClassLabel)' if is_list(feature) else ''}"
            for key, feature in features.items()
        },
    )


# The library


def _library() -> Any:
    """The library `datasets`, which prints nothing of its own.

    Raises:
      DataError: it is not installed.
    """
    set_library_caches()
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            "data.source: hf: needs the library datasets; pip install 'jaxcls[hf]'"
        ) from error
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    return datasets


def _load(name: str, *, download: bool) -> Mapping[str, Any]:
    """The tables of a set by split.

    Raises:
      DataError: there is no such set, it cannot be read, or it is not downloaded.
    """
    library = _library()
    path, _, config = name.partition(":")
    local = path.startswith((".", "/", "~"))
    where = expand_home(path) if local else path
    if local and not os.path.isdir(where):
        raise DataError(f"data.source: {printable(where)!r} is not a folder; name a data set")
    is_saved = {
        kind: local and os.path.isfile(os.path.join(where, f"{kind}.json"))
        for kind in ("dataset_dict", "state")
    }
    if config and any(is_saved.values()):
        raise DataError(
            f"data.source: {printable(where)!r} was written by save_to_disk and has no "
            f"configurations; leave out {printable(config)!r}"
        )
    try:
        if is_saved["dataset_dict"]:
            return library.load_from_disk(where)
        if is_saved["state"]:
            return {"train": library.load_from_disk(where)}
        with contextlib.nullcontext() if download or local else _offline(library):
            return library.load_dataset(where, config or None)
    except Exception as error:  # of the library, of Arrow, and of the disk
        raise _not_loaded(name, error, local=local, download=download) from error


@contextlib.contextmanager
def _offline(library: Any) -> Iterator[None]:
    """Makes the library read its cache only, as HF_HUB_OFFLINE does when a process starts."""
    before = library.config.HF_HUB_OFFLINE
    library.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        library.config.HF_HUB_OFFLINE = before


def _not_loaded(name: str, error: Exception, *, local: bool, download: bool) -> DataError:
    said = one_line(error)
    if isinstance(error, MemoryError):
        return DataError(f"data.source: {printable(name)!r} does not fit into memory")
    if local:
        return DataError(
            f"data.source: the folder of {printable(name)!r} cannot be read as a data set ({said})"
        )
    if isinstance(error, ConnectionError) and not download:
        return DataError(
            f"data.source: {printable(name)!r} is not in the cache of Hugging Face's library; on "
            f"a machine with a network run\n  {command('prepare', f'hf:{name}')}\nor set "
            f"data.prepare, and copy the cache (HF_HOME) if it is another machine"
        )
    if isinstance(error, ConnectionError):
        return DataError(
            f"data.source: {printable(name)!r} cannot be fetched ({said}); check the network, or "
            f"run {command('prepare', f'hf:{name}')} on a machine with one and copy its cache "
            f"(HF_HOME)"
        )
    return DataError(f"data.source: {printable(name)!r} cannot be opened ({said})")
