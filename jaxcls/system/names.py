"""Names that people gave to folders and files: how they are compared, and shown.

On Linux a name is any bytes. Python keeps those that are not UTF-8 as lone surrogates, with which
the file opens, but which can neither be printed nor drawn.
"""

import os
import unicodedata

from jaxcls.system.errors import UserError


def printable(name: str | os.PathLike[str]) -> str:
    r"""The name as text: bytes that are not UTF-8 are written as \xe9."""
    text = os.fspath(name)
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # a surrogate that stands for no byte, as JSON may hold
        return text.encode("utf-8", "backslashreplace").decode("utf-8")


def composed(name: str) -> str:
    """The name in the one form in which names are compared, Unicode's NFC.

    A Mac may store é as e and an accent, two characters, where others store one.
    """
    return unicodedata.normalize("NFC", name)


def is_text(name: str) -> bool:
    """Whether a name can be printed: it has no bytes that are not UTF-8."""
    return printable(name) == name


def require_text(name: str, *, what: str) -> None:
    """Refuses a name that logs and other programs could not hold.

    Args:
      name: of a file or folder.
      what: what it names, for the message.

    Raises:
      UserError: it has bytes that are not UTF-8.
    """
    if not is_text(name):
        raise UserError(f"{what} '{printable(name)}': this name is not UTF-8; take another one")
