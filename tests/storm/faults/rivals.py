"""Several trainings that are started in one directory: one of them trains."""

import shutil
import signal
import time

from expect import require
from process import STATUS_MISTAKE, Process, require_done
from trial import FIRST_STEP, TWO, Trial

from faults.fault import Fault

_SECONDS = 60.0  # within which a training ends whose run is another's


def started_together(trial: Trial) -> None:
    """Two or three trainings begin at the same time, a new run or one that was stopped."""
    if trial.number % 2:
        trial.begin_at(8)
    jobs = [trial.start() for _ in range(2 + trial.number // 2 % 2)]
    trial.hit = _require_one_winner(jobs)
    trial.require_equal_to_twin()


def started_later(trial: Trial) -> None:
    """A second training begins while the first one trains, and is refused."""
    (first,) = trial.start()
    first.wait_for(FIRST_STEP)
    time.sleep(trial.rng.uniform(0, 1))
    trial.hit = _require_one_winner([[first], trial.start()])
    trial.require_equal_to_twin()


def started_beside_a_stopped_one(trial: Trial) -> None:
    """The first training is suspended, as by Ctrl-Z, when the second begins, and then goes on."""
    (first,) = trial.start()
    first.wait_for(FIRST_STEP)
    first.send(signal.SIGSTOP)
    (second,) = trial.start()
    second.require_refusal(f"process {first.pid}")
    first.send(signal.SIGCONT)
    require(first.wait() == 0, "the first training failed")
    trial.require_equal_to_twin()


def began_in_its_place(trial: Trial) -> None:
    """While a training is suspended, its directory is moved or deleted, and another begins there.

    The first one writes nothing more. If its directory was moved, it is resumed there.
    """
    if trial.number % 2:
        trial.begin_at(8)
    away = trial.folder / "away"
    first = trial.start_one()
    first.wait_for(FIRST_STEP)
    time.sleep(trial.rng.uniform(0, 0.5))
    first.send(signal.SIGSTOP)
    if trial.number // 2 % 2:
        shutil.rmtree(trial.run_dir)
    else:
        trial.run_dir.rename(away)
    second = trial.start_one()
    begun = trial.rng.choice((FIRST_STEP, "training: ", "step 8/"))
    require(second.wait_for(begun), f"{second.output}: it has not begun")
    trial.hit = first.send(signal.SIGCONT)
    status = first.wait(within=_SECONDS)
    require(status in (1, STATUS_MISTAKE), f"{first.output}: status {status}")
    require(str(trial.run_dir) in first.message(), f"{first.output}: the run is not named")
    require_done([second])
    trial.require_equal_to_twin()
    if away.exists():
        trial.move_to(away)
        trial.finish_as_twin()


def _require_one_winner(jobs: list[list[Process]]) -> bool:
    """One job trains, and the others end with 2 and name its main process.

    Returns:
      Whether one was refused; a job that looks at the run only after the other has finished it ends
      with 0, too.
    """
    refused = False
    statuses = [[process.wait() for process in job] for job in jobs]
    winners = [job for job in jobs if job[0].says(FIRST_STEP)]
    require(len(winners) == 1, f"{len(winners)} trainings trained: {statuses}")
    for job, ended in zip(jobs, statuses, strict=True):
        detail = f"{job[0].output}: statuses {ended}"
        if job in winners or job[0].says("finished already"):
            require(not any(ended), detail)
            continue
        require(set(ended) == {STATUS_MISTAKE}, detail)
        who = f"already being trained, by process {winners[0][0].pid}"
        require(any(who in process.message() for process in job), f"{detail}: not {who!r}")
        refused = True
    return refused


FAULTS = {
    "started-together": Fault(inject=started_together, trials=10),
    "two-jobs-started-together": Fault(inject=started_together, trials=10, shape=TWO),
    "started-later": Fault(inject=started_later, trials=5),
    "began-in-its-place": Fault(inject=began_in_its_place, trials=10),
    "started-beside-a-stopped-one": Fault(inject=started_beside_a_stopped_one, trials=5),
}
