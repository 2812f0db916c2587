"""What other users may do with the files and folders that this program writes."""

import os
import stat
from pathlib import Path


def restrict_umask() -> None:
    """From now on, nothing that this process or a child writes can be changed by every user.

    The umask of the user decides the rest, such as whether a group may change it.
    """
    os.umask(os.umask(0o077) | stat.S_IWOTH)


def make_private(folder: Path) -> None:
    """Creates a folder that only this user can read and write, and its missing parents.

    One that exists stays as it is.

    Raises:
      OSError: it cannot be created.
    """
    if not folder.is_dir():
        make_private(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
