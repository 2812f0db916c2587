"""The index of a folder: the list of its images, saved for later starts.

Nothing that is cheap to check tells whether a saved index is out of date: tar, rsync, cp -a and
unzip set back the time of a folder, and on some network and FUSE disks neither that time nor ctime
nor inode numbers change. So the folder is listed at every start, unless the user chooses to reuse
the index. For 100,000 files on a local disk, listing takes 0.4 s (looking at each file would take
four times as long) and reading the index 0.02 s.

An index holds names only, so replacing a file by another of the same name needs no new one.
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
from jaxcls.system.caches import make_cache_dir
from jaxcls.system.errors import DataError
from jaxcls.system.file_names import printable
from jaxcls.system.json_text import parse_json
from jaxcls.system.permissions import make_private
from jaxcls.system.whole_files import write_whole

logger = logging.getLogger("jaxcls")


def index_folder(root: Path, *, reuse: bool = False) -> Listing:
    """Lists the images under a folder, and saves the list as its index.

    Args:
      root: the folder.
      reuse: take the saved index if there is one, and warn how old it is.

    Raises:
      DataError: the folder is missing, or something in it cannot be read.
    """
    if not root.is_dir():
        problem = "is a file" if root.exists() else "does not exist"
        raise DataError(f"data.source: folder {str(root)!r} {problem}; name a folder of images")
    index = _index_file(root)
    if reuse and (saved := _read(index)):
        made, listing = saved
        logger.warning(
            "%s: the list of its %s images was made on %s and may be out of date; "
            "--data.folder-index rebuild makes a new one",
            printable(str(root)),
            f"{len(listing.files):,}",
            f"{made:%Y-%m-%d at %H:%M:%S}",
        )
        return listing
    made = datetime.datetime.now().astimezone()  # before listing: later changes may be missing
    listing = list_images(root)
    for path, reason in listing.unreadable.items():
        raise DataError(
            f"data.source: {str(root / path)!r} cannot be read ({reason}); fix that, for example "
            f"its permissions, or move it out of the folder"
        )
    _write(index, made, listing)
    return listing


def _index_file(root: Path) -> Path:
    name = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
    return make_cache_dir() / "folders" / f"{name}.json"


def _read(index: Path) -> tuple[datetime.datetime, Listing] | None:
    """Returns when an index was made, and its list; None if it is missing or cannot be used."""
    try:
        values = parse_json(index.read_text())
        listing = Listing(
            folders=tuple(values["folders"]),
            files=tuple(values["files"]),
            left_out={kind: LeftOut(**found) for kind, found in values["left_out"].items()},
            unreadable={},
        )
        if not _is_listing(listing):
            return None
        return datetime.datetime.fromisoformat(values["made"]), listing
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _is_listing(listing: Listing) -> bool:
    """Whether a list from a file is one that `list_images` can return."""
    found = listing.left_out
    texts = [*listing.folders, *listing.files, *(left.example for left in found.values())]
    try:
        os.fsencode("".join(texts))  # not a surrogate that stands for no byte
    except (TypeError, UnicodeEncodeError):
        return False
    folders = {"", *listing.folders}
    return all(isinstance(left.count, int) for left in found.values()) and all(
        path.strip("/") == path != "" and path.rpartition("/")[0] in folders
        for path in (*listing.folders, *listing.files)
    )


def _write(index: Path, made: datetime.datetime, listing: Listing) -> None:
    """Saves a list. If that fails, the next start makes it again."""
    values = {"made": made.isoformat(timespec="seconds"), **dataclasses.asdict(listing)}
    with contextlib.suppress(OSError):
        make_private(index.parent)
        write_whole(index, json.dumps(values))
