"""The exceptions that the command line turns into a message instead of a traceback."""

import errno
import os
import sysconfig
from pathlib import Path

# What the operating system says of a path, by its number, and what a user can do about it.
_REMEDIES = {
    errno.EACCES: "change its permissions, or name another path",
    errno.EPERM: "change its permissions, or name another path",
    errno.EROFS: "name a path on a disk that can be written",
    errno.ENOENT: "name what is there",
    errno.EEXIST: "name another path",
    errno.ENOTDIR: "name a folder where a folder is meant",
    errno.EISDIR: "name a file where a file is meant",
    errno.ENOTEMPTY: "name another path",
    errno.ENAMETOOLONG: "name a shorter path",
    errno.ELOOP: "mend its links, or name another path",
    errno.EINVAL: "name another path",
    errno.ENXIO: "name a file or a folder",
    errno.ENOSPC: "free some space, or name a path on another disk",
    errno.EDQUOT: "free some space, or name a path on another disk",
    errno.EFBIG: "name a path on another disk",
}
_FULL = (errno.ENOSPC, errno.EDQUOT)  # a write says so without a path
_LONGEST = 100  # characters of a path in a message
# Files of jaxcls, of the packages and of Python are none that a user names.
_OURS = (
    str(Path(__file__).parents[1]),
    *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
)


class UserError(ValueError):
    """A mistake that the user can mend.

    The message names the field, file or record, the value found, and what to do. The command line
    prints it and exits with status 2; library users may catch it as a `ValueError`.
    """


class DataError(UserError):
    """A data set, split, record or image that cannot be used; the message says which and why."""


class BrokenImageError(DataError):
    """Bytes that are no image, or a damaged one; `data.broken` says what happens then."""


def mistake_behind(error: BaseException) -> UserError | None:
    """The user's mistake behind an error that nobody has explained better; None if it is a fault.

    A path that the user names may be missing, forbidden or full wherever it is touched, and a batch
    may be larger than any memory. What the operating system says of files of Python, of the
    packages and of jaxcls itself is no mistake of the user.

    Args:
      error: any exception.
    """
    if isinstance(error, UserError):
        return error
    if isinstance(error, OSError):
        return _mistake_of_path(error)
    text = str(error).partition("\n")[0]
    if isinstance(error, ValueError) and text.startswith("embedded null"):  # Python's, of a path
        return UserError("a path holds a NUL character, which no file or folder is named by")
    # The second is JAX's, which is not imported for this.
    if isinstance(error, MemoryError) or (
        type(error).__name__ == "JaxRuntimeError" and text.startswith("RESOURCE_EXHAUSTED")
    ):
        return UserError(
            f"this does not fit into memory ({text or 'none is left'}); choose a smaller "
            f"data.batch_size, data.image_size, data.canvas_size or network"
        )
    return None


def _mistake_of_path(error: OSError) -> UserError | None:
    number, path = error.errno, error.filename
    if number == errno.ENOENT and _folder_is_gone():
        return UserError("the current folder was deleted; change to one that is there")
    if number not in _REMEDIES:
        return None
    remedy = f"{error.strerror}; {_REMEDIES[number]}"
    if path is None:
        return UserError(remedy) if number in _FULL else None
    if not isinstance(path, str | bytes | os.PathLike):  # of an open file, which is no mistake
        return None
    text = os.fsdecode(path)
    if any(Path(text).is_relative_to(folder) for folder in _OURS) and number not in _FULL:
        return None
    return UserError(f"{shown(text)!r}: {remedy}")


def _folder_is_gone() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


def shown(path: str | bytes | os.PathLike[str]) -> str:
    """A path, with its middle left out where it is longer than a message."""
    text = os.fsdecode(path)
    if len(text) <= _LONGEST:
        return text
    half = _LONGEST // 2
    return f"{text[:half]}…{text[-half:]}"
