import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

import jax
import pytest

from jaxcls.distributed import stop_signals
from jaxcls.distributed.stop_signals import StopSignals
from jaxcls.system.early_signals import SIGNALS
from jaxcls.system.errors import UserError


@pytest.fixture(autouse=True)
def handlers_stay_as_they_were() -> Iterator[None]:
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted_instead_of_obeyed(number: signal.Signals) -> None:
    with StopSignals() as stop:
        assert stop.received is None
        os.kill(os.getpid(), number)
        assert stop.received == number.name
    assert stop.received == number.name


def test_a_hangup_stays_ignored_as_nohup_wants_it() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        assert stop.received is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_first_of_several_signals_is_kept() -> None:
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
    assert stop.received == "SIGTERM"


def test_afterwards_signals_act_as_before() -> None:
    # A shell starts background jobs with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with StopSignals():
            pass
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_handlers_are_restored_when_the_training_fails() -> None:
    caught: list[int] = []
    previous = signal.signal(signal.SIGTERM, lambda number, _: caught.append(number))
    try:
        with pytest.raises(RuntimeError, match="training"), StopSignals() as stop:
            raise RuntimeError("training")
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert caught == [signal.SIGTERM]
    assert stop.received is None


def test_a_second_signal_does_no_harm_while_the_first_is_obeyed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wait = threading.Thread.join

    def signal_and_wait(thread: threading.Thread) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        wait(thread)

    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        monkeypatch.setattr(threading.Thread, "join", signal_and_wait)
    assert stop.received == "SIGTERM"


def test_the_end_does_not_wait_for_the_watcher_to_look_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop_signals, "_POLL_SECONDS", 30)
    start = time.monotonic()
    with StopSignals():
        pass
    assert time.monotonic() - start < 15


def test_what_fails_while_a_process_leaves_is_not_the_run_s_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended: list[int] = []
    left = threading.Event()

    def end(status: int, _: str) -> None:
        left.wait(10)
        ended.append(status)
        stop.leave_at_once = False  # a real end returns nowhere

    monkeypatch.setattr(stop_signals, "end_now", end)
    with StopSignals() as stop, contextlib.ExitStack() as stack:
        stack.push(stop.finish_leaving)
        stop.leave_at_once = True
        os.kill(os.getpid(), signal.SIGTERM)
        while not stop._leaving:
            time.sleep(0.01)
        threading.Timer(0.1, left.set).start()
        stop._exited.set()  # lets the watcher end in place of the process
        stack.close()
        assert ended == [75]


@pytest.mark.parametrize(
    ("mistake", "expected"),
    [
        (None, (75, "stopped by SIGTERM before")),
        (UserError("not yours"), (2, "jaxcls: not yours")),
        (RuntimeError("a fault"), (75, "stopped by SIGTERM before")),
    ],
)
def test_before_a_process_leaves_its_run_is_seen_to(
    monkeypatch: pytest.MonkeyPatch, mistake: Exception | None, expected: tuple[int, str]
) -> None:
    done: list[object] = []

    def see_to_run() -> None:
        done.append("seen to")
        if mistake:
            raise mistake

    def end(status: int, text: str) -> None:
        done.append((status, text[: len(expected[1])]))
        stop.leave_at_once = False  # a real end returns nowhere

    monkeypatch.setattr(stop_signals, "end_now", end)
    with StopSignals() as stop:
        stop.before_leaving = see_to_run
        stop.leave_at_once = True
        os.kill(os.getpid(), signal.SIGTERM)
        until = time.monotonic() + 10
        while len(done) < 2 and time.monotonic() < until:
            time.sleep(0.01)
    assert done == ["seen to", expected]


def test_a_process_leaves_although_its_run_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    ended, answer = threading.Event(), threading.Event()
    statuses: list[int] = []

    def end(status: int, _: str) -> None:
        statuses.append(status)
        stop.leave_at_once = False
        ended.set()

    monkeypatch.setattr(stop_signals, "end_now", end)
    monkeypatch.setattr(stop_signals, "_LEAVE_SECONDS", 0.05)
    with StopSignals() as stop:
        stop.before_leaving = lambda: assert_true(answer.wait(10))
        stop.leave_at_once = True
        os.kill(os.getpid(), signal.SIGTERM)
        assert ended.wait(10)
        answer.set()
    assert statuses[0] == 75


def assert_true(value: bool) -> None:
    assert value


def test_a_signal_does_not_interrupt_a_wait() -> None:
    done = threading.Event()

    def signal_and_continue() -> None:
        time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
        done.set()

    with StopSignals() as stop:
        threading.Thread(target=signal_and_continue).start()
        assert done.wait(timeout=10)
    assert stop.received == "SIGTERM"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_handed_on_to_the_job_before_it_is_noted(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    # Noted, it lets the watcher end this process, and the others would never hear of it.
    class Client:
        def key_value_try_get(self, key: str) -> str:
            raise jax.errors.JaxRuntimeError(f"NOT_FOUND: {key}")

    send = os.kill
    noted: list[str | None] = []
    monkeypatch.setattr(stop_signals, "client", Client)
    with StopSignals() as stop:
        monkeypatch.setattr(os, "kill", lambda *sent: noted.append(stop.received))
        send(os.getpid(), number)
        assert stop.received == number.name
    assert noted
    assert noted[0] is None
