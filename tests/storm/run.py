"""A storm of faults over small trainings: nothing that was saved may be lost.

    python tests/storm/run.py [--fault NAME ...] [--trials N] [--seed S] [--minutes M]
        [--results FILE] [--jobs J]

Each trial injects one fault into a training of a tiny network, resumes it with the same command,
and compares the end with an undisturbed twin, bit for bit. Some faults can miss, for example a
signal that comes after the end; such a trial is counted as "not hit" and not as passed. At the end
a table counts the trials of each kind of fault. For each that failed it prints what happened and
the command that repeats it. With --results, a storm that was cut short continues later: what did
not fail is not tried again, also if jaxcls has changed; the end says how many trials were of which
sources.

The status is 0 if no trial has failed. It is also 0 if not all were tried, because the minutes ran
out or this machine lacks what some kinds need; the end says so.
"""

import argparse
import collections
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

from attempt import Result, digest_of_sources, missing, run_trial
from faults import FAULTS
from trial import Storm


def main() -> int:
    """Runs the storm; returns 0 if no trial has failed."""
    options = _options()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    storm = Storm(Path(tempfile.mkdtemp(prefix="jaxcls-storm-")))
    skipped = {name: missing(FAULTS[name], storm) for name in options.fault or FAULTS}
    started = time.monotonic()
    order = list(_order(options, skipped))
    results = [result for result in _earlier(options) if (result.fault, result.number) in order]
    done = {(result.fault, result.number) for result in results}
    for result in _results(storm, [trial for trial in order if trial not in done], options):
        results.append(result)
        _keep(result, options)
        if result.problem is not None:
            print(f"FAILED {result.fault} {result.number}: {result.problem}", flush=True)
        elif len(results) % 20 == 0:
            print(f"{len(results)} of {len(order)} trials", flush=True)
    failed = [result for result in results if result.problem is not None]
    _print_table(results, skipped)
    minutes = (time.monotonic() - started) / 60
    print(f"\n{len(results)} of {len(order)} trials tried, {len(failed)} failed, {minutes:.0f} min")
    _print_skipped(skipped)
    _print_sources(results)
    _print_failures(failed)
    if failed:
        print(f"\nthe trials that failed are kept in {storm.folder}")
    else:
        shutil.rmtree(storm.folder)
    return 1 if failed else 0


def _earlier(options: argparse.Namespace) -> list[Result]:
    """The trials of this seed that did not fail in an earlier part of the storm."""
    if options.results is None or not options.results.is_file():
        return []
    lines = options.results.read_text().splitlines()
    results = [Result(**json.loads(line)) for line in lines]
    return [result for result in results if result.problem is None and result.seed == options.seed]


def _keep(result: Result, options: argparse.Namespace) -> None:
    """Adds a trial to the file of results."""
    if options.results is not None:
        with options.results.open("a") as file:
            file.write(f"{json.dumps(dataclasses.asdict(result))}\n")


def _order(options: argparse.Namespace, skipped: Mapping[str, str]) -> Iterator[tuple[str, int]]:
    """The trials: one of each kind in turn, so that a storm cut short has tried all kinds."""
    counts = {
        name: options.trials or FAULTS[name].trials for name, why in skipped.items() if not why
    }
    if options.trial is not None:
        yield from ((name, options.trial) for name in counts)
        return
    for number in range(max(counts.values(), default=0)):
        yield from ((name, number) for name, count in counts.items() if number < count)


def _results(
    storm: Storm, order: Sequence[tuple[str, int]], options: argparse.Namespace
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


def _print_table(results: Sequence[Result], skipped: Mapping[str, str]) -> None:
    print("\n| fault | trials | passed | not hit | failed | skipped |\n|---|---|---|---|---|---|")
    for name, why in skipped.items():
        mine = [result for result in results if result.fault == name]
        failed = sum(result.problem is not None for result in mine)
        missed = sum(result.problem is None and not result.hit for result in mine)
        passed = len(mine) - failed - missed
        print(f"| {name} | {len(mine)} | {passed} | {missed} | {failed} | {why} |")


def _print_skipped(skipped: Mapping[str, str]) -> None:
    """Prints which kinds this machine cannot try."""
    names = [f"{name} ({why})" for name, why in skipped.items() if why]
    if names:
        print(f"{len(names)} of {len(skipped)} kinds skipped: {', '.join(names)}")


def _print_sources(results: Sequence[Result]) -> None:
    """Prints how many trials were of which sources of jaxcls."""
    now = digest_of_sources()
    for sources, count in collections.Counter(result.sources for result in results).items():
        note = "as they are now" if sources == now else "which have changed since"
        print(f"of sources {sources}, {note}: {count}")


def _print_failures(failed: Sequence[Result]) -> None:
    """Prints what happened in each trial that failed, and the command that repeats it."""
    for result in failed:
        again = f"--fault {result.fault} --seed {result.seed} --trial {result.number}"
        print(f"\n{result.fault}: {result.problem}\n  python tests/storm/run.py {again}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--fault", choices=sorted(FAULTS), action="append", help="only this kind")
    parser.add_argument("--trials", type=int, help="of each kind, instead of the kind's own number")
    parser.add_argument("--seed", type=int, default=0, help="decides all that is random")
    parser.add_argument("--trial", type=int, help="only the trial with this number")
    parser.add_argument("--minutes", type=float, default=180, help="begin no trial after this time")
    parser.add_argument("--results", type=Path, help="a file to which the results are added")
    parser.add_argument("--jobs", type=int, default=2, help="trials at a time")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
