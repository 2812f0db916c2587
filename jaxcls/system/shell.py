"""Commands in messages, quoted so that users can paste them into a shell unchanged."""

import os
import shlex
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from jaxcls.system.file_names import printable


def command(*words: str, extra: str | None = None) -> str:
    """The shell command `jaxcls WORD …`, which starts jaxcls in the way this process was started.

    Args:
      words: the arguments, unquoted; paths must come from `path_word`.
      extra: the extra of jaxcls that the command needs; `uv run` then installs it.
    """
    program = ["uv", "run", "--extra", extra, "jaxcls"] if extra else _program()
    return join_words([*program, *words])


def join_words(words: Iterable[str]) -> str:
    """Quotes words for a shell as `shlex.join`, and so that they can be printed.

    A word with control characters or bytes that are not UTF-8 is written as $'…', in which bash and
    zsh read codes such as \\x1b.
    """
    return " ".join(map(_quoted, words))


def path_word(path: str | os.PathLike[str]) -> str:
    """A path as an argument that is never taken for an option or for a home folder."""
    text = os.fspath(path)
    return f"./{text}" if text.startswith(("-", "~")) else text


def _quoted(word: str) -> str:
    if printable(word) == word:
        return shlex.quote(word)
    plain = word.replace("\\", r"\\").replace("'", r"\'")
    return "$'" + "".join(c if printable(c) == c else _codes(c) for c in plain) + "'"


def _codes(character: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))


def _program() -> list[str]:
    """The words that start jaxcls again: through uv, the search path, or its own folder."""
    started = Path(sys.argv[0])
    as_module = started.parts[-2:] == ("jaxcls", "__main__.py")
    if started.name != "jaxcls" and not as_module:  # another program, which uses the library
        return ["jaxcls"]
    if "UV_RUN_RECURSION_DEPTH" in os.environ:  # set by `uv run`
        return ["uv", "run", "jaxcls"]
    found = shutil.which("jaxcls")
    if as_module:
        return ["jaxcls"] if found else [sys.executable, "-m", "jaxcls"]
    if found and os.path.realpath(found) == os.path.realpath(started):
        return ["jaxcls"]
    return [str(started)]
