"""Files and folders that appear whole or not at all, whatever ends the process that writes them."""

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec.core

from jaxcls.system.paths import RunPath, is_url

SUFFIX = ".jaxcls-tmp"  # of temporary files
UNCHANGED_SECONDS = 86_400.0  # then nobody fills a temporary folder any more

_MARK = ".written-by"  # a file in a temporary folder that names the system of its process
_TEMPORARY = re.compile(rf"\..+\.[0-9a-f]{{8}}{re.escape(SUFFIX)}")  # see `random_name_beside`


@contextlib.contextmanager
def replacing[P: RunPath](path: P) -> Iterator[P]:
    """Yields a temporary path next to `path`, which is renamed to `path` if the block succeeds.

    The block may write a file or a folder there. If it fails, that is deleted, and `path` stays as
    it was.

    Raises:
      OSError: the finished file cannot be moved to `path`.
    """
    temporary = random_name_beside(path)  # on the same disk
    try:
        yield temporary
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            if temporary.is_dir():
                shutil.rmtree(temporary, ignore_errors=True)
            else:
                temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yields a new folder next to `path`, which is renamed to `path` if the block succeeds.

    Makes the folder that holds both, if need be. If `path` exists, it must be an empty folder. What
    killed processes left of their folders for the same `path` is deleted before.

    Raises:
      OSError: the folder cannot be made or moved.
    """
    _delete_abandoned(path)
    with contextlib.ExitStack() as until_moved, replacing(path) as temporary:
        temporary.mkdir(parents=True)
        mark = temporary / _MARK
        with contextlib.suppress(OSError):  # the disk has no locks
            until_moved.enter_context(_locked(temporary))
            mark.write_text(_running_system())
        yield temporary
        mark.unlink(missing_ok=True)


def write_whole(path: RunPath, content: str | bytes) -> None:
    """Writes a file, or replaces it; raises `OSError`, or in a bucket any error."""
    data = content.encode() if isinstance(content, str) else content
    if is_url(path):
        path.write_bytes(data)  # an object becomes visible only after the whole upload
        return
    with replacing(Path(path)) as temporary, temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())  # otherwise a power failure could leave an empty file


def create_whole(path: RunPath, text: str) -> bool:
    """Writes a new file; of several processes, on any hosts, only one succeeds.

    A disk with hard links gives the file its name in one step, also over NFS. On a disk without
    them, others may see the file for a moment before its text is there. A bucket creates the object
    only if it does not exist.

    Returns:
      False if the file exists already. It may be from this process, if a server's answer was lost.
    """
    if is_url(path):
        fs, name = fsspec.core.url_to_fs(os.fspath(path))
        try:
            fs.pipe_file(name, text.encode(), mode="create")
        except FileExistsError:
            return False
        return True
    path = Path(path)
    temporary = random_name_beside(path)
    try:
        temporary.write_text(text)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError:  # the disk has no hard links
            return _create(path, text)
        return True
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def try_writing(path: RunPath) -> None:
    """Checks that `path` can be written: writes, reads and deletes a small file beside it.

    Raises:
      OSError: one of the three fails; in a bucket it may be any error.
    """
    trial = random_name_beside(path)
    try:
        trial.write_text("can this folder be written?")
        trial.read_text()
    except BaseException:
        with contextlib.suppress(Exception):
            trial.unlink(missing_ok=True)
        raise
    trial.unlink()


def delete_temporary_files(folder: RunPath) -> None:
    """Deletes the temporary files of processes that were killed. No process may be writing there.

    Temporary folders, and what cannot be deleted, stay. A bucket has no temporary files.
    """
    if is_url(folder):
        return
    with contextlib.suppress(OSError):  # of a folder that does not exist, above all
        for path in Path(folder).iterdir():
            if _TEMPORARY.fullmatch(path.name):
                with contextlib.suppress(OSError):
                    path.unlink()


def random_name_beside[P: RunPath](path: P) -> P:
    """A name that no other process has, on this host or another one that shares the disk."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{SUFFIX}")


def _create(path: Path, text: str) -> bool:
    try:
        with path.open("x") as file:
            file.write(text)
    except FileExistsError:
        return False
    return True


def _delete_abandoned(path: Path) -> None:
    """Deletes the temporary folders for `path` that no process fills any more.

    A process locks its folder first, and then marks it. Other machines do not see locks of folders,
    so one without the mark of this system is deleted only if it has not changed for long.
    """
    ours = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}{re.escape(SUFFIX)}")
    with contextlib.suppress(OSError):  # of a parent that does not exist, above all
        for folder in path.parent.iterdir():
            if ours.fullmatch(folder.name):
                with contextlib.suppress(OSError), _locked(folder):
                    if _is_of_this_system(folder) or _seconds_unchanged(folder) > UNCHANGED_SECONDS:
                        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Locks a folder; the lock ends with this process.

    Raises:
      OSError: another process has locked it, it is no folder, or the disk has no locks.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _is_of_this_system(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        return (folder / _MARK).read_text() == _running_system()
    return False


def _running_system() -> str:
    """Identifies the running kernel, all of whose processes see each other's locks.

    Raises:
      OSError: this is not Linux.
    """
    return Path("/proc/sys/kernel/random/boot_id").read_text()


def _seconds_unchanged(folder: Path) -> float:
    """How long nothing in a folder has changed, by the clock of this machine."""
    return time.time() - max(path.lstat().st_mtime for path in (folder, *folder.rglob("*")))
