"""Prepares a set of TensorFlow Datasets as ArrayRecord, and explains errors."""

import contextlib
import errno
import inspect
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

import requests
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core.download import downloader
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
from tensorflow_datasets.core.download.extractor import ExtractError

from jaxcls.config.decoding import nearest
from jaxcls.data.full_disk import chain, disk_is_full
from jaxcls.data.tfds_convert import convert_to_array_record
from jaxcls.data.tfds_folders import NotPreparedError, data_root, find_prepared
from jaxcls.data.tfds_stand_in import without_tensorflow
from jaxcls.system.errors import DataError, one_line
from jaxcls.system.shell import command, path_word


def prepare_set(name: str, data_dir: str | None) -> epath.Path:
    """Downloads and prepares a set with TFDS's code and progress bars, unless it is prepared.

    Files that the user has put into `downloads/manual` beside the sets are used, with the names in
    their addresses or in the set's instructions. A folder gets its final name only when it is
    complete, so a failed attempt can be repeated. A set with TFRecord files only is converted.

    Args:
      name: NAME, NAME/CONFIG, or either with :VERSION.
      data_dir: the folder of the prepared sets (None: the default of TFDS).

    Returns:
      The set's folder.

    Raises:
      DataError: there is no such set, there is no network, the disk is full, files must be
        downloaded by hand, or preparing needs TensorFlow; the message says what to do.
    """
    with contextlib.suppress(NotPreparedError):
        folder = find_prepared(name, data_dir)
        convert_to_array_record(folder)
        return folder
    root = data_root(data_dir)
    try:
        with without_tensorflow():
            builder = tfds.builder(name, data_dir=root)
    except Exception as error:  # TFDS's registry and the set's code raise anything
        base, known = name.partition("/")[0], tfds.list_builders(with_community_datasets=False)
        near = "" if base in known else nearest(base, known)
        raise DataError(
            f"data.source: TensorFlow Datasets has no 'tfds:{name}'{near} ({one_line(error)})"
        ) from error
    try:
        with without_tensorflow(), _no_waiting_for_a_network():
            builder.download_and_prepare(file_format="array_record")
    except Exception as error:  # and so do reading, writing and downloading
        raise DataError(_why_it_failed(name, builder, root, error)) from error
    return find_prepared(name, data_dir)


class _NoNetworkError(Exception):
    """The host that TFDS wants to download from has no address.

    Attributes:
      url: the address of the file.
    """

    def __init__(self, url: str):
        super().__init__(url)
        self.url = url


@contextlib.contextmanager
def _no_waiting_for_a_network() -> Iterator[None]:
    """Makes downloads fail at once if the host is unknown; TFDS would retry for minutes."""
    open_url = downloader._open_url

    def checked(url: str, **kwargs: Any) -> Any:
        if not urllib.request.getproxies():  # a proxy looks up the host itself
            try:
                socket.getaddrinfo(urllib.parse.urlsplit(url).hostname, None)
            except OSError as error:
                raise _NoNetworkError(url) from error
        return open_url(url, **kwargs)

    downloader._open_url = checked
    try:
        yield
    finally:
        downloader._open_url = open_url


def _why_it_failed(name: str, builder: Any, root: epath.Path, error: BaseException) -> str:
    problem = f"data.source: 'tfds:{name}' cannot be prepared in {root}: "
    manual = root / "downloads" / "manual"
    instructions = inspect.cleandoc(builder.MANUAL_DOWNLOAD_INSTRUCTIONS or "")
    causes = list(chain(error))
    for cause in causes:
        if isinstance(cause, _NoNetworkError):
            return _no_network(name, builder, manual, cause.url)
        if isinstance(cause, NonMatchingChecksumError | ExtractError):
            return f"{problem}a file is damaged or the wrong one. {cause}"
    if any(isinstance(e, ImportError) and "tensorflow" in str(e) for e in causes):
        again = command("prepare", f"tfds:{name}", "--data-dir", path_word(root), extra="prepare")
        return (
            f"{problem}this set needs TensorFlow to be prepared, but not for training; "
            f"run\n  {again}\n"
            f"or, without uv, pip install -e '.[prepare]' and repeat the command"
        )
    if disk_is_full(error):
        return f"{problem}the disk is full; free some space, or choose another data.data_dir"
    if _has_number(error, errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
        return f"{problem}it cannot be written ({one_line(error)}); choose another data.data_dir"
    if instructions and any(isinstance(e, FileNotFoundError | AssertionError) for e in causes):
        there = sorted(path.name for path in manual.iterdir()) if manual.is_dir() else []
        said = inspect.cleandoc(str(error))
        return (
            f"{problem}its files must be downloaded by hand. {said}\n"
            f"Put them into {manual} (there now: {', '.join(there) or 'nothing'}), and repeat the "
            f"command" + ("" if instructions in said else f":\n{instructions}")
        )
    if any(isinstance(e, OSError | requests.RequestException) for e in causes):
        return f"{problem}{one_line(error)}; check disk and network, then repeat the command"
    return f"{problem}{type(error).__name__}: {one_line(error)}"


def _no_network(name: str, builder: Any, manual: epath.Path, url: str) -> str:
    known = (builder.url_infos or {}).get(url)
    by_hand = (
        f"; or download {url} there and put it here as {manual / known.filename}"
        if known is not None and known.filename
        else ""
    )
    return (
        f"data.source: 'tfds:{name}' must be downloaded, but there is no network "
        f"({urllib.parse.urlsplit(url).hostname} cannot be found); prepare it on a machine with a "
        f"network, and copy its folder into data.data_dir{by_hand}"
    )


def _has_number(error: BaseException, *numbers: int) -> bool:
    return any(isinstance(e, OSError) and e.errno in numbers for e in chain(error))
