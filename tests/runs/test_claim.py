import dataclasses
import itertools
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxcls.runs import claim
from jaxcls.runs.claim import Claim, Writer, last_writer, writer_status
from jaxcls.runs.directory import RunError, RunLostError
from jaxcls.system.whole_files import create_whole, write_whole

ELSEWHERE = "another-host 1234 pid:[5678]"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "RENEW_SECONDS", 0.05)
    monkeypatch.setattr(claim, "LEASE_SECONDS", 1.0)


def claim_of(run: Path) -> Claim:
    return Claim(run, on_lost=lambda: None)


def leave_claim(run: Path, *, number: int = 1, **changes: object) -> Writer:
    """What a writer leaves that did not end by itself; by default one that lives: this process."""
    writer = dataclasses.replace(claim._this_process(run), **changes)  # type: ignore[arg-type]
    write_whole(run / f"writer.{number}.json", json.dumps(dataclasses.asdict(writer)))
    return writer


def names(run: Path) -> list[str]:
    return sorted(path.name for path in run.iterdir())


@pytest.fixture
def other_process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def claim_of_process(run: Path, process: int) -> Writer:
    return leave_claim(run, process=process, started=claim._start_of(process), token="theirs")


def test_a_second_writer_is_refused_and_told_who_the_first_is(tmp_path: Path) -> None:
    with claim_of(tmp_path):
        first = last_writer(tmp_path)
        assert first is not None
        with pytest.raises(RunError) as refused, claim_of(tmp_path):
            pass
        assert last_writer(tmp_path) is not None
        assert writer_status(first, tmp_path) == "running"
    assert str(refused.value) == (
        f"run {str(tmp_path)!r} is already being trained, by process {os.getpid()} on "
        f"{first.host} (started {first.since}); wait for its end, stop it (kill "
        f"{os.getpid()}), or use another --workdir"
    )


