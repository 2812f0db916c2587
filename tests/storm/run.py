"""A storm of faults over small trainings: nothing that was saved may be lost.

    python tests/storm/run.py [--fault NAME ...] [--trials N] [--seed S] [--minutes M] [--kept FILE]

Each trial injects one fault into a training of a tiny network, resumes it with the same command,
and compares the end with an undisturbed twin, bit for bit. At the end a table says which kinds of
faults survived, and for each failure what happened and the command that repeats it. With --kept, a
storm that was cut short goes on later: what survived is not tried again.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))  # for tests/ports.py

from attempt import Result, missing, run_trial
from faults import FAULTS
from trial import Storm


def main() -> int:
    """Runs the storm; returns 0 if everything survived."""
    options = _options()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    storm = Storm(Path(tempfile.mkdtemp(prefix="jaxcls-storm-")))
    notes = {name: missing(FAULTS[name], storm) for name in options.fault or FAULTS}
    started = time.monotonic()
    results = _survived(options)
    before = {(result.fault, result.number) for result in results}
    order = (trial for trial in _order(options, notes) if trial not in before)
    for result in _results(storm, order, options):
        results.append(result)
        _keep(result, options)
        if result.problem is not None:
            print(f"FAILED {result.fault} {result.number}: {result.problem}", flush=True)
        elif len(results) % 20 == 0:
            print(f"{len(results)} trials", flush=True)
    failed = [result for result in results if result.problem is not None]
    _print_table(results, notes)
    minutes = (time.monotonic() - started) / 60
    print(f"\n{len(results)} trials of {len(notes)} kinds, {len(failed)} failed, {minutes:.0f} min")
    _print_failures(failed, seed=options.seed)
    if failed:
        print(f"\nthe trials that failed are kept in {storm.folder}")
    else:
        shutil.rmtree(storm.folder)
    return 1 if failed else 0


def _survived(options: argparse.Namespace) -> list[Result]:
    """The trials of this seed and these kinds that survived in an earlier part of the storm."""
    if options.kept is None or not options.kept.is_file():
        return []
    lines = map(json.loads, options.kept.read_text().splitlines())
    results = [Result(**line["result"]) for line in lines if line["seed"] == options.seed]
    kinds = options.fault or FAULTS
    return [result for result in results if result.problem is None and result.fault in kinds]


def _keep(result: Result, options: argparse.Namespace) -> None:
    """Notes a trial for a later part of the storm."""
    if options.kept is not None:
        line = json.dumps({"seed": options.seed, "result": dataclasses.asdict(result)})
        with options.kept.open("a") as file:
            file.write(f"{line}\n")


def _order(options: argparse.Namespace, notes: Mapping[str, str]) -> Iterator[tuple[str, int]]:
    """The trials: one of each kind in turn, so that a storm cut short has tried all kinds."""
    counts = {
        name: options.trials or FAULTS[name].trials for name, note in notes.items() if not note
    }
    if options.only is not None:
        yield from ((name, options.only) for name in counts)
        return
    for number in range(max(counts.values(), default=0)):
        yield from ((name, number) for name, count in counts.items() if number < count)


def _results(
    storm: Storm, order: Iterator[tuple[str, int]], options: argparse.Namespace
) -> Iterator[Result]:
    """Runs the trials, some at a time, and begins none after the given time."""
    ending_at = time.monotonic() + 60 * options.minutes

    def attempt(name: str, number: int) -> Result | None:
        if time.monotonic() > ending_at:
            return None
        return run_trial(storm, name, number, seed=options.seed)

    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        trials = [pool.submit(attempt, name, number) for name, number in order]
        try:
            for trial in concurrent.futures.as_completed(trials):
                if (result := trial.result()) is not None:
                    yield result
        finally:
            storm.end()  # after Ctrl-C some trials still run
            pool.shutdown(cancel_futures=True)


def _print_table(results: Sequence[Result], notes: Mapping[str, str]) -> None:
    print("\n| fault | trials | survived | not tried, because it |\n|---|---|---|---|")
    for name, note in notes.items():
        problems = [result.problem for result in results if result.fault == name]
        print(f"| {name} | {len(problems)} | {problems.count(None)} | {note} |")


def _print_failures(failed: Sequence[Result], *, seed: int) -> None:
    """Prints what happened in each trial that failed, and the command that repeats it."""
    for result in failed:
        again = f"--fault {result.fault} --seed {seed} --only {result.number}"
        print(f"\n{result.fault}: {result.problem}\n  python tests/storm/run.py {again}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--fault", choices=sorted(FAULTS), action="append", help="only this kind")
    parser.add_argument("--trials", type=int, help="of each kind, instead of the kind's own number")
    parser.add_argument("--seed", type=int, default=0, help="decides all that is random")
    parser.add_argument("--only", type=int, help="only the trial with this number")
    parser.add_argument("--minutes", type=float, default=180, help="begin no trial after this time")
    parser.add_argument("--kept", type=Path, help="a file that keeps what became of the trials")
    parser.add_argument("--jobs", type=int, default=2, help="trials at a time")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
