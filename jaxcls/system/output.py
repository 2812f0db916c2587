"""Standard output and standard error that never end a command, and how tables and bars are drawn.

Readers leave (`| head`, a closed terminal), disks fill, and encodings lack letters. Text that
cannot be written is dropped, letters that cannot be encoded are escaped, and the work continues.
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
from collections.abc import Buffer, Collection, Mapping, Sequence
from typing import TextIO

from jaxcls.system.early_signals import open_standard_files
from jaxcls.system.errors import UserError
from jaxcls.system.file_names import printable
from jaxcls.system.terminal_text import harmless, public

logger = logging.getLogger("jaxcls")

MIN_TEXT_COLUMNS = 40  # help and messages take at least this width, even on a narrower terminal
MIN_BAR_COLUMNS = 60  # on a narrower terminal a bar takes several lines and cannot be redrawn
_LIBRARY_BARS = ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS")


class _SafeBytes(io.RawIOBase):
    """The bytes of a text stream. Writing never raises; bytes that cannot be written are dropped.

    Attributes:
      problem: the first error because of which bytes were dropped; None if there was none.
      patience: seconds to wait for a reader that does not read; None waits forever.
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
        except (OSError, ValueError) as error:  # a closed stream raises ValueError
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
                piece = content[: select.PIPE_BUF]  # a pipe that is ready takes this much at once
            with contextlib.suppress(BlockingIOError):
                content = content[os.write(self._number, piece) :]


def safe_stream(stream: TextIO, *, patience: float | None = None) -> TextIO:
    """Wraps a stream so that writing never raises; text that cannot be written is dropped.

    Args:
      stream: a standard stream, or what a notebook or a test has in its place.
      patience: seconds to wait, once, for a reader that does not read; None waits forever, which
        suits a pager.
    """
    raw = getattr(stream, "buffer", None)
    if isinstance(raw, _SafeBytes):
        raw.patience = patience if patience is not None else raw.patience
        return stream
    raw = _SafeBytes(stream, patience=patience)
    return io.TextIOWrapper(
        raw,  # pyright: ignore[reportArgumentType]
        encoding=raw.encoding,
        errors="backslashreplace",
        line_buffering=getattr(stream, "line_buffering", False),
        write_through=getattr(stream, "write_through", False),
    )


def drop_reason(stream: TextIO | None) -> str | None:
    """Why a safe stream has dropped text; None if it has dropped none."""
    raw = getattr(stream, "buffer", None)
    if not isinstance(raw, _SafeBytes) or raw.problem is None:
        return None
    return getattr(raw.problem, "strerror", None) or str(raw.problem)


def protect_output() -> None:
    """Makes the standard streams of this process safe streams, and opens those that are closed."""
    open_standard_files()
    sys.stdout = safe_stream(sys.stdout or _opened(1))
    sys.stderr = safe_stream(sys.stderr or _opened(2))
    if shutil.get_terminal_size().columns < MIN_TEXT_COLUMNS:  # tyro hangs at four columns
        os.environ["COLUMNS"] = str(MIN_TEXT_COLUMNS)
    if not may_draw(sys.stderr):
        for name in _LIBRARY_BARS:
            os.environ.setdefault(name, "1")


def say(text: str, stream: TextIO | None = None) -> None:
    """Prints a line or several for people, with what must not be printed escaped or masked.

    Names of classes and files, texts in the files of a run, and addresses may contain that.
    Commands print with this function and `put` only.

    Args:
      text: the text, without the last line break.
      stream: where to (None: standard output).
    """
    print(public(text), file=stream, flush=True)


def put(data: str) -> None:
    """Prints JSON or CSV for another program: nothing is masked, because names must stay whole.

    The caller has made the names in it printable.
    """
    print(harmless(data), flush=True)


class PublicFormatter(logging.Formatter):
    """Formats log records as `say` prints text."""

    def format(self, record: logging.LogRecord) -> str:
        return public(super().format(record))


def require_printed() -> None:
    """Checks that all output of a command was written, unless its reader left early.

    Raises:
      UserError: it was not, for example because the disk is full.
    """
    sys.stdout.flush()
    raw = getattr(sys.stdout, "buffer", None)
    problem = raw.problem if isinstance(raw, _SafeBytes) else None
    if problem is not None and not isinstance(problem, BrokenPipeError):
        raise UserError(
            f"the output is incomplete: cannot write to standard output ({drop_reason(sys.stdout)})"
        )


@functools.cache
def warn_once(message: str) -> None:
    """Logs a warning, but each message only once in a process."""
    logger.warning("%s", message)


def table(rows: Sequence[Sequence[str]], *, right: Collection[int] = ()) -> str:
    """Rows of cells as aligned columns; the first row is the header.

    Args:
      rows: the cells; all rows have the same length. Line breaks in them are escaped.
      right: the columns, counted from 0, that are aligned to the right.
    """
    rows = [list(map(printable, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = (
        [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in rows
    )
    return "\n".join("  ".join(row).rstrip() for row in aligned)


def may_draw(stream: TextIO, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether a moving progress bar may be drawn, that is, on a terminal that can redraw it.

    The user can decide with TTY_INTERACTIVE, a variable of rich
    (https://rich.readthedocs.io/en/stable/console.html). FORCE_COLOR and NO_COLOR concern only
    colours.
    """
    if (asked := environ.get("TTY_INTERACTIVE")) in ("0", "1"):
        return asked == "1"
    if environ.get("TTY_COMPATIBLE") == "0":
        return False
    if environ.get("TERM", "").lower() in ("", "dumb", "unknown"):
        return False
    if environ.get("CI", "").lower() not in ("", "0", "false"):
        return False
    return is_terminal(stream) and _columns(stream, environ) >= MIN_BAR_COLUMNS


def is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except (OSError, ValueError):  # it is closed
        return False


def _columns(stream: TextIO, environ: Mapping[str, str]) -> int:
    """The width of a terminal in characters; 0 if it is unknown."""
    if (given := environ.get("COLUMNS", "")).isdecimal():
        return int(given)
    try:
        return os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        return 0


def _opened(number: int) -> TextIO:
    return io.TextIOWrapper(io.FileIO(number, "w", closefd=False), encoding="utf-8")


def _file_number(stream: TextIO) -> int | None:
    """The descriptor of the file that a stream writes to; None if it writes to something else.

    A notebook's stream has a descriptor too, but of a file that nobody reads.
    """
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)  # with `python -u` there is no buffer
    return raw.fileno() if isinstance(raw, io.FileIO) else None
