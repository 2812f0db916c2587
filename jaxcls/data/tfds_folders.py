"""Where prepared sets of TensorFlow Datasets are, and how to prepare one that is missing."""

import contextlib
import os
import re
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core import constants

from jaxcls.config.decoding import nearest
from jaxcls.system.errors import DataError
from jaxcls.system.paths import expand_home
from jaxcls.system.shell import command, path_word


class NotPreparedError(DataError):
    """The set is not prepared, or not completely; the message says how to prepare it."""


def data_root(data_dir: str | None) -> epath.Path:
    """Returns the folder of the prepared sets: data_dir, or the default of TFDS."""
    return epath.Path(expand_home(os.fspath(data_dir or constants.DATA_DIR)))


def find_prepared(name: str, data_dir: str | None) -> epath.Path:
    """Returns the folder of a prepared set, of the newest version unless the name gives one.

    Args:
      name: NAME, NAME/CONFIG, or either with :VERSION.
      data_dir: the folder of the prepared sets (None: the default of TFDS).

    Raises:
      NotPreparedError: it is not prepared; the message has the command that prepares it.
      DataError: it has several configs, and the name does not give one.
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
            f"(prepared: {', '.join(sorted(by_version))})"
        )
    return by_version[version or max(by_version, key=_version_key)]


def open_builder(folder: "os.PathLike[str]") -> Any:
    """Returns TFDS's description and reader of a prepared set.

    TFDS would import the module of every class that features.json names, and so run it. Here a
    class must be TFDS's own, or be imported already.

    Raises:
      Exception: the folder is damaged; TFDS, protobuf and the system raise many types.
    """
    with _no_new_features():
        return tfds.builder_from_directory(folder)


@contextlib.contextmanager
def _no_new_features() -> Iterator[None]:
    connector: Any = tfds.features.FeatureConnector
    find = connector.cls_from_name

    def find_known(name: str) -> Any:
        if name not in connector._registered_features:
            raise ValueError(
                f"features.json names {name}, which is not a class of TFDS; import its module "
                f"first, for example in the config file"
            )
        return find(name)

    connector.cls_from_name = find_known
    try:
        yield
    finally:
        connector.cls_from_name = find


def _prepared_folders(base: epath.Path) -> list[epath.Path]:
    """Returns the complete folders under base, at VERSION or CONFIG/VERSION."""
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
        problem = f"is not completely prepared in {folder}: prepare it"
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
        f"or set data.prepare, so that training does it"
    )
