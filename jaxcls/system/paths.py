"""Where a run lies: a folder, or a prefix of a Google Cloud Storage bucket (`gs://BUCKET/…`)."""

import contextlib
import importlib.util
import os
import secrets
from pathlib import Path

import fsspec.config
from etils import epath

from jaxcls.system.errors import UserError
from jaxcls.system.names import require_text

type RunPath = Path | epath.Path  # the second in a bucket


def is_url(path: str | os.PathLike[str]) -> bool:
    """Whether a path is in a bucket."""
    return "://" in os.fspath(path)


def expand_home(text: str) -> str:
    """The path with a leading `~` or `~USER` replaced by that home folder.

    A shell does so only for words that begin with it, so not in `--workdir=~/x` or a config file.
    Variables such as $HOME stay as they are.

    Raises:
      UserError: there is no such home folder, nor anything of that very name.
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
    """A path on disk as a user gives it; raises as `expand_home`."""
    return Path(expand_home(os.fspath(path)))


def run_path(path: str | os.PathLike[str]) -> RunPath:
    """A run's path, for reading and writing; `~` is the home folder. Does not look for the run.

    Raises:
      UserError: no path, a name that is not UTF-8 or has a backslash, a URL that is none of a
        bucket where runs can lie, or the extra for it is missing; or as `expand_home`.
    """
    text = os.fspath(path)
    if not text:
        raise UserError("run '': expected a folder or gs://BUCKET/FOLDER, got an empty name")
    text = text if is_url(text) else expand_home(text)
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


def create_whole(path: RunPath, text: str) -> bool:
    """Writes a new file, whole; of several processes, on any hosts, one alone succeeds.

    A disk that has hard links gives the file its name in one step, also over NFS. On one without
    them, others may see the file for a moment before its text is there. A bucket takes the object
    on condition that there is none.

    Returns:
      False where there is one already. It may be our own, where the answer of a server was lost.
    """
    if is_url(path):
        fs, name = fsspec.core.url_to_fs(os.fspath(path))
        try:
            fs.pipe_file(name, text.encode(), mode="create")
        except FileExistsError:
            return False
        return True
    path = Path(path)
    # Processes on several hosts can have the same number.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        temporary.write_text(text)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError:  # the disk knows no hard links
            return _create(path, text)
        return True
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _create(path: Path, text: str) -> bool:
    try:
        with path.open("x") as file:
            file.write(text)
    except FileExistsError:
        return False
    return True
