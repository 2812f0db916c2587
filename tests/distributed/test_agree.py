"""Agreement between two real processes, and in a process alone."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from ports import free_address

from jaxcls.distributed.agree import (
    announce,
    announced,
    by_main_process,
    exchange,
    first_problem,
    is_main_process,
    require_same,
    shared_errors,
)
from jaxcls.distributed.job import JobError
from jaxcls.runs.directory import require_shared
from jaxcls.system.errors import UserError

JOB = """
import json, os, pathlib, sys
from jaxcls.distributed.job import JobOptions, join, leave
address, process, folder = sys.argv[1:]
process = int(process)
join(JobOptions(coordinator=address, num_processes=2, process_id=process), stops=False)
from jaxcls.distributed.agree import announce, announced, by_main_process, exchange, first_problem
from jaxcls.distributed.agree import require_same, shared_errors
from jaxcls.system.errors import UserError
from jaxcls.runs.directory import require_shared
said = {}

def attempt(name, act):
    try:
        said[name] = act()
    except UserError as error:
        said[name] = str(error)

def fail_in(number):
    with shared_errors():
        if process == number:
            raise UserError("the disk is full")

def fail_first():
    raise UserError("only process 0 may")

said["before"] = announced("a failure")
exchange("both have asked")
if process:
    announce("a failure")
exchange("process 1 has announced it")
said["after"] = [announced("a failure"), announced("a"), announced("another failure")]
attempt("exchange", lambda: exchange(f"from {process}"))
attempt("problem", lambda: first_problem("damaged" if process else None))
attempt("none", lambda: first_problem(None))
attempt("together", lambda: fail_in(1))
attempt("first", lambda: by_main_process(fail_first))
attempt("same", lambda: require_same({"version": 1, "rate": 0.1 * (1 + process)}))
attempt("agree", lambda: require_same({"version": 1}))
attempt("shared", lambda: require_shared(pathlib.Path(folder)))
attempt("own", lambda: require_shared(pathlib.Path(folder) / str(process)))
pathlib.Path(folder, f"{process}.json").write_text(json.dumps(said))
sys.exit(leave(0))
"""


WAIT = """
import sys, time
from jaxcls.distributed.job import JobOptions, join
address, process, stops = sys.argv[1:]
place = JobOptions(coordinator=address, num_processes=2, process_id=int(process))
join(place, stops=stops == "stops")
print("joined", flush=True)
time.sleep(120)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "stops"),
    [(signal.SIGTERM, "stops"), (signal.SIGINT, "stops"), (signal.SIGTERM, "no stops")],
)
def test_a_signal_ends_a_process_unless_its_command_has_stops(
    number: signal.Signals, stops: str
) -> None:
    address = free_address()
    job = [
        subprocess.Popen(
            [sys.executable, "-c", WAIT, address, process, stops],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for process in "01"
    ]
    try:
        for process in job:
            assert process.stdout is not None
            assert process.stdout.readline() == "joined\n"
        job[1].send_signal(number)
        if stops == "stops":
            with pytest.raises(subprocess.TimeoutExpired):
                job[1].wait(3)
        else:
            assert job[1].wait(10) == -signal.SIGTERM
    finally:
        for process in job:
            process.kill()
            process.communicate()


@pytest.mark.slow
def test_two_processes_agree(tmp_path: Path) -> None:
    address = free_address()
    for process in "01":
        (tmp_path / process).mkdir()
    job = [
        subprocess.Popen(
            [sys.executable, "-c", JOB, address, process, str(tmp_path)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in "01"
    ]
    errors = [process.communicate(timeout=120)[1] for process in job]
    assert [process.returncode for process in job] == [0, 0], errors
    first, second = (json.loads((tmp_path / f"{process}.json").read_text()) for process in "01")
    for said in (first, second):
        assert (said["before"], said["after"]) == (False, [True, False, False])
        assert said["exchange"] == ["from 0", "from 1"]
        assert said["problem"] == "damaged"
        assert said["none"] is None
        assert "rate: 0.1 in process 0, 0.2 in process 1" in said["same"]
        assert said["agree"] is None
        assert said["shared"] is None
        assert "is not the one that process 0 writes to" in said["own"]
    assert (first["together"], second["together"]) == (
        "process 1: the disk is full",
        "the disk is full",
    )
    assert (first["first"], second["first"]) == (
        "only process 0 may",
        "process 0: only process 0 may",
    )
    assert not list(tmp_path.rglob(".shared.*"))


def test_a_process_alone_agrees_with_itself(tmp_path: Path) -> None:
    assert is_main_process()
    assert exchange("text") == ["text"]
    announce("a failure")
    assert not announced("a failure")
    assert first_problem(None) is None
    assert first_problem("damaged") == "damaged"
    require_same({"version": 1})
    require_shared(tmp_path)
    assert not list(tmp_path.iterdir())
    done = []
    by_main_process(lambda: done.append(1))
    assert done == [1]
    with pytest.raises(UserError, match="full"), shared_errors():
        raise UserError("full")


def test_a_disk_that_others_do_not_see_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaxcls.runs.directory.is_main_process", lambda: False)  # nobody writes
    monkeypatch.setattr("jaxcls.runs.directory.time.sleep", lambda _: None)
    with pytest.raises(JobError, match="give all processes the same --workdir"):
        require_shared(tmp_path)
