"""What the watchdog makes of the messages of a job's processes."""

import dataclasses
import time

import pytest

from jaxcls.distributed import watchdog
from jaxcls.distributed.job import HEARTBEAT_SECONDS
from jaxcls.distributed.watchdog import (
    FAILED_SECONDS,
    GONE_SECONDS,
    Progress,
    Seen,
    Watchdog,
    verdict,
)

NOW = 1000.0


def seen(
    *, moves: int = 5, phase: str = "reading data", still: float = 0, silent: float = 0, **ended
) -> Seen:
    """Of a process that last moved `still` and last spoke `silent` seconds ago."""
    progress = Progress(moves=moves, step=3, phase=phase, **ended)
    return Seen(progress=progress, moved_at=NOW - max(still, silent), heard_at=NOW - silent)


def judge(*processes: Seen, stuck_after: float = 600) -> str | None:
    return verdict(dict(enumerate(processes)), NOW, stuck_after=stuck_after)


def test_nothing_is_wrong_while_all_continue_or_are_done() -> None:
    assert judge() is None
    assert judge(seen(), seen(still=599)) is None
    assert judge(seen(), seen(silent=GONE_SECONDS)) is None
    assert judge(seen(ended="done", silent=5000), seen(ended="done", silent=5000)) is None
    assert judge(seen(), seen(ended="failed", silent=FAILED_SECONDS)) is None


def test_a_silent_process_is_gone_after_a_minute() -> None:
    assert judge(seen(), seen(silent=61)) == (
        "process 1 has been silent for 61 s; its last report was from step 3 (reading data)"
    )


def test_a_process_that_has_said_nothing_yet_is_stuck_and_not_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: dict[str, str] = {}

    class Client:
        """Of process 0, which has heard of itself alone."""

        def key_value_set(self, key: str, text: str, *, allow_overwrite: bool) -> None:
            said[key] = text

        def key_value_dir_get(self, prefix: str) -> list[tuple[str, str]]:
            return list(said.items())

    monkeypatch.setattr(watchdog, "client", Client)
    monkeypatch.setattr(watchdog, "num_processes", lambda: 2)
    with Watchdog(stuck_after=600) as dog:
        dog._send()
        dog._receive()
        seen, start = dog._seen, dog._seen[1].moved_at
    heard = dataclasses.replace(seen[0], heard_at=start + 3601)
    assert verdict({0: heard, 1: seen[1]}, start + 3599, stuck_after=600) is None
    assert verdict({0: heard, 1: seen[1]}, start + 3601, stuck_after=600) == (
        "process 1 has been at step 0 (starting) for 3601 s"
    )


def test_a_failed_process_is_named_once_the_others_had_time_to_fail_too() -> None:
    problem = judge(seen(), seen(ended="failed", silent=FAILED_SECONDS + 1))
    assert problem == "process 1 failed after step 3 (reading data); its own log says why"


def test_the_one_that_is_behind_is_stuck_and_not_those_that_wait_for_it() -> None:
    ahead, behind = seen(moves=6, still=700), seen(moves=5, still=700)
    assert judge(ahead, behind) == "process 1 has been at step 3 (reading data) for 700 s"
    assert judge(behind, ahead, behind) == (
        "processes 0, 2 have been at step 3 (reading data) for 700 s"
    )


def test_one_that_moved_of_late_is_not_stuck_although_it_is_behind() -> None:
    assert judge(seen(moves=9, still=700), seen(moves=5, still=10)) is None


def test_one_that_is_done_holds_nobody_up() -> None:
    assert judge(seen(moves=2, ended="done", silent=5000), seen(moves=5)) is None


@pytest.mark.parametrize(
    ("phase", "limit"),
    [("reading data", 10), ("starting", 60), ("compiling", 60), ("verifying the data", 60)],
)
def test_compiling_and_verifying_may_take_six_times_as_long(phase: str, limit: float) -> None:
    assert judge(seen(phase=phase, still=limit), stuck_after=10) is None
    assert "has been at" in (judge(seen(phase=phase, still=limit + 1), stuck_after=10) or "")
    # A silent process must not look stuck together with those that wait for it.
    assert judge(seen(phase=phase, silent=limit / 2), stuck_after=10) is None
    gone = judge(seen(phase=phase, silent=limit / 2 + 1), stuck_after=10)
    assert gone is not None
    assert "has been silent for" in gone


def test_a_message_without_news_is_heard_but_no_move() -> None:
    first = seen()
    again = first.update(Progress(moves=5, step=3, phase="reading data", beat=1), NOW + 7)
    assert (again.moved_at, again.heard_at) == (NOW, NOW + 7)
    stale = again.update(again.progress, NOW + 9)
    assert (stale.moved_at, stale.heard_at) == (NOW, NOW + 7)
    moved = stale.update(Progress(moves=6, step=4, phase="reading data", beat=2), NOW + 11)
    assert (moved.moved_at, moved.heard_at) == (NOW + 11, NOW + 11)


def test_the_watchdog_is_before_jax() -> None:
    """JAX aborts once a process has sent no sign for a while, half of which may have passed."""
    assert HEARTBEAT_SECONDS / 2 >= GONE_SECONDS + 30


def test_a_process_alone_says_once_that_it_is_stuck(caplog: pytest.LogCaptureFixture) -> None:
    with Watchdog(stuck_after=0.2) as dog:
        dog.note_progress(3, "saving")
        time.sleep(0.6)
        assert caplog.messages == [
            "no progress for 0 s at step 3 (saving); a disk, the network or a device may hang (it "
            "goes on waiting; a signal ends it)"
        ]
        dog.note_progress(3, "evaluating")
        time.sleep(0.4)
    assert len(caplog.messages) == 2
    with Watchdog(stuck_after=0.2) as dog:
        for _ in range(10):
            dog.note_progress(4, "reading data")
            time.sleep(0.05)
    with Watchdog(stuck_after=0):
        time.sleep(0.3)
    assert len(caplog.messages) == 2
