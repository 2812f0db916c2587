"""Commands for the user to type next, so that they can be pasted into a shell as they stand."""

import os
import shlex
import shutil
import sys
from pathlib import Path


def command(*words: str, extra: str | None = None) -> str:
    """`jaxcls WORD …` for a shell, started as this process was.

    Args:
      words: what follows, unquoted; paths as `path_word` has them.
      extra: of jaxcls that the command needs; uv then installs it.
    """
    program = ["uv", "run", "--extra", extra, "jaxcls"] if extra else _program()
    return shlex.join([*program, *words])


def path_word(path: str | os.PathLike[str]) -> str:
    """A path as a word of a command: never taken for an option, nor for a home folder."""
    text = os.fspath(path)
    return f"./{text}" if text.startswith(("-", "~")) else text


def _program() -> list[str]:
    """What starts jaxcls again: as uv, the search path, or its own folder has it."""
    started = Path(sys.argv[0])
    as_module = started.parts[-2:] == ("jaxcls", "__main__.py")
    if started.name != "jaxcls" and not as_module:  # a program that uses the library
        return ["jaxcls"]
    if "UV_RUN_RECURSION_DEPTH" in os.environ:  # uv sets it for what it runs
        return ["uv", "run", "jaxcls"]
    found = shutil.which("jaxcls")
    if as_module:
        return ["jaxcls"] if found else [sys.executable, "-m", "jaxcls"]
    if found and os.path.realpath(found) == os.path.realpath(started):
        return ["jaxcls"]
    return [str(started)]
