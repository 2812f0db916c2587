"""Lists the images under a folder, in the same way for training, evaluation and prediction.

Images are recognised by the suffix of their names, upper or lower case. Links are followed. These
are left out, but counted:

- names that begin with a dot, such as the ._NAME.jpg that a Mac writes beside NAME.jpg, and system
  folders such as __MACOSX;
- links to a parent folder, or to a folder that is already listed in the same part of the tree,
  because they lead to the same images again, perhaps without end;
- links that lead nowhere, pipes, sockets and devices;
- images of unsupported formats, and files without an image's suffix.

Files and folders that cannot be read, because of permissions or the disk, are listed separately, so
that the caller can decide whether that is an error.
"""

import collections
import dataclasses
import errno
import os
from collections.abc import Mapping
from pathlib import Path

from jaxcls.data.formats import UNREADABLE_FORMATS, is_image_name
from jaxcls.system.file_names import printable

# Folders of macOS, of Synology and QNAP disks, of Windows, and of Linux file systems.
_SYSTEM_NAMES = frozenset(
    {"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
)

# Kinds of entries that are left out, as users see them.
HIDDEN = "hidden names"
BACK = "symbolic links to a parent folder or to a folder that is already listed"
NOWHERE = "links that lead nowhere"
SPECIAL = "pipes, sockets and devices"
OTHER = "files without an image extension"

_LEADS_NOWHERE = {errno.ELOOP, errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR}
_FOLDER = "folder"
_IMAGE = "image"


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """The number of entries of one kind that were left out, and the path of the first one."""

    count: int
    example: str


@dataclasses.dataclass(frozen=True)
class Listing:
    """The content of a folder; paths are relative to it, with "/" between their parts.

    Attributes:
      folders: all folders under it, sorted.
      files: all images, sorted.
      left_out: what was left out, by its kind, such as "hidden names".
      unreadable: folders and links that cannot be read, with the reason; "" is the folder itself.
    """

    folders: tuple[str, ...]
    files: tuple[str, ...]
    left_out: Mapping[str, LeftOut]
    unreadable: Mapping[str, str]


def is_hidden(name: str) -> bool:
    """Returns whether a file or folder of this name is hidden or belongs to the system."""
    return name.startswith(".") or name in _SYSTEM_NAMES


def list_images(root: Path) -> Listing:
    """Lists the images under a folder by the rules of this module; raises no errors."""
    walk = _Walk(os.path.realpath(root))
    return Listing(
        folders=tuple(sorted(walk.folders)),
        files=tuple(sorted(walk.files)),
        left_out={
            kind: LeftOut(len(paths), min(paths)) for kind, paths in sorted(walk.left_out.items())
        },
        unreadable=dict(sorted(walk.unreadable.items())),
    )


def describe_left_out(left_out: Mapping[str, LeftOut]) -> str:
    """Describes for the user what was left out; empty if that is nothing."""
    return "; ".join(
        f"{kind} ({found.count:,}, for example '{printable(found.example)}')"
        for kind, found in left_out.items()
    )


class _Walk:
    """Walks through a folder: first through everything inside, then to where its links lead."""

    def __init__(self, root: str):
        self.root = root
        self.folders: list[str] = []
        self.files: list[str] = []
        self.left_out: dict[str, list[str]] = collections.defaultdict(list)
        self.unreadable: dict[str, str] = {}
        # Real paths that were listed, for each folder in the root. A split may be a link to another
        # split, but within a split or class nothing is listed twice. A link in such a folder that
        # leads out of the root may be a class, so it gets a set of its own.
        self._seen: dict[str, set[str]] = collections.defaultdict(set)
        self._leading_out: set[str] = set()
        self._folders = [("", root)]  # still to list: path, real path
        self._links: collections.deque[tuple[str, str]] = collections.deque()  # path, its folder
        while self._folders or self._links:
            if self._folders:
                self._list(*self._folders.pop())
            else:
                self._follow(*self._links.popleft())

    def _follow(self, link: str, parent: str) -> None:
        target = os.path.realpath(os.path.join(self.root, link))
        if _contains(target, parent) or _contains(target, self.root):
            self.left_out[BACK].append(link)
            return
        if link.count("/") == 1 and not _contains(self.root, target):
            self._leading_out.add(link)
        self._enter(link, target)

    def _enter(self, folder: str, real: str) -> None:
        top, first_two = folder.partition("/")[0], "/".join(folder.split("/")[:2])
        seen = self._seen[first_two if first_two in self._leading_out else top]
        if real in seen or real in self._seen[top]:
            self.left_out[BACK].append(folder)
            return
        seen.add(real)
        self.folders.append(folder)
        self._folders.append((folder, real))

    def _list(self, folder: str, real: str) -> None:
        try:
            with os.scandir(os.path.join(self.root, folder)) as entries:
                # Sorted, because of two links to the same folder the first one counts.
                for entry in sorted(entries, key=lambda entry: entry.name):
                    self._take(entry, f"{folder}/{entry.name}" if folder else entry.name, real)
        except OSError as error:
            self.unreadable[folder] = error.strerror or str(error)

    def _take(self, entry: "os.DirEntry[str]", path: str, real: str) -> None:
        try:
            kind = _kind(entry)
        except OSError as error:
            self.unreadable[path] = error.strerror or str(error)
            return
        if kind == _IMAGE:
            self.files.append(path)
        elif kind != _FOLDER:
            self.left_out[kind].append(path)
        elif entry.is_symlink():
            self._links.append((path, real))
        else:
            self._enter(path, f"{real}/{entry.name}")


def _kind(entry: "os.DirEntry[str]") -> str:
    """Returns whether an entry is a folder or an image, or its kind if it is left out.

    Raises:
      OSError: the entry is a link, and its target cannot be accessed.
    """
    if is_hidden(entry.name):
        return HIDDEN
    try:
        if entry.is_dir():
            return _FOLDER
        if not entry.is_file():
            return SPECIAL if os.path.exists(entry.path) else NOWHERE
    except OSError as error:
        if error.errno in _LEADS_NOWHERE:
            return NOWHERE
        raise
    if is_image_name(entry.name):
        return _IMAGE
    name = UNREADABLE_FORMATS.get(os.path.splitext(entry.name)[1].lower())
    return f"{name} files, which must be converted to JPEG or PNG" if name else OTHER


def _contains(folder: str, other: str) -> bool:
    """Returns whether one real path is the other one or a parent folder of it."""
    return other == folder or other.startswith(folder.rstrip("/") + "/")
