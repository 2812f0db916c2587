"""Prepares a set of TensorFlow Datasets as ArrayRecord, and explains what went wrong."""

import contextlib
import errno
import socket
import urllib.parse
import urllib.request
from typing import Any

import requests
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core.download import resource

from jaxcls.data.disk import chain, disk_is_full
from jaxcls.data.tfds import NotPreparedError, data_root, find_prepared, first_line
from jaxcls.data.tfds_convert import convert_to_array_record
from jaxcls.decoding import nearest
from jaxcls.errors import DataError
from jaxcls.shell import command, path_word


def prepare_set(name: str, data_dir: str | None) -> epath.Path:
    """Downloads and prepares a set with TFDS's own code and progress bars, unless it is there.

    A folder takes its final name only when it is complete, so a broken attempt is simply repeated.
    A set that is there as TFRecord only is converted.

    Args:
      name: NAME, NAME/CONFIG, or either with :VERSION.
      data_dir: where prepared sets lie (None: the usual place of TFDS).

    Returns:
      The set's folder.

    Raises:
      DataError: no such set, no network, a full disk, files that must be fetched by hand, or a set
        that needs TensorFlow to be prepared; the message says what to do.
    """
    with contextlib.suppress(NotPreparedError):
        folder = find_prepared(name, data_dir)
        convert_to_array_record(folder)
        return folder
    root = data_root(data_dir)
    try:
        builder = tfds.builder(name, data_dir=root)
    except Exception as error:  # whatever TFDS's registry and the set's code raise
        base, known = name.partition("/")[0], tfds.list_builders(with_community_datasets=False)
        near = "" if base in known else nearest(base, known)
        raise DataError(
            f"data.source: TensorFlow Datasets has no 'tfds:{name}'{near} ({first_line(error)})"
        ) from error
    _check_network(name, builder, root / "downloads")
    try:
        builder.download_and_prepare(file_format="array_record")
    except Exception as error:  # and whatever reading, writing and downloading do
        raise DataError(_why_it_failed(name, root, error)) from error
    return find_prepared(name, data_dir)


def _check_network(name: str, builder: Any, downloads: epath.Path) -> None:
    """Fails at once where TFDS would try for minutes: no host of the set's files has an address.

    Files that are in `downloads` already are not asked for, and a set whose files must be fetched
    by hand says so itself.

    Raises:
      DataError: there is no network.
    """
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        return
    missing = [
        url
        for url, info in (builder.url_infos or {}).items()
        if not (downloads / resource.get_dl_fname(url, info.checksum)).exists()
    ]
    hosts = {urllib.parse.urlsplit(url).hostname for url in missing} - {None}
    if not hosts or urllib.request.getproxies():  # behind a proxy, names are the proxy's business
        return
    for host in hosts:
        with contextlib.suppress(OSError):
            socket.getaddrinfo(host, None)
            return
    raise DataError(
        f"data.source: 'tfds:{name}' must be downloaded, and there is no network "
        f"({', '.join(sorted(map(str, hosts)))} cannot be found); prepare it where there is one, "
        f"and copy its folder into data.data_dir"
    )


def _why_it_failed(name: str, root: epath.Path, error: BaseException) -> str:
    problem = f"data.source: 'tfds:{name}' cannot be prepared in {root}: "
    text = str(error)
    if any(isinstance(e, ImportError) and "tensorflow" in str(e) for e in chain(error)):
        again = command("prepare", f"tfds:{name}", "--data-dir", path_word(root), extra="prepare")
        return (
            f"{problem}this set needs TensorFlow for that one step, though not for training; "
            f"run\n  {again}\n"
            f"or, without uv, pip install -e '.[prepare]' and do the same again"
        )
    if disk_is_full(error):
        return f"{problem}the disk is full; free some space, or choose another data.data_dir"
    if _has_number(error, errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
        return f"{problem}it cannot be written ({first_line(error)}); choose another data.data_dir"
    if "anual" in text:
        return f"{problem}its files must be fetched by hand. {text}"
    if any(isinstance(e, OSError | requests.RequestException) for e in chain(error)):
        return f"{problem}{first_line(error)}; check disk and network, then do the same again"
    return f"{problem}{type(error).__name__}: {first_line(error)}"


def _has_number(error: BaseException, *numbers: int) -> bool:
    return any(isinstance(e, OSError) and e.errno in numbers for e in chain(error))
