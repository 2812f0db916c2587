"""Tells a full disk from other failures."""

import errno
import os
from collections.abc import Iterator

_NUMBERS = (errno.ENOSPC, errno.EDQUOT)
# ArrayRecord's writer raises a RuntimeError, and TFDS an OSError, that say it in their text alone.
_TEXTS = (*map(os.strerror, _NUMBERS), "ot enough disk space")


def disk_is_full(error: BaseException) -> bool:
    """Whether a full disk, or a quota that is used up, is behind an error."""
    return any(
        (isinstance(e, OSError) and e.errno in _NUMBERS) or any(text in str(e) for text in _TEXTS)
        for e in chain(error)
    )


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
