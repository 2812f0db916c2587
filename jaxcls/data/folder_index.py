"""Which image files lie under a folder: found once, then remembered."""

import contextlib
import dataclasses
import hashlib
import json
import os
import time
from pathlib import Path

from jaxcls.caches import cache_dir
from jaxcls.data.decode import is_image_name
from jaxcls.errors import DataError

_SETTLED_NS = 2_000_000_000  # a folder changed more recently may change again within its clock tick


@dataclasses.dataclass(frozen=True)
class FolderIndex:
    """What lies under a folder; names that begin with a dot are left out.

    Attributes:
      folders: path under the folder, "/" between parts -> time of last change, in ns. The folder
        itself is "".
      files: paths of the image files under the folder, sorted.
      num_others: how many other files lie in its folders, not counting those in the folder itself.
      other: path of one of them.
    """

    folders: dict[str, int]
    files: tuple[str, ...]
    num_others: int
    other: str


def read_index(root: Path) -> FolderIndex:
    """Lists the images under a folder, from memory if no folder under it has changed since.

    Adding, removing or renaming a file changes the time of its folder, so looking at the folders is
    enough. A million files take seconds to list, their thousand folders milliseconds to look at.

    Raises:
      DataError: the folder is missing or cannot be read.
    """
    if not root.is_dir():
        raise DataError(
            f"data.source: folder {str(root)!r} does not exist; name a folder of images"
        )
    memory = _memory_file(root)
    remembered = _recall(memory)
    if remembered and _unchanged(root, remembered.folders):
        return remembered
    try:
        index = _scan(root)
    except OSError as error:
        raise DataError(
            f"data.source: {error.filename} cannot be read ({error.strerror}); mend its permissions"
        ) from error
    if time.time_ns() - max(index.folders.values()) > _SETTLED_NS:
        _remember(memory, index)
    return index


def _scan(root: Path) -> FolderIndex:
    folders: dict[str, int] = {}
    files: list[str] = []
    others: list[str] = []
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        folders[folder] = os.stat(root / folder).st_mtime_ns  # before it is listed
        with os.scandir(root / folder) as entries:
            for entry in entries:
                path = f"{folder}/{entry.name}" if folder else entry.name
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    waiting.append(path)
                elif is_image_name(entry.name):
                    files.append(path)
                elif folder:
                    others.append(path)
    return FolderIndex(folders, tuple(sorted(files)), len(others), min(others, default=""))


def _unchanged(root: Path, folders: dict[str, int]) -> bool:
    try:
        return all(os.stat(root / name).st_mtime_ns == time for name, time in folders.items())
    except OSError:
        return False


def _memory_file(root: Path) -> Path:
    name = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
    return cache_dir() / "folders" / f"{name}.json"


def _recall(memory: Path) -> FolderIndex | None:
    try:
        values = json.loads(memory.read_text())
        return FolderIndex(**values | {"files": tuple(values["files"])})
    except (OSError, ValueError, KeyError, TypeError):  # missing, cut short, or from another time
        return None


def _remember(memory: Path, index: FolderIndex) -> None:
    """Writes the index; where that is not possible, it is built again next time."""
    temporary = memory.with_name(f".{memory.name}.{os.getpid()}")
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(dataclasses.asdict(index)))
        temporary.replace(memory)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
