"""The folders where jaxcls, and the libraries it uses, keep files that can be made again.

They are in the user's cache folder: XDG_CACHE_HOME, or else ~/.cache. Containers and services may
have no home folder, or one that cannot be written. Then a private folder in the system's temporary
folder is used, with one warning. No command fails because there is no cache.
"""

import os
import stat
import tempfile
from pathlib import Path

from jaxcls.system.output import warn_once
from jaxcls.system.permissions import make_private
from jaxcls.system.whole_files import try_writing

_REMEDY = "set XDG_CACHE_HOME to a writable folder"


def usual_cache_home() -> Path | None:
    """The user's cache folder for all programs; None if there is no home folder."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(given):  # the XDG standard says to ignore relative paths
        return Path(given)
    return _in_home(".cache")


def possible_cache_dirs() -> list[Path]:
    """The folders in which jaxcls may have kept files, the best one first; creates none."""
    usual, temporary = usual_cache_home(), _temporary()
    folders = [] if usual is None else [usual / "jaxcls"]
    return folders if temporary is None else [*folders, temporary]


def make_cache_dir() -> Path:
    """The folder for jaxcls' own cached files; creates it if necessary.

    If no folder can be written, returns the usual one; the caller must then work without a cache.
    """
    usual, folders = usual_cache_home(), possible_cache_dirs()
    found = next(filter(ensure_writable, folders), None)
    why = "there is no home folder" if usual is None else f"{usual} cannot be written to"
    if found is None:
        warn_once(f"no cache: {why}; {_REMEDY}")
        return (usual or Path("~/.cache")) / "jaxcls"
    if usual is None or found.parent != usual:
        warn_once(f"using {found} for caches, because {why}; {_REMEDY}")
    return found


def set_library_caches() -> None:
    """Sets MPLCONFIGDIR and HF_HOME if Matplotlib or Hugging Face's client has no usable folder.

    Call it before they are imported. Without it Matplotlib makes a new folder at each start, with a
    warning, and Hugging Face's client makes one called `~` in the current folder. Variables that
    the user has set stay unchanged.
    """
    for variable, name, usual in (
        ("MPLCONFIGDIR", "matplotlib", _config_home()),
        ("HF_HOME", "huggingface", usual_cache_home()),
    ):
        if variable not in os.environ and (usual is None or not _is_usable(usual / name)):
            os.environ[variable] = str(make_cache_dir() / name)


def ensure_writable(folder: Path) -> bool:
    """Whether files can be created in a folder; creates the folder, as a private one, if needed."""
    try:
        make_private(folder)
        try_writing(folder / "trial")
    except OSError:
        return False
    return True


def is_private(folder: Path) -> bool:
    """Whether a folder is this user's and no other user may write to it; raises `OSError`."""
    status = folder.stat()
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _is_usable(folder: Path) -> bool:
    """Whether a folder can be read, such as one that an administrator filled, or can be created."""
    return os.access(folder, os.R_OK | os.X_OK) or ensure_writable(folder)


def _config_home() -> Path | None:
    given = os.environ.get("XDG_CONFIG_HOME")
    return Path(given) if given else _in_home(".config")


def _in_home(name: str) -> Path | None:
    home = os.path.expanduser("~")  # stays "~" without HOME and an entry in passwd
    return Path(home, name) if os.path.isabs(home) else None


def _temporary() -> Path | None:
    """This user's folder in the temporary folder; None if another user may have written to it."""
    try:
        folder = Path(tempfile.gettempdir(), f"jaxcls-{os.geteuid()}")
    except FileNotFoundError:
        return None
    try:
        return folder if is_private(folder) and not folder.is_symlink() else None
    except FileNotFoundError:
        return folder  # not created yet
