"""Runs a user's Python file, such as a config, which may import modules from its own folder."""

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
_MODULE_OF_FILE = "<run_path>"  # the name that `runpy` gives to the module of a file


@contextlib.contextmanager
def run_file(path: Path) -> Iterator[dict[str, Any]]:
    """Runs a Python file and gives what it defines.

    Until the end of the `with`, the file and the modules that it imports from its folder find
    modules there before installed ones of the same name; other code does not, so a file may have
    the name of an installed package. Afterwards these modules are removed from `sys.modules`,
    because another file may have different ones of the same names.

    Raises:
      Exception: any exception that the code of the file raises.
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
    """FILE:LINE of the innermost line of the user's own code in the traceback of an exception.

    Args:
      error: the exception that the file raised.
      path: the path of the file.
    """
    if isinstance(error, SyntaxError) and error.filename and _is_beside(error.filename, path):
        return f"{_shown(error.filename, path)}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if _is_beside(frame.filename, path)]
    return f"{_shown(own[-1].filename, path)}:{own[-1].lineno}" if own else str(path)


class _Siblings:
    """Finds modules in a folder, but only if the file or a module from the folder imports them.

    Attributes:
      found: the names of the modules and packages that were imported from the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.found: set[str] = set()
        self._finder = importlib.machinery.FileFinder(str(folder), *_LOADERS)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        importer = _top(_importer(sys._getframe(1)))
        if path is not None or importer not in {_MODULE_OF_FILE, *self.found}:
            return None
        spec = self._finder.find_spec(name)
        if spec is None:
            return None
        if spec.loader is None:  # a folder without __init__.py; an installed package goes first
            if importlib.machinery.PathFinder.find_spec(name) is not None:
                return None
            locations = spec.submodule_search_locations
            spec = ModuleSpec(name, None, is_package=True)
            spec.submodule_search_locations = locations
        self.found.add(name)
        return spec


def _importer(frame: FrameType | None) -> str:
    """The module whose code asked for an import: the first one outside Python's `importlib`."""
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if _top(name) != "importlib":
            return name
        frame = frame.f_back
    return ""


def _top(name: str) -> str:
    return name.partition(".")[0]


def _is_beside(file: str, path: Path) -> bool:
    """Whether a file is in the folder of `path`, and not installed or a part of this package."""
    full = Path(os.path.abspath(file))
    beside = full.is_relative_to(os.path.abspath(path.parent)) and not file.startswith("<")
    return beside and "site-packages" not in full.parts and not full.is_relative_to(_PACKAGE)


def _shown(file: str, path: Path) -> str:
    """A file beside `path` for a message: relative or absolute as `path` is."""
    return str(path.parent / os.path.relpath(file, path.parent))
