"""Text that can be printed and recorded, whatever it contains.

Names and texts from files may hold escape sequences, which change a terminal's title or clipboard
or overwrite lines above, and marks of direction, which show letters in another order than they
have (https://trojansource.codes). Addresses, also those in errors of libraries, may hold passwords,
tokens and signatures.
"""

import re

_HARMFUL = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


# user:password@ in an address; a name without a password stays in one of ssh.
_USER = re.compile(r"(?P<scheme>\b[a-z][a-z0-9+.-]*://)(?P<user>[^/?#\s]*)@", re.IGNORECASE)
# The value of a parameter such as X-Goog-Signature, access_token, sig or AWSAccessKeyId.
_PARAMETER = re.compile(
    r"([?&;][\w.-]*(?:token|key|secret|sig|password|passwd|pwd|auth|credential)[\w.-]*=)"
    r"[^&;#\s'\"<>)\]}]+",
    re.IGNORECASE,
)
_HEADER = re.compile(r"\b(Bearer|Basic)\s+[\w.~+/=-]{8,}", re.IGNORECASE)
_MASK = "***"


def public(text: str) -> str:
    """The text as it may be printed and logged: harmless, and without secrets."""
    return harmless(masked(text))


def masked(text: str) -> str:
    """Replaces passwords, tokens and signatures in addresses and headers by ***."""
    text = _USER.sub(_without_password, text)
    text = _PARAMETER.sub(rf"\1{_MASK}", text)
    return _HEADER.sub(rf"\1 {_MASK}", text)


def _without_password(found: re.Match[str]) -> str:
    plain = ":" not in found["user"] and "ssh" in found["scheme"]
    return found[0] if plain else f"{found['scheme']}{_MASK}@"


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
