"""Names of folders and files: how they are compared, and how they are printed.

On Linux a name may be any bytes. Python stores bytes that are not UTF-8 as lone surrogates: the
file can be opened by such a name, but the name cannot be printed or drawn.
"""

import os
import unicodedata

from jaxcls.system.errors import UserError


def printable(name: str | os.PathLike[str]) -> str:
    r"""The name as text that can be printed: bytes that are not UTF-8 become, say, \xe9."""
    text = os.fspath(name)
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # a surrogate that stands for no byte, which JSON may contain
        return text.encode("utf-8", "backslashreplace").decode("utf-8")


def composed(name: str) -> str:
    """The name in Unicode's form NFC, in which names are compared.

    A Mac may store é as two characters, e and an accent, where other systems store one.
    """
    return unicodedata.normalize("NFC", name)


def is_text(name: str) -> bool:
    """Whether a name can be printed, that is, whether all of its bytes are UTF-8."""
    return printable(name) == name


def require_text(name: str, *, what: str) -> None:
    """Checks that logs and other programs can store a name.

    Args:
      name: the name of a file or folder.
      what: what has this name, for the message.

    Raises:
      UserError: the name has bytes that are not UTF-8.
    """
    if not is_text(name):
        raise UserError(f"{what} '{printable(name)}': this name is not UTF-8; use another one")
