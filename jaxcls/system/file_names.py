"""Names of folders and files: how they are compared, and how they are printed.

On Linux a name may be any bytes. Python stores bytes that are not UTF-8 as lone surrogates: the
file can be opened by such a name, but the name cannot be printed or drawn. Other names can be, but
contain line breaks or escape sequences.
"""

import os
import unicodedata

from jaxcls.system.errors import UserError
from jaxcls.system.terminal_text import harmless


def printable(name: str | os.PathLike[str]) -> str:
    r"""The name as one line of text that does nothing to a terminal.

    Bytes that are not UTF-8 become, say, \xe9, and control characters \n or \x1b.
    """
    return harmless(os.fspath(name), keep="")


def composed(name: str) -> str:
    """The name in Unicode's form NFC, in which names are compared.

    A Mac may store é as two characters, e and an accent, where other systems store one.
    """
    return unicodedata.normalize("NFC", name)


def is_text(name: str) -> bool:
    """Whether all bytes of a name are UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


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
