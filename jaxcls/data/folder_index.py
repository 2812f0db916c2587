"""The list of a folder's images: made anew at every start, or that which was made last.

Nothing that is cheap to look at tells whether a list is out of date. The time of a folder is set
back by tar, rsync, cp -a and unzip, and stands still on some network and FUSE disks, as do ctime
and inode numbers there; where ctime can be trusted, on a local disk, listing is quick. So a list
that nobody chose to trust is made anew: of 100,000 files on a local disk, that takes 0.4 s (looking
at each of them would take four times as long), and to read the list that was made last 0.02 s.

A list holds names alone. So a file that was replaced by another of its name needs no new one.
"""

import contextlib
import dataclasses
import datetime
import hashlib
import json
import logging
import os
from pathlib import Path

from jaxcls.data.listing import LeftOut, Listing, list_images
from jaxcls.system.caches import cache_dir
from jaxcls.system.errors import DataError
from jaxcls.system.names import printable
from jaxcls.system.whole_files import write_whole

logger = logging.getLogger("jaxcls")


def read_index(root: Path, *, reuse: bool = False) -> Listing:
    """Lists the images under a folder, and remembers the list.

    Args:
      root: the folder.
      reuse: take the list that was made last, if there is one, and say how old it is.

    Raises:
      DataError: the folder is missing, or something in it cannot be read.
    """
    if not root.is_dir():
        problem = "is a file" if root.exists() else "does not exist"
        raise DataError(f"data.source: folder {str(root)!r} {problem}; name a folder of images")
    memory = _memory_file(root)
    if reuse and (remembered := _recall(memory)):
        made, listing = remembered
        logger.warning(
            "%s: the list of its %s images was made on %s and may be out of date; "
            "--data.folder-index rebuild makes it anew",
            printable(str(root)),
            f"{len(listing.files):,}",
            f"{made:%Y-%m-%d at %H:%M:%S}",
        )
        return listing
    made = datetime.datetime.now().astimezone()  # a change while it is made is a change after it
    listing = list_images(root)
    for path, reason in listing.unreadable.items():
        raise DataError(
            f"data.source: {str(root / path)!r} cannot be read ({reason}); mend that, for example "
            f"its permissions, or move it out of the folder"
        )
    _remember(memory, made, listing)
    return listing


def _memory_file(root: Path) -> Path:
    name = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
    return cache_dir() / "folders" / f"{name}.json"


def _recall(memory: Path) -> tuple[datetime.datetime, Listing] | None:
    """A list, and when it was made; None if it is missing, cut short, or of another version."""
    try:
        values = json.loads(memory.read_text())
        listing = Listing(
            folders=tuple(values["folders"]),
            files=tuple(values["files"]),
            left_out={kind: LeftOut(**found) for kind, found in values["left_out"].items()},
            unreadable={},
        )
        return datetime.datetime.fromisoformat(values["made"]), listing
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _remember(memory: Path, made: datetime.datetime, listing: Listing) -> None:
    """Writes a list; where that is not possible, it is made again next time."""
    values = {"made": made.isoformat(timespec="seconds"), **dataclasses.asdict(listing)}
    with contextlib.suppress(OSError):
        memory.parent.mkdir(parents=True, exist_ok=True)
        write_whole(memory, json.dumps(values))