def test_who_has_ended_is_followed_and_one_claim_remains(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        with claim_of(tmp_path) as claimed:
            assert claimed.message == ""
        assert names(tmp_path) == [f"writer.{number}.json"]
        writer = last_writer(tmp_path)
        assert writer is not None
        assert writer.ended is not None


def test_a_failure_and_an_interrupt_give_the_run_back(tmp_path: Path) -> None:
    for kind in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(kind), claim_of(tmp_path):
            raise kind
    with claim_of(tmp_path):
        pass


def test_another_process_of_this_machine_is_refused_while_it_lives(
    tmp_path: Path, other_process: subprocess.Popen[bytes]
) -> None:
    claim_of_process(tmp_path, other_process.pid)
    with pytest.raises(RunError, match=f"by process {other_process.pid} on"), claim_of(tmp_path):
        pass
    other_process.kill()  # it stays in the table of processes until its parent asks for it
    while claim._start_of(other_process.pid):
        time.sleep(0.01)
    start = time.monotonic()
    with claim_of(tmp_path) as claimed:
        assert claimed.message.startswith(f"takes over from process {other_process.pid} on")
    other_process.wait()
    claim_of_process(tmp_path, other_process.pid)
    with claim_of(tmp_path):
        pass
    assert time.monotonic() - start < 1, "nobody waited for a sign of the dead"


def test_a_process_with_the_number_of_a_dead_one_is_not_taken_for_it(
    tmp_path: Path, other_process: subprocess.Popen[bytes]
) -> None:
    leave_claim(tmp_path, process=other_process.pid, started="17", token="theirs")
    with claim_of(tmp_path) as claimed:
        assert claimed.message
    # As process 1 of a container is, after each of its starts.
    leave_claim(tmp_path, number=9, process=os.getpid(), token="theirs")
    with claim_of(tmp_path) as claimed:
        assert claimed.message
    assert names(tmp_path) == ["writer.10.json"]


@pytest.mark.parametrize("clock", [-86400, 0, 86400])
def test_a_writer_on_another_machine_is_refused_when_it_gives_a_sign(
    tmp_path: Path, clock: float
) -> None:
    def renew() -> None:
        for beat in itertools.count():
            if left.wait(0.05):
                break
            renewed = time.time() + clock + beat
            leave_claim(tmp_path, machine=ELSEWHERE, renewed=renewed, process=1, token="theirs")

    left = threading.Event()
    leave_claim(tmp_path, machine=ELSEWHERE, renewed=time.time() + clock, token="theirs")
    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with pytest.raises(RunError, match="is already being trained, by process 1 on"):
            claim_of(tmp_path).__enter__()
    finally:
        left.set()
        thread.join()


def test_a_writer_on_another_machine_that_gives_no_sign_is_followed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    leave_claim(tmp_path, machine=ELSEWHERE, renewed=time.time() + 86400, token="theirs")
    with caplog.at_level(logging.WARNING, logger="jaxcls"), claim_of(tmp_path) as claimed:
        assert claimed.message
    (text,) = caplog.messages
    assert "waiting up to 1 s for a sign of life" in text


def test_a_writer_that_ends_while_it_is_watched_is_followed(tmp_path: Path) -> None:
    leave_claim(tmp_path, machine=ELSEWHERE, token="theirs")
    ends = threading.Timer(
        0.2, lambda: leave_claim(tmp_path, machine=ELSEWHERE, token="theirs", ended="now")
    )
    ends.start()
    with claim_of(tmp_path) as claimed:
        assert len(names(tmp_path)) == 1
        assert claimed.message == ""  # the writer has recorded its end
    ends.join()


@pytest.mark.parametrize("text", ["", "{", "\xff", '{"host": 3}'])
def test_a_claim_that_cannot_be_read_is_watched_too(tmp_path: Path, text: str) -> None:
    (tmp_path / "writer.4.json").write_text(text, encoding="latin-1")
    assert last_writer(tmp_path) is None
    with claim_of(tmp_path):
        assert names(tmp_path) == ["writer.5.json"]


def test_a_copy_of_a_run_that_is_being_trained_can_be_trained(tmp_path: Path) -> None:
    run, copy = tmp_path / "run", tmp_path / "copy"
    run.mkdir()
    with claim_of(run):
        shutil.copytree(run, copy)
        with claim_of(copy), pytest.raises(RunError), claim_of(run):
            pass


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("before", ["nobody", "a dead process", "a silent machine"])
def test_of_writers_that_come_at_the_same_moment_one_gets_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str, links: bool
) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError("Operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", no_links)
    if before == "a dead process":
        leave_claim(tmp_path, started="17", token="theirs")
    if before == "a silent machine":
        leave_claim(tmp_path, machine=ELSEWHERE, token="theirs")
        monkeypatch.setattr(claim, "LEASE_SECONDS", 0.3)
    together, all_tried = threading.Barrier(8), threading.Barrier(8)
    got: list[bool] = []

    def try_it() -> None:
        together.wait()
        try:
            with claim_of(tmp_path):
                got.append(True)
                all_tried.wait()
        except RunError:
            got.append(False)
            all_tried.wait()

    threads = [threading.Thread(target=try_it) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == [False] * 7 + [True]
    assert len(names(tmp_path)) == 1


def test_who_comes_late_to_a_number_that_was_tidied_away_does_not_get_the_run(
    tmp_path: Path,
) -> None:
    leave_claim(tmp_path, started="17", token="theirs")
    seen = claim._newest(tmp_path)
    late = claim_of(tmp_path)
    # Meanwhile two more have come, and the first of them has gone.
    (tmp_path / "writer.1.json").unlink()
    leave_claim(tmp_path, number=3, machine=ELSEWHERE, token="next")
    assert late._try_to_replace(seen) == 0
    assert names(tmp_path) == ["writer.3.json"]


def test_a_writer_whose_run_was_taken_over_notices_and_leaves_all_as_it_is(
    tmp_path: Path,
) -> None:
    noticed = threading.Event()
    with Claim(tmp_path, on_lost=noticed.set) as claimed:
        claimed.require()
        leave_claim(tmp_path, number=2, machine=ELSEWHERE, token="theirs", process=99)
        with pytest.raises(RunLostError, match="another training, process 99 on"):
            claimed.require()
        assert noticed.wait(10)
    writer = last_writer(tmp_path)
    assert writer is not None
    assert (writer.process, writer.ended) == (99, None)


@pytest.mark.parametrize("what", ["emptied", "another one", "moved away"])
def test_a_writer_whose_directory_is_another_one_notices_and_writes_nothing(
    tmp_path: Path, what: str
) -> None:
    run, noticed = tmp_path / "run", threading.Event()
    run.mkdir()
    with Claim(run, on_lost=noticed.set) as claimed:
        claimed.require()
        if what == "emptied":
            shutil.rmtree(run)
            run.mkdir()
        else:
            run.rename(tmp_path / "away")
        if what == "another one":
            run.mkdir()
        assert noticed.wait(10)
        with pytest.raises(RunLostError, match=r"writer\.1\.json is gone: run .*emptied or unmou"):
            claimed.require()
    assert not list(run.glob("*"))
    if what == "moved away":
        assert not run.exists()


@pytest.mark.parametrize("moved", [True, False])
def test_a_training_that_begins_again_in_the_same_place_is_noticed(
    tmp_path: Path, moved: bool
) -> None:
    run, noticed = tmp_path / "run", threading.Event()
    run.mkdir()
    with Claim(run, on_lost=noticed.set) as first:
        run.rename(tmp_path / "away") if moved else shutil.rmtree(run)
        run.mkdir()
        theirs = leave_claim(run, machine=ELSEWHERE, token="theirs", process=99)  # also number 1
        assert noticed.wait(10)
        with pytest.raises(RunLostError, match=r"process 99 on .* has begun in run .*moved or del"):
            first.require()
    assert last_writer(run) == theirs


def test_a_claim_is_renewed(tmp_path: Path) -> None:
    with claim_of(tmp_path):
        before = last_writer(tmp_path)
        until = time.monotonic() + 10
        while last_writer(tmp_path) == before and time.monotonic() < until:
            time.sleep(0.02)
        assert last_writer(tmp_path) != before


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="gone' cannot be written"), claim_of(tmp_path / "gone"):
        pass
    (tmp_path / "run").mkdir()
    with claim_of(tmp_path / "run"):  # the failure before has left nothing behind
        pass


@pytest.mark.parametrize("links", [True, False])
def test_a_new_file_is_created_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    if not links:
        monkeypatch.delattr(os, "link")
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError), raising=False)
    assert create_whole(tmp_path / "a", "first")
    assert not create_whole(tmp_path / "a", "second")
    assert (tmp_path / "a").read_text() == "first"
    assert names(tmp_path) == ["a"]
