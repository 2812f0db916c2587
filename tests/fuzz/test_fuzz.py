"""A few mutations for each reader, and a fuzzer that notices what must not happen."""

import collections
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from readers import READERS
from readers.reader import write_files

FUZZER = Path(__file__).with_name("run.py")

# A reader of numbers, each of which does something else.
FAKE = f"""
import ctypes, json, sys, time, warnings
sys.path[:0] = [{str(FUZZER.parent)!r}]
warnings.simplefilter("ignore")
import run
from readers.reader import Reader
run.WAITING = 3

def read(folder):
    number = int((folder / "number").read_text())
    if number == 1:
        raise ValueError("documented")
    if number == 2:
        raise KeyError("not documented")
    if number == 3:
        ctypes.string_at(0)
    if number == 4:
        while True:
            pass
    if number == 5:
        time.sleep(100)
    if number == 6:
        bytearray(2 << 30)
    if number == 7:
        raise ValueError("\\x1b]0;title\\x07")

for in_own_process in (False, True):
    reader = Reader(
        samples=[{{"number": b""}}],
        damage={{"number": lambda rng, data: b"%d" % rng.randrange(8)}},
        read=read, errors=(ValueError,), seconds=0.2, in_own_process=in_own_process,
    )
    outcome = run.fuzz("fake", reader, mutations=40, seed=0)
    print(json.dumps(vars(outcome)))
"""


def number_in(case: int) -> int:
    """What the fake reader is given as this mutation."""
    rng = random.Random(f"0/fake/{case}")
    for _ in range(2):  # the sample, and its file
        rng.choice([0])
    return rng.randrange(8)


@pytest.mark.parametrize("name", READERS)
def test_every_good_file_is_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    reader = READERS[name]()
    for number, files in enumerate(reader.samples):
        assert any(file in files for file in reader.damage)
        write_files(tmp_path / str(number), files)
        reader.read(tmp_path / str(number))


@pytest.mark.slow
def test_a_few_mutations_of_every_file() -> None:
    command = [sys.executable, FUZZER, "--mutations", "50"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines()[2:] if line.startswith("|")]
    assert [row[0].removeprefix("| ") for row in rows] == list(READERS)
    assert {row[1] for row in rows} == {"50"}


def test_what_must_not_happen_is_noticed_with_its_number() -> None:
    done = subprocess.run([sys.executable, "-c", FAKE], capture_output=True, text=True, check=True)
    together, alone = map(json.loads, done.stdout.splitlines())
    by_number: dict[int, list[int]] = collections.defaultdict(list)
    for case in range(40):
        by_number[number_in(case)].append(case)
    assert len(by_number) == 8
    failures = {
        "KeyError at ?: 'not documented'": by_number[2],
        "MemoryError at ?: ": by_number[6],
        "UnprintableError at ?": by_number[7],
    }
    deaths = {
        "dies by SIGSEGV": by_number[3],
        "computes too long": by_number[4],
        "waits too long": by_number[5],
    }
    results, errors = len(by_number[0]), len(by_number[1])
    assert together["failures"] == failures | deaths
    assert (together["results"], together["errors"], together["deaths"]) == (results, errors, {})
    died = sum(map(len, deaths.values()))
    assert (alone["results"], alone["errors"]) == (results, errors + died)
    assert (alone["failures"], alone["deaths"]) == (failures, deaths)


def test_a_case_needs_its_reader() -> None:
    command = [sys.executable, FUZZER, "--case", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--case needs --reader" in done.stderr
