"""Gives damaged and hostile files to the readers of jaxcls, and counts what becomes of them.

    python tests/fuzz/run.py [--reader NAME] [--mutations N] [--seed S] [--case K]

A mutation passes if the reader returns a result or raises an error that it documents, within limits
of memory and time. Mutation K of a reader depends on the seed and K alone; --reader NAME --case K
repeats it, and keeps its files.

The files are read in child processes, which write down the number of a mutation before they begin
with it. If one dies, another continues with the next mutation.
"""

import argparse
import collections
import dataclasses
import logging
import mmap
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Literal, NoReturn

sys.path.append(str(Path(__file__).resolve().parent.parent / "pretrained"))  # for torch_files.py

from readers import READERS
from readers.reader import Reader, UnprintableError, assert_printable, write_files

CASES = 20_000  # of one child
WAITING = 10  # a mutation may take this many times its seconds of computing, beside other programs
LATE = {"SIGPROF": "computes too long", "SIGALRM": "waits too long"}
_FIELDS = "next", "results", "errors", "failures"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a reader's mutations.

    Attributes:
      mutations: how many there were.
      results: how many gave a result.
      errors: how many gave an error that the reader documents.
      deaths: why a process that only reads died, and the numbers of the mutations; errors, too.
      failures: what else happened, and the numbers of the mutations.
      seconds: the time that all took.
    """

    mutations: int
    results: int
    errors: int
    deaths: dict[str, list[int]]
    failures: dict[str, list[int]]
    seconds: float


class Counters:
    """Numbers that a child and its parent share: the next mutation, and how many ended how."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 8 * len(_FIELDS))

    def __getitem__(self, field: str) -> int:
        return struct.unpack_from("<q", self._memory, 8 * _FIELDS.index(field))[0]

    def __setitem__(self, field: str, value: int) -> None:
        struct.pack_into("<q", self._memory, 8 * _FIELDS.index(field), value)


def main() -> int:
    """Runs the program; returns 0 if every mutation passed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--reader", choices=READERS, help="only this reader")
    parser.add_argument("--mutations", type=int, default=1000, help="of each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="repeat this mutation of --reader, and show it")
    options = parser.parse_args()
    if options.case is not None and options.reader is None:
        parser.error("--case needs --reader")
    # JAX warns of a fork, although nothing has started its threads.
    warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
    logging.disable()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache
        if options.case is not None:
            return show_case(options.reader, seed=options.seed, case=options.case)
        print("| reader | mutations | results | documented errors | failures | seconds |")
        print("|---|---|---|---|---|---|", flush=True)
        failed = False
        for name in [options.reader] if options.reader else READERS:
            outcome = fuzz(name, READERS[name](), mutations=options.mutations, seed=options.seed)
            print(describe(name, outcome, seed=options.seed), flush=True)
            failed = failed or bool(outcome.failures)
    return int(failed)


def fuzz(name: str, reader: Reader, *, mutations: int, seed: int) -> Outcome:
    """Gives damaged files to a reader, in child processes."""
    counters, begin = Counters(), time.perf_counter()
    failures: dict[str, list[int]] = collections.defaultdict(list)
    deaths: dict[str, list[int]] = collections.defaultdict(list)
    in_memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=in_memory) as scratch:
        report = Path(scratch, "failures")
        report.touch()
        while (start := counters["next"]) < mutations:
            cases = range(start, min(mutations, start + CASES))
            child = os.fork()
            if child == 0:
                read_in_child(name, reader, counters, Path(scratch), cases=cases, seed=seed)
            _, status = os.waitpid(child, 0)
            if status:
                kind = deaths if reader.in_own_process else failures
                kind[why_it_died(status)].append(counters["next"])
                counters["next"] += 1
        for line in report.read_text().splitlines():
            case, _, what = line.partition(" ")
            failures[what].append(int(case))
    return Outcome(
        mutations=mutations,
        results=counters["results"],
        errors=counters["errors"] + sum(map(len, deaths.values())),
        deaths=dict(deaths),
        failures=dict(failures),
        seconds=time.perf_counter() - begin,
    )


def read_in_child(
    name: str, reader: Reader, counters: Counters, scratch: Path, *, cases: range, seed: int
) -> NoReturn:
    """Reads damaged files, in a child that ends with this."""
    status = 1
    try:
        for stream in (1, 2):  # of which libraries complain
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        limit_memory(reader)
        for number in (signal.SIGALRM, signal.SIGPROF):
            signal.signal(number, signal.SIG_DFL)
        folder = scratch / f"files-{cases.start}"
        for case in cases:
            counters["next"] = case
            signal.setitimer(signal.ITIMER_PROF, reader.seconds)
            signal.setitimer(signal.ITIMER_REAL, WAITING * reader.seconds)
            outcome = read_case(name, reader, folder, case=case, seed=seed)
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            if isinstance(outcome, Exception):
                with (scratch / "failures").open("a") as file:
                    file.write(f"{case} {one_line(outcome)}\n")
                outcome = "failures"
            counters[outcome] += 1
        counters["next"] = cases.stop
        status = 0
    finally:
        os._exit(status)


def read_case(
    name: str, reader: Reader, folder: Path, *, case: int, seed: int
) -> Literal["results", "errors"] | Exception:
    """Makes a damaged file in a folder and reads it; returns how that ended."""
    rng = random.Random(f"{seed}/{name}/{case}")
    files = dict(rng.choice(reader.samples))
    damaged = rng.choice([name for name in reader.damage if name in files])
    files[damaged] = reader.damage[damaged](rng, files[damaged])
    shutil.rmtree(folder, ignore_errors=True)
    write_files(folder, files)
    try:
        reader.read(folder)
    except reader.errors as error:
        try:
            assert_printable(str(error))
        except UnprintableError as unprintable:
            return unprintable.with_traceback(error.__traceback__)
        return "errors"
    except Exception as error:
        return error
    return "results"


def show_case(name: str, *, case: int, seed: int) -> int:
    """Repeats one mutation in this process and keeps its files."""
    reader, folder = READERS[name](), Path(tempfile.mkdtemp())
    print(f"the files are in {folder}", flush=True)
    limit_memory(reader)
    outcome = read_case(name, reader, folder, case=case, seed=seed)
    if isinstance(outcome, Exception):
        traceback.print_exception(outcome)
        return 1
    print(outcome)
    return 0


def limit_memory(reader: Reader) -> None:
    """Limits this process to the reader's memory in addition to what it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + (reader.gigabytes << 30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def why_it_died(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    name = signal.Signals(-code).name if code < 0 else f"status {code}"
    return LATE.get(name, f"dies by {name}")


def one_line(error: Exception) -> str:
    """The type of an error, where it was raised, and the beginning of its text."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/jaxcls/" in f.filename]
    where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
    text = " ".join(str(error)[:60].encode("ascii", "backslashreplace").decode().split())
    said = "" if isinstance(error, UnprintableError) else f": {text}"
    return f"{type(error).__name__} at {where}{said}"


def describe(name: str, outcome: Outcome, *, seed: int) -> str:
    """A row of the table; lines on failures and on deaths, with a command that repeats one."""
    failures = sum(map(len, outcome.failures.values()))
    lines = [
        f"| {name} | {outcome.mutations:,} | {outcome.results:,} | {outcome.errors:,} | "
        f"{failures:,} | {outcome.seconds:.0f} |"
    ]
    for what, cases in [*outcome.failures.items(), *outcome.deaths.items()]:
        again = f"python tests/fuzz/run.py --reader {name} --seed {seed} --case {min(cases)}"
        lines.append(f"    {len(cases):,} x {what}\n        {again}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
