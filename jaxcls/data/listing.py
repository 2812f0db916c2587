"""Which images lie under a folder: the one rule for training, evaluation, surveys and prediction.

Images are told by their names, in whatever case. Links are followed. Left out, but counted, are

- names that begin with a dot, such as the ._NAME.jpg that a Mac puts beside NAME.jpg, and the
  folders that systems keep for themselves, such as __MACOSX;
- links back to a folder above them, or to one that is listed already in the same part of the
  folder: they lead to the same images again, perhaps without end;
- links that lead nowhere, pipes, sockets and devices;
- images of formats that are not decoded, and files that are no images by their names.

What cannot be read, because its permissions or the disk forbid it, is told apart: whoever asks for
the list decides whether that is an error.
"""

import collections
import dataclasses
import errno
import os
from collections.abc import Mapping
from pathlib import Path

from jaxcls.data.decode import UNREADABLE_FORMATS, is_image_name
from jaxcls.system.names import printable

# Of macOS, disks of Synology and QNAP, Windows, and Linux' file systems.
_SYSTEM_NAMES = frozenset(
    {"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
)

# What is left out, in words for a person.
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
    """How many entries of a kind were left out, and the path of the first of them."""

    count: int
    example: str


@dataclasses.dataclass(frozen=True)
class Listing:
    """What lies under a folder; paths are seen from it, with "/" between their parts.

    Attributes:
      folders: all of them but the folder itself, sorted.
      files: those that are images by their names, sorted.
      left_out: what was passed over, by its kind, such as "hidden names".
      unreadable: folders and links that cannot be read, with the reason; "" is the folder itself.
    """

    folders: tuple[str, ...]
    files: tuple[str, ...]
    left_out: Mapping[str, LeftOut]
    unreadable: Mapping[str, str]


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is left out, as not meant for people."""
    return name.startswith(".") or name in _SYSTEM_NAMES


def list_images(root: Path) -> Listing:
    """Lists the images under a folder by the rule of this module; raises nothing."""
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
    """What was passed over, as words for a person; empty if it was nothing."""
    return "; ".join(
        f"{kind} ({found.count:,}, for example '{printable(found.example)}')"
        for kind, found in left_out.items()
    )


class _Walk:
    """Goes through a folder: first through all that lies in it, then where its links lead."""

    def __init__(self, root: str):
        self.root = root
        self.folders: list[str] = []
        self.files: list[str] = []
        self.left_out: dict[str, list[str]] = collections.defaultdict(list)
        self.unreadable: dict[str, str] = {}
        # Real paths of what was listed under each folder in the root. A split may be a link to
        # another one; within a split or class nothing comes twice. A link in such a folder that
        # leads out of the root may be a class of its own, and has a set of its own.
        self._seen: dict[str, set[str]] = collections.defaultdict(set)
        self._leading_out: set[str] = set()
        self._folders = [("", root)]  # to be listed: path, real path
        self._links: collections.deque[tuple[str, str]] = collections.deque()  # path, where it lies
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
                # The disk's own order would decide which of two links to one folder counts.
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
    """Whether an entry is a folder, an image, or of a kind that is left out.

    Raises:
      OSError: it is a link, and what it leads to cannot be looked at.
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
    return f"{name} files, to be converted to JPEG or PNG first" if name else OTHER


def _contains(folder: str, other: str) -> bool:
    """Whether a real path is that of the other one or of a folder above it."""
    return other == folder or other.startswith(folder.rstrip("/") + "/")
