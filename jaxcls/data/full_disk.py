"""Recognises errors that a full disk caused."""

import errno
import os
from collections.abc import Iterator

_NUMBERS = (errno.ENOSPC, errno.EDQUOT)
# ArrayRecord's writer (RuntimeError) and TFDS (OSError) say it only in the text of the error.
_TEXTS = (*map(os.strerror, _NUMBERS), "ot enough disk space")


def disk_is_full(error: BaseException) -> bool:
    """Returns whether a full disk or an exhausted quota caused an error."""
    return any(
        (isinstance(e, OSError) and e.errno in _NUMBERS) or any(text in str(e) for text in _TEXTS)
        for e in chain(error)
    )


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an error, its cause, the cause of that, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
