"""Where a run lies: a folder, or a prefix of a Google Cloud Storage bucket (`gs://BUCKET/…`)."""

import importlib.util
import os
from pathlib import Path

import fsspec.config
from etils import epath

from jaxcls.errors import UserError
from jaxcls.names import require_text

type RunPath = Path | epath.Path  # the second in a bucket


def is_url(path: str | os.PathLike[str]) -> bool:
    """Whether a path is in a bucket."""
    return "://" in os.fspath(path)


def run_path(path: str | os.PathLike[str]) -> RunPath:
    """A run's path, for reading and writing; looks at neither disk nor network.

    Raises:
      UserError: a name that is not UTF-8 or has a backslash, a URL that is none of a bucket where
        runs can lie, or the extra for it is missing.
    """
    text = os.fspath(path)
    whole = text if is_url(text) else os.path.abspath(text)  # by which checkpoints are written
    require_text(whole, what="run")
    if "\\" in whole:
        raise UserError(
            f"run '{whole}': TensorStore, which writes the checkpoints, takes a backslash for a "
            f"slash; take another name"
        )
    if not is_url(text):
        return Path(text)
    if text.startswith("s3://"):
        raise UserError(
            f"run {text!r}: s3 has no atomic rename, and Orbax, which writes the checkpoints, does "
            f"not write to s3; use a folder or gs://, and copy the finished run to s3"
        )
    if not text.startswith("gs://") or not text.removeprefix("gs://").strip("/"):
        raise UserError(f"run {text!r}: expected a folder or gs://BUCKET/FOLDER")
    if importlib.util.find_spec("gcsfs") is None:
        raise UserError(
            f"run {text!r}: a bucket needs the extra gcs; uv run --extra gcs jaxcls …, or pip "
            f"install 'jaxcls[gcs]'"
        )
    # Its search for a special kind of bucket logs that there are no credentials, at each start.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    # TensorStore and other processes write there, too, so that a listing is soon out of date.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    return epath.Path(text)


def temporary_beside(path: Path) -> Path:
    """Where this process writes what then takes the place of `path`: on the same disk."""
    return path.with_name(f".{path.name}.{os.getpid()}")


def write_whole(path: RunPath, text: str) -> None:
    """Writes the whole file or nothing."""
    if is_url(path):
        path.write_text(text)  # an object appears when it was sent whole
        return
    temporary = temporary_beside(Path(path))
    temporary.write_text(text)
    temporary.replace(path)
