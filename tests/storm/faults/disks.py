"""Disks that are full, read-only, broken for a while or gone."""

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trial import STATUS_MISTAKE, Disturbance, Process, Trial, require

from faults.fault import Fault

_WRITES = "open,write,sync,rename,mkdir"
_SECONDS = 60.0  # within which a training ends whose saves fail


def disk_full_for_good(trial: Trial) -> None:
    """From some call on, nothing of the run can be written: no space, no quota, an error, ..."""
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES, errno.ESTALE)
    _fail_for_good(trial, "/run/", trial.chance.choice(numbers))


def disk_full_in_a_save(trial: Trial) -> None:
    """From some call on, no checkpoint can be written."""
    _fail_for_good(trial, "/run/checkpoints", errno.ENOSPC)


def disk_full_for_a_while(trial: Trial) -> None:
    """A few calls fail in the middle of a training, which makes up for that and loses nothing."""
    where = Disturbance(path="/run/checkpoints", calls=_WRITES, first=1)
    # Not in the first save, before which a directory must be made, and not in the last one.
    first = trial.chance.randint(15, trial.storm.count(where) * 2 // 3)
    times = trial.chance.randint(1, 3)
    disturbed = Disturbance(
        path=where.path, calls=_WRITES, first=first, errno=errno.ENOSPC, times=times
    )
    process = trial.start_one(disturbance=disturbed)
    status = process.wait(within=_SECONDS)
    require(status == 0, f"calls {first} to {first + times - 1}: status {status}")
    trial.require_twin()


def disk_really_full(trial: Trial) -> None:
    """A file system without room for another checkpoint."""
    with _file_system(trial, f"size={trial.chance.randint(60, 260)}k"):
        _end_with_a_reason(trial, trial.start_one())
        _finish_elsewhere(trial)


def no_inodes(trial: Trial) -> None:
    """A file system without room for another file."""
    with _file_system(trial, f"nr_inodes={trial.chance.randint(25, 60)}"):
        _end_with_a_reason(trial, trial.start_one())
        _finish_elsewhere(trial)


def run_moved_away(trial: Trial) -> None:
    """The run's directory is renamed in mid-run, as if it were unmounted; nothing is made anew."""
    process = trial.start_one()
    process.wait_until(lambda: process.says("took the first step"))
    away = trial.folder / "away"
    trial.run.rename(away)
    status = process.wait(within=_SECONDS)
    if status:
        require(status in (1, STATUS_MISTAKE), f"status {status}")
        require(process.says(str(trial.run)), "the message does not name the run")
    require(not trial.run.exists(), "the run was made anew")
    away.rename(trial.run)
    trial.finish()
    trial.require_twin()


def _fail_for_good(trial: Trial, path: str, number: int) -> None:
    where = Disturbance(path=path, calls=_WRITES, first=1)
    first = trial.chance.randint(1, trial.storm.count(where))
    disturbed = Disturbance(path=path, calls=_WRITES, first=first, errno=number)
    process = trial.start_one(disturbance=disturbed)
    _end_with_a_reason(trial, process, detail=f"call {first}, {errno.errorcode[number]}")
    trial.finish()
    trial.require_twin()


def _end_with_a_reason(trial: Trial, process: Process, *, detail: str = "") -> None:
    status = process.wait(within=_SECONDS)
    require(status in (0, STATUS_MISTAKE), f"{detail}: status {status}")
    if status:
        last = process.text().strip().splitlines()[-1]
        require(last.startswith("jaxcls: "), f"{detail}: the last line is {last!r}")
        require(str(trial.run) in last, f"{detail}: the last line does not name the run: {last!r}")


@contextmanager
def _file_system(trial: Trial, options: str) -> Iterator[Path]:
    trial.run.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(trial.run)]
    subprocess.run(mount, check=True)
    try:
        yield trial.run
    finally:
        subprocess.run(["umount", "--lazy", str(trial.run)], check=False)


def _finish_elsewhere(trial: Trial) -> None:
    """Resumes a copy of the run on a disk with room."""
    copy = trial.folder / "copy"
    shutil.copytree(trial.run, copy)
    mounted, trial.run = trial.run, copy
    trial.finish()
    trial.require_twin()
    trial.run = mounted


def can_mount() -> bool:
    """Whether this process may mount file systems."""
    return os.geteuid() == 0 and shutil.which("mount") is not None


FAULTS = {
    "disk-full-for-good": Fault(inject=disk_full_for_good, trials=60, needs="compiler"),
    "disk-full-in-a-save": Fault(inject=disk_full_in_a_save, trials=40, needs="compiler"),
    "disk-full-for-a-while": Fault(inject=disk_full_for_a_while, trials=30, needs="compiler"),
    "disk-really-full": Fault(inject=disk_really_full, trials=20, needs="root"),
    "no-inodes": Fault(inject=no_inodes, trials=10, needs="root"),
    "run-moved-away": Fault(inject=run_moved_away, trials=10),
}
