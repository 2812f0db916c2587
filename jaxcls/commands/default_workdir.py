"""The folder of a run, if the user gives no --workdir."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxcls.commands.common import record_of
from jaxcls.config import Config, changed_fields
from jaxcls.config.diff import assignments
from jaxcls.system.file_names import printable

MAX_NAME_LENGTH = 100  # of a folder, in characters; file systems allow 255 bytes


def default_workdir(name: str, pairs: Iterable[tuple[Config, Config]]) -> str:
    """The default folder for CONFIG: CONFIG itself if it is a run, or runs/FILE with the changes.

    Args:
      name: CONFIG, as the user wrote it.
      pairs: the configs in CONFIG, each with the config after the changes of the command line.
    """
    if (record := record_of(name)) is not None:
        from jaxcls.runs.directory import recorded_run

        if (run := recorded_run(record)) is not None:
            return str(run)
        name = str(record.parent if record.name == "config.json" else record)
    changes = {
        field: after
        for written, config in pairs
        for field, (_, after) in changed_fields(written, config).items()
    }
    return str(Path("runs") / folder_name(printable(Path(name).stem).replace("\\", "_"), changes))


def folder_name(stem: str, changes: Mapping[str, Any]) -> str:
    """A name of a folder that says what was changed, such as digits-learning_rate=0.05-seed=1.

    A longer name is cut and ends in a digest of the whole name.
    """
    whole = "-".join([stem, *(re.sub(r"[^\w.,=+-]+", "_", text) for text in assignments(changes))])
    if len(whole) <= MAX_NAME_LENGTH:
        return whole
    return f"{whole[: MAX_NAME_LENGTH - 9]}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"
