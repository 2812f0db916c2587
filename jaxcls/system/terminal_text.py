"""Text that does nothing to a terminal, whatever it contains.

Names and texts from files may hold escape sequences, which change a terminal's title or clipboard
or overwrite lines above, and marks of direction, which show letters in another order than they
have (https://trojansource.codes).
"""

import re

_HARMFUL = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def harmless(text: str, *, keep: str = "\n\t") -> str:
    r"""Replaces control characters, marks of direction and lone surrogates by, say, \x1b.

    Args:
      text: any text; a byte of a file's name that is not UTF-8 becomes, say, \xe9.
      keep: the characters that stay unchanged.
    """
    return _HARMFUL.sub(lambda found: found[0] if found[0] in keep else _escaped(found[0]), text)


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # Python's sign for a byte that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape", "surrogatepass").decode()
