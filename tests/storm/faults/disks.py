"""Disks that are full, read-only, broken for a while or gone."""

import dataclasses
import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from expect import require
from process import STATUS_MISTAKE, Disturbance, Process, require_done
from trial import FIRST_STEP, TWO, WRITES, Trial

from faults.fault import Fault

_SECONDS = 60.0  # within which a training ends whose saves fail
_SLOW = 30_000  # milliseconds by which calls are delayed, all together


def disk_full_for_good(trial: Trial) -> None:
    """From some call on, nothing of the run can be written: no space, no quota, an error, ..."""
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES, errno.ESTALE)
    _fail_for_good(trial, "/run/", trial.rng.choice(numbers))


def disk_full_in_a_save(trial: Trial) -> None:
    """From some call on, no checkpoint can be written."""
    _fail_for_good(trial, "/run/checkpoints", errno.ENOSPC)


def disk_full_for_a_while(trial: Trial) -> None:
    """A few calls fail in the middle of a training, which makes up for that and loses nothing."""
    where = Disturbance(path="/run/checkpoints", calls=WRITES, first=1)
    # Not in the first save, before which a directory must be made, and not in the last one.
    first = trial.rng.randint(15, trial.count(where) * 2 // 3)
    times = trial.rng.randint(1, 3)
    disturbed = Disturbance(
        path=where.path, calls=WRITES, first=first, errno=errno.ENOSPC, times=times
    )
    process = trial.start_one(disturbance=disturbed)
    status = process.wait(within=_SECONDS)
    trial.hit = process.was_disturbed()
    require(status == 0, f"calls {first} to {first + times - 1}: status {status}")
    trial.require_equal_to_twin()


def disk_slow(trial: Trial) -> None:
    """For a while each change of the run takes longer, as on a busy network disk."""
    where = Disturbance(path="/run/", first=1)
    victim = trial.number % trial.shape.processes
    calls = trial.count(where, victim=victim)
    delay = trial.rng.randint(50, 500)
    slow = dataclasses.replace(
        where, first=trial.rng.randint(1, calls), delay=delay, times=_SLOW // delay
    )
    processes = trial.start(disturbance=slow, victim=victim)
    require_done(processes)
    trial.hit = processes[victim].was_disturbed()
    trial.require_equal_to_twin()


def disk_really_full(trial: Trial) -> None:
    """A file system without room for another checkpoint."""
    _train_on_disk(trial, f"size={trial.rng.randint(60, 260)}k")


def no_inodes(trial: Trial) -> None:
    """A file system without room for another file."""
    _train_on_disk(trial, f"nr_inodes={trial.rng.randint(25, 60)}")


def disk_read_only(trial: Trial) -> None:
    """The run's directory becomes read-only in mid-run; files that are open stay writable."""
    process = trial.start_one()
    _wait_for_a_moment(trial, process)
    run = str(trial.run_dir)
    with _mounted("--bind", run, run):
        subprocess.run(["mount", "-o", "remount,bind,ro", run], check=True)
        trial.hit = not process.ended()
        _end_with_a_reason(trial, process)
    trial.finish_as_twin()


def run_moved_away(trial: Trial) -> None:
    """The run's directory is renamed in mid-run; nothing is made anew."""
    process, away = _train_and_rename(trial)
    _end_without_its_run(trial, process)
    require(not trial.run_dir.exists(), "the run was made anew")
    away.rename(trial.run_dir)
    trial.finish_as_twin()


def run_replaced(trial: Trial) -> None:
    """In mid-run there is an empty directory in place of the run's, which was renamed."""
    process, away = _train_and_rename(trial)
    trial.run_dir.mkdir()
    _end_without_its_run(trial, process)
    _require_empty(trial.run_dir)
    shutil.rmtree(trial.run_dir)
    away.rename(trial.run_dir)
    trial.finish_as_twin()


def run_unmounted(trial: Trial) -> None:
    """The file system of the run is unmounted in mid-run, and mounted again for the next start."""
    disk, run = trial.folder / "disk", trial.run_dir
    for folder in (disk, run):
        folder.mkdir()
    with _mounted("-t", "tmpfs", "tmpfs", str(disk)):
        with _mounted("--bind", str(disk), str(run)):
            process = trial.start_one()
            _wait_for_a_moment(trial, process)
        _end_without_its_run(trial, process)
        _require_empty(run)
        with _mounted("--bind", str(disk), str(run)):
            trial.finish_as_twin()


def _fail_for_good(trial: Trial, path: str, number: int) -> None:
    where = Disturbance(path=path, calls=WRITES, first=1)
    first = trial.rng.randint(1, trial.count(where))
    disturbed = Disturbance(path=path, calls=WRITES, first=first, errno=number)
    process = trial.start_one(disturbance=disturbed)
    _end_with_a_reason(trial, process, detail=f"call {first}, {errno.errorcode[number]}")
    trial.hit = process.was_disturbed()
    trial.finish_as_twin()


def _train_and_rename(trial: Trial) -> tuple[Process, Path]:
    """Renames the run's directory in mid-run; returns the process, and where the run is then."""
    process = trial.start_one()
    _wait_for_a_moment(trial, process)
    return process, trial.run_dir.rename(trial.folder / "away")


def _wait_for_a_moment(trial: Trial, process: Process) -> None:
    """Waits until the training has saved nothing, one step, or more."""
    process.wait_for(FIRST_STEP)
    step = trial.rng.choice((None, 4, 8, 12))
    process.wait_until(lambda: step is None or (trial.run_dir / f"checkpoints/{step}").exists())


def _end_with_a_reason(trial: Trial, process: Process, *, detail: str = "") -> None:
    """The training ends soon, and if it has not finished, the message names the run."""
    status = process.wait(within=_SECONDS)
    require(status in (0, STATUS_MISTAKE), f"{detail}: status {status}")
    if status:
        message = process.message()
        require(message, f"{detail}: no message")
        require(str(trial.run_dir) in message, f"{detail}: the run is not named: {message!r}")


def _end_without_its_run(trial: Trial, process: Process) -> None:
    """The training does not finish without its run, which the message names."""
    process.require_refusal(str(trial.run_dir), within=_SECONDS)


def _require_empty(folder: Path) -> None:
    """Nothing is in the folder but one save at most, which may have begun before."""
    written = sorted(path.name for path in folder.iterdir())
    require(written in ([], ["checkpoints"]), f"it wrote to a directory of others: {written}")
    saves = [path.name for path in folder.glob("checkpoints/*")]
    require(len(saves) <= 1, f"it saved to a directory of others: {saves}")


@contextmanager
def _mounted(*arguments: str) -> Iterator[None]:
    """Inside the `with`, what the arguments of `mount` say is mounted; the last is where."""
    subprocess.run(["mount", *arguments], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", arguments[-1]], check=True)


def _train_on_disk(trial: Trial, options: str) -> None:
    """Trains on a small file system, and resumes a copy of the run on a disk with room."""
    copy = trial.folder / "copy"
    trial.run_dir.mkdir()
    with _mounted("-t", "tmpfs", "-o", options, "tmpfs", str(trial.run_dir)):
        process = trial.start_one()
        _end_with_a_reason(trial, process)
        trial.hit = process.says("No space left on device")
        shutil.copytree(trial.run_dir, copy)
    trial.move_to(copy)
    trial.finish_as_twin()


def can_mount() -> bool:
    """Whether this process may mount file systems."""
    return os.geteuid() == 0 and shutil.which("mount") is not None


FAULTS = {
    "disk-full-for-good": Fault(inject=disk_full_for_good, trials=10, needs="compiler"),
    "disk-full-in-a-save": Fault(inject=disk_full_in_a_save, trials=10, needs="compiler"),
    "disk-full-for-a-while": Fault(inject=disk_full_for_a_while, trials=10, needs="compiler"),
    "disk-slow": Fault(inject=disk_slow, trials=8, needs="compiler"),
    "disk-slow-for-one-of-two": Fault(inject=disk_slow, trials=8, shape=TWO, needs="compiler"),
    "disk-really-full": Fault(inject=disk_really_full, trials=10, needs="root"),
    "no-inodes": Fault(inject=no_inodes, trials=5, needs="root"),
    "disk-read-only": Fault(inject=disk_read_only, trials=5, needs="root"),
    "run-moved-away": Fault(inject=run_moved_away, trials=5),
    "run-replaced": Fault(inject=run_replaced, trials=5),
    "run-unmounted": Fault(inject=run_unmounted, trials=5, needs="root"),
}
