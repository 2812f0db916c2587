"""Runs a Python file of the user's, such as a config, which may import what lies beside it."""

import contextlib
import importlib.machinery
import os
import runpy
import sys
import traceback
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

_LOADERS = (
    (importlib.machinery.ExtensionFileLoader, importlib.machinery.EXTENSION_SUFFIXES),
    (importlib.machinery.SourceFileLoader, importlib.machinery.SOURCE_SUFFIXES),
    (importlib.machinery.SourcelessFileLoader, importlib.machinery.BYTECODE_SUFFIXES),
)
_PACKAGE = Path(__file__).parent
_OF_THE_FILE = "<run_path>"  # what `runpy` calls the module of a file


@contextlib.contextmanager
def running(path: Path) -> Iterator[dict[str, Any]]:
    """What a Python file defines. Inside, and while it runs, it finds the modules beside it.

    They come before installed ones of the same name, but only for the file and for each other, so
    that a file called like a package of somebody's does not stand in its way. Afterwards they are
    forgotten: another file may have others by the same names.

    Raises:
      Exception: whatever the code of the file raises.
    """
    siblings = _Siblings(path.parent.absolute())
    sys.meta_path.insert(0, siblings)
    try:
        yield runpy.run_path(str(path))
    finally:
        sys.meta_path.remove(siblings)
        for name in [name for name in sys.modules if _top(name) in siblings.found]:
            del sys.modules[name]


def where_raised(error: BaseException, path: Path) -> str:
    """FILE:LINE of the last line of the user's own code that an exception went through.

    Args:
      error: what running the file raised.
      path: of the file.
    """
    if isinstance(error, SyntaxError) and error.filename and _is_beside(error.filename, path):
        return f"{_shown(error.filename, path)}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if _is_beside(frame.filename, path)]
    return f"{_shown(own[-1].filename, path)}:{own[-1].lineno}" if own else str(path)


class _Siblings:
    """Finds modules in a folder, for those who were found there and for the file that runs.

    Attributes:
      found: names of the modules and packages that were imported from it.
    """

    def __init__(self, folder: Path) -> None:
        self.found: set[str] = set()
        self._finder = importlib.machinery.FileFinder(str(folder), *_LOADERS)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if path is not None or _top(_importer(sys._getframe(1))) not in {_OF_THE_FILE, *self.found}:
            return None
        spec = self._finder.find_spec(name)
        if spec is None:
            return None
        if spec.loader is None:  # any folder; a package of that name is meant rather than it
            if importlib.machinery.PathFinder.find_spec(name) is not None:
                return None
            locations = spec.submodule_search_locations
            spec = ModuleSpec(name, None, is_package=True)
            spec.submodule_search_locations = locations
        self.found.add(name)
        return spec


def _importer(frame: FrameType | None) -> str:
    """The module whose code asked for an import: the first one outside Python's machinery."""
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if _top(name) != "importlib":
            return name
        frame = frame.f_back
    return ""


def _top(name: str) -> str:
    return name.partition(".")[0]


def _is_beside(file: str, path: Path) -> bool:
    """Whether a file is in the folder of `path`, and neither installed there nor this package's."""
    full = Path(os.path.abspath(file))
    beside = full.is_relative_to(os.path.abspath(path.parent)) and not file.startswith("<")
    return beside and "site-packages" not in full.parts and not full.is_relative_to(_PACKAGE)


def _shown(file: str, path: Path) -> str:
    """A file beside `path`, named as that is: relative to where the command runs, or whole."""
    return str(path.parent / os.path.relpath(file, path.parent))
