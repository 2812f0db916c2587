"""The exceptions that the command line turns into a message instead of a traceback."""

import errno
import os
import sysconfig
import textwrap
import traceback
from pathlib import Path

from jaxcls.system.terminal_text import masked, public

# Errors of the operating system that concern a path, and what a user can do about them.
_REMEDIES = {
    errno.EACCES: "change its permissions, or name another path",
    errno.EPERM: "change its permissions, or name another path",
    errno.EROFS: "name a path on a disk that can be written",
    errno.ENOENT: "name one that exists",
    errno.EEXIST: "name another path",
    errno.ENOTDIR: "name a folder where a folder is meant",
    errno.EISDIR: "name a file where a file is meant",
    errno.ENOTEMPTY: "name another path",
    errno.ENAMETOOLONG: "name a shorter path",
    errno.ELOOP: "correct its links, or name another path",
    errno.EINVAL: "name another path",
    errno.ENXIO: "name a file or a folder",
    errno.ENOSPC: "free some space, or name a path on another disk",
    errno.EDQUOT: "free some space, or name a path on another disk",
    errno.EFBIG: "name a path on another disk",
}
_FULL = (errno.ENOSPC, errno.EDQUOT)  # a write raises these without a path
_LONGEST = 100  # characters of a path in a message
# Users do not name the files of jaxcls, of installed packages or of Python.
_PROGRAM_FOLDERS = (
    str(Path(__file__).parents[1]),
    *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
)


class UserError(ValueError):
    """A mistake that the user can correct.

    The message names the field, file or record, the value found, and what to do. The command line
    prints it and exits with status 2; users of the library can catch it as a `ValueError`. It may
    quote damaged or hostile files and errors of libraries, so it is made `public`.
    """

    def __init__(self, message: str) -> None:
        super().__init__(public(message))


class DataError(UserError):
    """A data set, split, record or image that cannot be used; the message says which and why."""


class BrokenImageError(DataError):
    """Bytes that are not an image, or a damaged image; `data.broken` decides what happens then."""


def mistake_behind(error: BaseException) -> UserError | None:
    """The user's mistake that caused an exception; None if the cause is a bug.

    A path that the user gave may be missing, forbidden or on a full disk wherever it is used, a
    bucket may not answer, and a batch may not fit into memory. Errors that concern files of Python,
    of installed packages or of jaxcls itself are bugs.

    Args:
      error: any exception that has no better explanation.
    """
    if isinstance(error, UserError):
        return error
    if isinstance(error, OSError) and (mistake := _mistake_of_path(error)) is not None:
        return mistake
    if _raised_below("gcsfs", error):  # whose errors have many types
        return UserError(
            f"a request to a bucket failed ({one_line(error)}); check the bucket's name, the "
            f"network, your credentials and your rights there"
        )
    text = str(error).partition("\n")[0]
    if isinstance(error, ValueError) and text.startswith("embedded null"):  # from Python, of a path
        return UserError("a path contains a NUL character, which no name of a file can contain")
    # JAX's exception is recognised by its name, because importing JAX takes long.
    if isinstance(error, MemoryError) or (
        type(error).__name__ == "JaxRuntimeError" and text.startswith("RESOURCE_EXHAUSTED")
    ):
        return UserError(
            f"this does not fit into memory ({text or 'none is left'}); use a smaller "
            f"data.batch_size, data.image_size, data.canvas_size or network"
        )
    return None


def _raised_below(package: str, error: BaseException) -> bool:
    """Whether code of a package has raised an exception, or called what has raised it."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(frame.f_globals.get("__name__", "").partition(".")[0] == package for frame in frames)


def _mistake_of_path(error: OSError) -> UserError | None:
    number, path = error.errno, error.filename
    if number == errno.ENOENT and _folder_is_gone():
        return UserError("the current folder was deleted; change to one that exists")
    if number not in _REMEDIES:
        return None
    remedy = f"{error.strerror}; {_REMEDIES[number]}"
    if path is None:
        return UserError(remedy) if number in _FULL else None
    if not isinstance(path, str | bytes | os.PathLike):  # the number of an open file: a bug
        return None
    text = os.fsdecode(path)
    if number not in _FULL and any(map(Path(text).is_relative_to, _PROGRAM_FOLDERS)):
        return None
    return UserError(f"{shown(text)!r}: {remedy}")


def _folder_is_gone() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


def one_line(error: BaseException) -> str:
    """The reason of an error on one line of at most 300 characters, without secrets."""
    reason = getattr(error, "strerror", None) or str(error) or repr(error)
    return textwrap.shorten(masked(reason), 300, placeholder=" …")


def shown(path: str | bytes | os.PathLike[str]) -> str:
    """A path for a message, with its middle left out if it is longer than 100 characters."""
    text = os.fsdecode(path)
    if len(text) <= _LONGEST:
        return text
    half = _LONGEST // 2
    return f"{text[:half]}…{text[-half:]}"
