"""Links to folders whose names have wildcards, such as run[1], for libraries that expand those."""

import contextlib
import glob
import hashlib
import os
from pathlib import Path

from jaxcls.system.caches import ensure_writable, possible_cache_dirs


def has_wildcards(name: str) -> bool:
    """Whether a name is also a pattern of other names."""
    return glob.escape(name) != name


def link_without_wildcards(folder: str) -> Path:
    """Returns a link to a folder; creates it if necessary.

    Its name depends on the folder and the user alone, so that all processes of a job use the same
    one.

    Raises:
      OSError: it cannot be created.
    """
    places = [place for place in reversed(possible_cache_dirs()) if not has_wildcards(str(place))]
    place = next(filter(ensure_writable, places), None)
    if place is None:
        raise OSError(f"there is no place for a link to {folder}; set TMPDIR to a writable folder")
    link = place / hashlib.sha256(os.fsencode(folder)).hexdigest()
    with contextlib.suppress(FileExistsError):
        link.symlink_to(folder)
    return link
