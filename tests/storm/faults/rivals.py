"""Several trainings that are started in one directory: one of them trains."""

import signal
import time

from expect import require
from process import STATUS_MISTAKE, Process
from trial import FIRST_STEP, TWO, Trial

from faults.fault import Fault


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
    "two-jobs-started-together": Fault(inject=started_together, trials=20, shape=TWO),
    "started-later": Fault(inject=started_later, trials=5),
    "started-beside-a-stopped-one": Fault(inject=started_beside_a_stopped_one, trials=5),
}
