"""Standard output and standard error that never end a command, and what may be drawn on them.

Readers leave (`| head`, a closed terminal), disks fill, and encodings lack a letter. What cannot be
written is dropped, what cannot be shown is escaped, and the work goes on.
"""

import contextlib
import errno
import functools
import io
import logging
import os
import select
import shutil
import sys
from collections.abc import Buffer, Mapping
from typing import TextIO

from jaxcls.system.early_signals import open_standard_files
from jaxcls.system.errors import UserError

logger = logging.getLogger("jaxcls")

TEXT_COLUMNS = 40  # that help and messages take, however narrow the terminal is
BAR_COLUMNS = 60  # below which a bar takes several lines, which cannot be drawn over
_BARS_OF_OTHERS = ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS")


class _LastingBytes(io.RawIOBase):
    """The bytes of a text stream. Writing never raises: it drops what cannot be written.

    Attributes:
      problem: why something was dropped first; None if nothing was.
      patience: seconds to wait for a reader that does not read; None waits for ever.
    """

    def __init__(self, stream: TextIO, *, patience: float | None):
        self.problem: Exception | None = None
        self.patience = patience
        self._stream = stream
        self._number = _file_number(stream)
        self._dropping = False

    @property
    def encoding(self) -> str:
        return self._stream.encoding or "utf-8"

    def write(self, data: Buffer, /) -> int:
        content = bytes(data)
        try:
            self._write_all(content)
            self._dropping = False
        except (OSError, ValueError) as error:  # a closed stream's is a ValueError
            self.problem = self.problem or error
            self._dropping = True
        return len(content)

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return is_terminal(self._stream)

    def fileno(self) -> int:
        return self._stream.fileno()

    def _write_all(self, content: bytes) -> None:
        if self._number is None:
            self._stream.write(content.decode(self.encoding))
            self._stream.flush()
            return
        ready = select.poll()
        ready.register(self._number, select.POLLOUT)
        while content:
            if self.patience is None:
                ready.poll()
                piece = content
            else:
                if not ready.poll(0 if self._dropping else 1000 * self.patience):
                    raise TimeoutError(errno.ETIMEDOUT, "nobody reads it")
                piece = content[: select.PIPE_BUF]  # which does not block then
            with contextlib.suppress(BlockingIOError):
                content = content[os.write(self._number, piece) :]


def lasting(stream: TextIO, *, patience: float | None = None) -> TextIO:
    """The same stream, for text that may be dropped or escaped where it cannot be written.

    Args:
      stream: a standard stream, or what a notebook or a test has in its place.
      patience: seconds to wait, once, for a reader that is there and does not read; None waits for
        ever, as a pager wants it.
    """
    raw = getattr(stream, "buffer", None)
    if isinstance(raw, _LastingBytes):
        raw.patience = patience if patience is not None else raw.patience
        return stream
    raw = _LastingBytes(stream, patience=patience)
    return io.TextIOWrapper(
        raw,  # pyright: ignore[reportArgumentType]
        encoding=raw.encoding,
        errors="backslashreplace",
        line_buffering=getattr(stream, "line_buffering", False),
        write_through=getattr(stream, "write_through", False),
    )


def dropped(stream: TextIO | None) -> str | None:
    """Why a lasting stream has dropped something; None if it has not."""
    raw = getattr(stream, "buffer", None)
    if not isinstance(raw, _LastingBytes) or raw.problem is None:
        return None
    return getattr(raw.problem, "strerror", None) or str(raw.problem)


def protect_output() -> None:
    """Gives the process lasting standard streams, once `open_standard_files` has run."""
    open_standard_files()
    sys.stdout = lasting(sys.stdout or _opened(1))
    sys.stderr = lasting(sys.stderr or _opened(2))
    if shutil.get_terminal_size().columns < TEXT_COLUMNS:  # tyro never ends in four columns
        os.environ["COLUMNS"] = str(TEXT_COLUMNS)
    if not may_draw(sys.stderr):
        for name in _BARS_OF_OTHERS:
            os.environ.setdefault(name, "1")


def require_printed() -> None:
    """Checks that what a command has printed was written, or that its reader wanted no more.

    Raises:
      UserError: the disk is full, say.
    """
    sys.stdout.flush()
    raw = getattr(sys.stdout, "buffer", None)
    problem = raw.problem if isinstance(raw, _LastingBytes) else None
    if problem is not None and not isinstance(problem, BrokenPipeError):
        raise UserError(
            f"the output is incomplete: cannot write to standard output ({dropped(sys.stdout)})"
        )


@functools.cache
def warn_once(message: str) -> None:
    """Logs a warning, once a process, though what it is about may be met several times."""
    logger.warning("%s", message)


def may_draw(stream: TextIO, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether a bar that moves may be drawn: somebody looks at a terminal that can show it.

    FORCE_COLOR and NO_COLOR are about colour alone. TTY_INTERACTIVE, rich's own variable, is the
    user's word on the matter (https://rich.readthedocs.io/en/stable/console.html).
    """
    if (asked := environ.get("TTY_INTERACTIVE")) in ("0", "1"):
        return asked == "1"
    if environ.get("TTY_COMPATIBLE") == "0":
        return False
    if environ.get("TERM", "").lower() in ("", "dumb", "unknown"):
        return False
    if environ.get("CI", "").lower() not in ("", "0", "false"):
        return False
    return is_terminal(stream) and _columns(stream, environ) >= BAR_COLUMNS


def is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except (OSError, ValueError):  # it is closed
        return False


def _columns(stream: TextIO, environ: Mapping[str, str]) -> int:
    """Width of a terminal in characters; 0 where it does not tell."""
    if (given := environ.get("COLUMNS", "")).isdecimal():
        return int(given)
    try:
        return os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        return 0


def _opened(number: int) -> TextIO:
    return io.TextIOWrapper(io.FileIO(number, "w", closefd=False), encoding="utf-8")


def _file_number(stream: TextIO) -> int | None:
    """The open file that a stream writes to; None where it ends in something else.

    A notebook's stream has a number, too, of a file that nobody looks at.
    """
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)  # python -u leaves the buffer out
    return raw.fileno() if isinstance(raw, io.FileIO) else None
