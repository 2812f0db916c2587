"""Finds changes of the data's content since a run began (`data.verify`)."""

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping

from jaxcls.data.content import Content, read_content
from jaxcls.distributed.agree import is_main_process, require_same, shared_errors
from jaxcls.distributed.watchdog import STARTING, VERIFYING, Watchdog
from jaxcls.runs.data_digests import (
    DIGESTS_FILE,
    describe_changes,
    digest_of_all,
    record_digests,
    recorded_digests,
)
from jaxcls.runs.directory import RunError
from jaxcls.system.paths import RunPath
from jaxcls.training.experiment import Experiment

_LONG_SECONDS = 10.0  # after which the user is told what takes so long

logger = logging.getLogger("jaxcls")


@dataclasses.dataclass(frozen=True, kw_only=True)
class VerifiedData:
    """The content of the data, compared with what the run recorded.

    Attributes:
      message: tells the user what was read and found; empty without `data.verify`.
      changes: how the content has changed since the run recorded it, as text.
      to_record: the digests that the run must record; None if it has recorded them.
    """

    message: str = ""
    changes: tuple[str, ...] = ()
    to_record: Mapping[str, str] | None = None

    def record(self, run: RunPath) -> None:
        """Writes the digests, if they are not recorded yet. Call it in one process only.

        Raises:
          RunError: the directory cannot be written.
        """
        if self.to_record is not None:
            record_digests(run, self.to_record)


def verify_data(
    experiment: Experiment, run: RunPath, *, allow_changes: bool, watchdog: Watchdog
) -> VerifiedData:
    """With `data.verify`, reads all files of both splits and compares their content.

    All processes must call it together. Each reads all files, because each may have its own disk.

    Args:
      experiment: the two splits.
      run: the directory of the run, which may have recorded digests (`data_digests`).
      allow_changes: whether the content may differ from what is recorded.
      watchdog: is notified of the progress.

    Raises:
      DataError: a file cannot be read.
      RunError: the content has changed and `allow_changes` is not set, or the record is damaged.
      JobError: the content differs between the processes.
    """
    if not experiment.config.data.verify:
        return VerifiedData()
    with shared_errors():
        content = _read(experiment, watchdog)
        recorded = recorded_digests(run)
        changes = [] if recorded is None else describe_changes(recorded, content.digests)
        if changes and not allow_changes:
            raise RunError(
                f"the data have changed since run {str(run)!r} recorded them:\n  "
                + "\n  ".join(changes)
                + "\nmake the data as they were, use another --workdir, or give --allow-changes to "
                "resume with the data as they are now"
            )
    require_same(
        {"the content of the data": digest_of_all(content.digests)},
        remedy="compare the folders of the data on these machines, with sha256sum for example",
    )
    if recorded is not None:
        found = (
            f"their content has changed; {DIGESTS_FILE} has the new digests from now on"
            if changes
            else f"their content is that of {DIGESTS_FILE}"
        )
    elif experiment.recorded is not None:
        found = f"the run had no digests to compare; they are in {DIGESTS_FILE} from now on"
    else:
        found = f"their digests are recorded in {DIGESTS_FILE}"
    return VerifiedData(
        message=f"data.verify: read {content}; {found}",
        changes=tuple(changes),
        to_record=content.digests if changes or recorded is None else None,
    )


def _read(experiment: Experiment, watchdog: Watchdog) -> Content:
    files = {**experiment.source.stored_files(), **experiment.eval_source.stored_files()}
    tell = _telling_once(f"data.verify: reading all {len(files):,} files of the data")

    def note_progress() -> None:
        watchdog.note_progress(0, VERIFYING)
        tell()

    content = read_content(files, note_progress=note_progress)
    watchdog.note_progress(0, STARTING)
    return content


def _telling_once(message: str) -> Callable[[], None]:
    """A function that warns once, if it is called when something takes long."""
    told, begin = not is_main_process(), time.monotonic()

    def tell() -> None:
        nonlocal told
        if not told and time.monotonic() - begin > _LONG_SECONDS:
            told = True
            logger.warning("%s", message)

    return tell
