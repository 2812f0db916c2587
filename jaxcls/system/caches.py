"""Where jaxcls, and the libraries it uses, keep what can be made again.

That is the user's folder of caches: XDG_CACHE_HOME, or else ~/.cache. Containers and services may
have no home folder, or none that can be written. Then it is a private folder beside the temporary
files, which is said once; no command fails for want of a cache.
"""

import logging
import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path

from jaxcls.system.output import warn_once

logger = logging.getLogger("jaxcls")

_REMEDY = "set XDG_CACHE_HOME to a writable folder"


def user_caches(environment: Mapping[str, str] = os.environ) -> Path | None:
    """The user's folder of caches of all programs; None where there is no home folder."""
    given = environment.get("XDG_CACHE_HOME", "")
    if os.path.isabs(given):  # the standard wants others to be ignored
        return Path(given)
    return _in_home(".cache")


def cache_dirs(environment: Mapping[str, str] = os.environ) -> list[Path]:
    """Folders that jaxcls may have kept something in, the best one first. None is made."""
    usual, temporary = user_caches(environment), _temporary()
    folders = [] if usual is None else [usual / "jaxcls"]
    return folders if temporary is None else [*folders, temporary]


def cache_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """The folder for what jaxcls makes itself and can make again, made if need be.

    Where nothing at all can be written it is the usual one, and whoever writes there must do
    without.
    """
    usual, folders = user_caches(environment), cache_dirs(environment)
    found = next(filter(is_writable, folders), None)
    why = "there is no home folder" if usual is None else f"{usual} cannot be written to"
    if found is None:
        warn_once(f"no cache: {why}; {_REMEDY}")
        return (usual or Path("~/.cache")) / "jaxcls"
    if usual is None or found.parent != usual:
        warn_once(f"using {found} for caches, because {why}; {_REMEDY}")
    return found


def settle_libraries(environment: Mapping[str, str] = os.environ) -> None:
    """Names to Matplotlib and Hugging Face's client a folder where their own cannot be made.

    Call it before they are imported. Else the one makes a folder at each start and says so, and the
    other one called `~` in the current folder. What the user has set stays.
    """
    for variable, name, usual in (
        ("MPLCONFIGDIR", "matplotlib", _config_home(environment)),
        ("HF_HOME", "huggingface", user_caches(environment)),
    ):
        if variable in environment or (usual is not None and _usable(usual / name)):
            continue
        os.environ[variable] = str(cache_dir(environment) / name)


def is_writable(folder: Path) -> bool:
    """Whether files can be made in a folder, which is made if need be."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"may this folder be written?")
    except OSError:
        return False
    return True


def only_ours(folder: Path) -> bool:
    """Whether a folder is this user's, and no other one may write to it; raises `OSError`."""
    status = folder.stat()
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _usable(folder: Path) -> bool:
    """Whether a folder can be read, as one that an administrator filled, or else made."""
    return os.access(folder, os.R_OK | os.X_OK) or is_writable(folder)


def _config_home(environment: Mapping[str, str]) -> Path | None:
    given = environment.get("XDG_CONFIG_HOME")
    return Path(given) if given else _in_home(".config")


def _in_home(name: str) -> Path | None:
    home = os.path.expanduser("~")  # stays as it is without HOME and an entry in passwd
    return Path(home, name) if os.path.isabs(home) else None


def _temporary() -> Path | None:
    """This user's folder beside the temporary files; None if it is another's, or there are none."""
    try:
        folder = Path(tempfile.gettempdir(), f"jaxcls-{os.geteuid()}")
    except FileNotFoundError:
        return None
    try:
        return folder if only_ours(folder) and not folder.is_symlink() else None
    except FileNotFoundError:
        return folder  # yet to be made
