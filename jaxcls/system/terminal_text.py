"""Text that can be printed and recorded, whatever it contains.

Names and texts from files may hold escape sequences, which change a terminal's title or clipboard
or overwrite lines above, and marks of direction, which show letters in another order than they
have (https://trojansource.codes). Addresses and headers, also those in errors of libraries, may
hold passwords, tokens and signatures.
"""

import re

_HARMFUL = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


_MASK = "***"
# user:password@ in an address; a name without a password stays in one of ssh.
_USER = re.compile(r"(?P<scheme>\b[a-z][a-z0-9+.-]{0,30}://)(?P<user>[^/?#\s]*)@", re.IGNORECASE)
_VALUE = r"[^&;#,\s'\"<>)\]}]+"
# What is found is replaced, except for the group. launch/options.sh knows the same kinds.
_SECRETS = tuple(
    re.compile(pattern, re.VERBOSE)
    for pattern in (
        # The value of a parameter such as X-Goog-Signature, access_token, sig or AWSAccessKeyId.
        r"""(?i)
        ([?&;\#][\w.-]{0,99}
          (?:token|key|secret|sig|password|passwd|pwd|auth|credential)[\w.-]{0,99}=)
        [^&;\#\s'"<>)\]}]+""",
        # Headers: Authorization, with and without a word for its kind, and those of keys.
        rf"""(?i)
        (\bauthorization['"]?\s*[:=]\s*['"]?
          (?:token|bearer|basic|digest|negotiate|apikey|aws4-hmac-sha256)\s+)
        {_VALUE}(?:,\s*[\w-]+={_VALUE})*""",
        r"""(?i)
        (\bauthorization['"]?\s*[:=]\s*['"]?)(?=[\w.~+/=-]*\d)[\w.~+/=-]{8,}(?![\w.~+/=-]|\s+\*)""",
        r"""(?i)
        (\b(?:bearer|basic)\s+)[\w.~+/=-]{8,}""",
        rf"""(?i)
        (?<![\w.-])((?:x-[a-z-]*(?:token|key|secret)|(?:private|job)-token|api-?key)
          ['"]?\s*:\s*['"]?)
        {_VALUE}""",
        # A field of a login as JSON, in a form or as an argument.
        rf"""(?i)
        (?<![\w.-])((?:(?:access|refresh|id|auth)_?token|client_?secret|api_?key|password|passwd)
          (?:['"]?\s*=\s*|['"]\s*:\s*)['"]?)
        {_VALUE}""",
        # A variable such as HF_TOKEN.
        rf"""
        (\b(?:[A-Z0-9]+_)*(?:TOKEN|KEY|SECRET|PASSWORD)(?:=|['"]:\s)['"]?)
        {_VALUE}""",
        # user:password@host without a scheme. A digest of a container's image is none, nor is what
        # follows mailto: or the name of a kind of data or weights.
        r"""(?i)
        (?<![\w.%+/@-])(?!(?:mailto|digits|folder|tfds|hf):)
        [^\s/:@'"=<>(){}\[\],;|]{1,99}:[^\s/'"<>]{1,299}(?=@\w)(?!@sha256:)""",
        # Tokens whose beginning says whose they are: of Hugging Face, GitHub, npm, GitLab, ...
        r"""
        (?<![\w-])(?:
            (?:hf_|api_org_|gh[a-z]_|npm_)(?:[A-Za-z0-9]{20,}|(?=[A-Za-z]*\d)[A-Za-z0-9]{8,})
          | (?:github_pat_|dckr_pat_|glpat-|pypi-|GOCSPX-|wandb_v1_)[\w-]{16,}
          | [sr]k[-_](?=[\w-]*\d)[\w-]{16,}  # OpenAI, Anthropic, Stripe
          | (?:AIza|ya29\.)[\w-]{16,}  # Google
          | (?:xox[a-z]|xapp)-[\w-]{8,}  # Slack
          | (?:AKIA|ASIA)[A-Z0-9]{12,}  # Amazon
          | eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]*  # a JSON Web Token
        )""",
    )
)


def public(text: str) -> str:
    """The text as it may be printed and logged: harmless, and without secrets."""
    return harmless(masked(text))


def masked(text: str) -> str:
    """Replaces passwords, tokens and signatures in addresses, headers and logins by ***."""
    text = _USER.sub(_without_password, text)
    for secret in _SECRETS:
        text = secret.sub(lambda found: "".join(found.groups()) + _MASK, text)
    return text


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
