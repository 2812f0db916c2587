"""Paths of runs: a folder, or a prefix in a Google Cloud Storage bucket (`gs://BUCKET/…`)."""

import importlib.util
import logging
import os
from pathlib import Path

import fsspec
import fsspec.config
from etils import epath

from jaxcls.system.errors import UserError
from jaxcls.system.file_names import require_text

type RunPath = Path | epath.Path  # an epath.Path in a bucket


def is_url(path: str | os.PathLike[str]) -> bool:
    """Whether a path is in a bucket."""
    return "://" in os.fspath(path)


def expand_home(text: str) -> str:
    """Replaces a leading `~` or `~USER` by that home folder.

    A shell does so only at the beginning of a word, and thus not in `--workdir=~/x` or in a config
    file. Variables such as $HOME are not replaced.

    Raises:
      UserError: there is no such home folder, and no file of exactly that name.
    """
    if not text.startswith("~"):
        return text
    expanded = os.path.expanduser(text)
    if expanded == text and not os.path.lexists(text):
        home = text.partition("/")[0]
        raise UserError(
            f"{text!r}: there is no home folder {home}; give the whole path, or ./{text} for a "
            f"name that begins with ~"
        )
    return expanded


def local_path(path: str | os.PathLike[str]) -> Path:
    """A path on disk that a user gave, with `~` replaced; raises as `expand_home`."""
    return Path(expand_home(os.fspath(path)))


def run_path(path: str | os.PathLike[str]) -> RunPath:
    """The path of a run's directory, with `~` replaced. The directory need not exist.

    Raises:
      UserError: the path is empty, is not UTF-8, contains a backslash, or is a URL other than
        gs://; the extra for buckets is missing; or as `expand_home`.
    """
    text = os.fspath(path)
    if not text:
        raise UserError("run '': expected a folder or gs://BUCKET/FOLDER, got an empty name")
    text = text if is_url(text) else expand_home(text)
    whole = text if is_url(text) else os.path.abspath(text)  # the path that checkpoints use
    require_text(whole, what="run")
    if "\\" in whole:
        raise UserError(
            f"run '{whole}': TensorStore, which writes the checkpoints, reads a backslash as a "
            f"slash; use another name"
        )
    if not is_url(text):
        return Path(text)
    if text.startswith("s3://"):
        raise UserError(
            f"run {text!r}: Orbax 0.12.8, which writes the checkpoints, takes s3:// for a folder "
            f"on this machine (its tensorstore_utils.py, line 222); use a folder or gs://, and "
            f"copy the finished run to s3"
        )
    if not text.startswith("gs://") or not text.removeprefix("gs://").strip("/"):
        raise UserError(f"run {text!r}: expected a folder or gs://BUCKET/FOLDER")
    if importlib.util.find_spec("gcsfs") is None:
        raise UserError(
            f"run {text!r}: a bucket needs the extra gcs; use: uv run --extra gcs jaxcls …, or pip "
            f"install 'jaxcls[gcs]'"
        )
    # Otherwise gcsfs looks for a special kind of bucket and logs missing credentials at each start.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    logging.getLogger("gcsfs").addFilter(_passes)
    for protocol in ("gs", "gcs"):
        fsspec.register_implementation(
            protocol, "jaxcls.system.bucket.BucketFileSystem", clobber=True
        )
    # TensorStore and other processes write there too, so a cached listing is soon out of date.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    return epath.Path(text)


def _passes(record: logging.LogRecord) -> bool:
    """Leaves out what gcsfs logs of errors that it also raises, with a traceback for each try."""
    return not record.exc_info or logging.getLogger("jaxcls").isEnabledFor(logging.DEBUG)
