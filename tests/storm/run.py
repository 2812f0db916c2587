"""A storm of faults over small trainings: nothing that was saved may be lost.

    python tests/storm/run.py [--fault NAME ...] [--trials N] [--seed S] [--minutes M]

Each trial injects one fault into a training of a tiny network, resumes it with the same command,
and compares the end with an undisturbed twin, bit for bit. At the end a table says which kinds of
faults survived, and for each failure what happened and the command that repeats it.
"""

import argparse
import concurrent.futures
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))  # for tests/ports.py

from faults import FAULTS, can_mount
from faults.fault import Fault
from trial import LostError, Storm, Trial


def main() -> int:
    """Runs the storm; returns 0 if everything survived."""
    options = _options()
    folder = Path(tempfile.mkdtemp(prefix="jaxcls-storm-"))
    storm = Storm(folder)
    ending_at = time.monotonic() + 60 * options.minutes
    wanted = options.fault or list(FAULTS)
    failed = {name: dict[int, str]() for name in wanted}
    done = dict.fromkeys(wanted, 0)
    notes = {name: missing(FAULTS[name], storm) for name in wanted}
    started = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:

        def attempt(name: str, number: int) -> tuple[str, int, str | None] | None:
            if time.monotonic() > ending_at:
                return None
            return name, number, run_trial(storm, name, number, seed=options.seed)

        trials = [pool.submit(attempt, name, number) for name, number in _order(options, notes)]
        for trial in concurrent.futures.as_completed(trials):
            if (result := trial.result()) is None:
                continue
            name, number, problem = result
            done[name] += 1
            if problem is not None:
                failed[name][number] = problem
                print(f"FAILED {name} {number}: {problem}", flush=True)
            elif sum(done.values()) % 20 == 0:
                print(f"{sum(done.values())} trials", flush=True)
    print("\n| fault | trials | survived | not tried, because it |\n|---|---|---|---|")
    for name in wanted:
        print(f"| {name} | {done[name]} | {done[name] - len(failed[name])} | {notes[name]} |")
    minutes = (time.monotonic() - started) / 60
    count, lost = sum(done.values()), sum(map(len, failed.values()))
    print(f"\n{count} trials of {len(wanted)} kinds, {lost} failed, {minutes:.0f} minutes")
    for name, problems in failed.items():
        for number, problem in problems.items():
            again = (
                f"python tests/storm/run.py --fault {name} --seed {options.seed} --only {number}"
            )
            print(f"\n{name}: {problem}\n  {again}")
    if lost:
        print(f"\nthe trials that failed are kept in {folder}")
    else:
        shutil.rmtree(folder)
    return 1 if lost else 0


def run_trial(storm: Storm, name: str, number: int, *, seed: int) -> str | None:
    """Runs one trial of a fault; returns what did not survive, or None."""
    fault, chance = FAULTS[name], random.Random(f"{seed}/{name}/{number}")
    trial = Trial(storm, storm.folder / f"{name}-{number}", chance, fault.shape)
    try:
        fault.inject(trial)
    except LostError as error:
        return str(error)
    except Exception as error:  # of the trial itself; the others go on
        return f"the trial failed: {error!r}"
    shutil.rmtree(trial.folder)
    return None


def missing(fault: Fault, storm: Storm) -> str:
    """What this machine lacks for a fault; empty if it lacks nothing."""
    have = {"": True, "compiler": storm.library is not None, "root": can_mount()}
    return "" if have[fault.needs] else f"needs {fault.needs}"


def _order(options: argparse.Namespace, notes: dict[str, str]) -> Iterator[tuple[str, int]]:
    """The trials: one of each kind in turn, so that a storm cut short has tried all kinds."""
    counts = {
        name: options.trials or FAULTS[name].trials for name, note in notes.items() if not note
    }
    if options.only is not None:
        yield from ((name, options.only) for name in counts)
        return
    for number in range(max(counts.values(), default=0)):
        yield from ((name, number) for name, count in counts.items() if number < count)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--fault", choices=sorted(FAULTS), action="append", help="only this kind")
    parser.add_argument("--trials", type=int, help="of each kind, instead of the kind's own number")
    parser.add_argument("--seed", type=int, default=0, help="decides all that is random")
    parser.add_argument("--only", type=int, help="only the trial with this number")
    parser.add_argument("--minutes", type=float, default=180, help="begin no trial after this time")
    parser.add_argument("--jobs", type=int, default=2, help="trials at a time")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
