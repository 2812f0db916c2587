import os
import signal
import threading
from collections.abc import Iterator

import jax
import pytest

from jaxcls.training import stopping
from jaxcls.training.stopping import StopSignals


@pytest.fixture(autouse=True)
def handlers_stay_as_they_were() -> Iterator[None]:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noted_instead_of_obeyed(number: signal.Signals) -> None:
    with StopSignals() as stop:
        assert stop.received is None
        os.kill(os.getpid(), number)
        assert stop.received == number.name
    assert stop.received == number.name


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


def test_a_signal_does_not_interrupt_a_wait() -> None:
    done = threading.Event()
    with StopSignals() as stop:
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()
        threading.Timer(0.15, done.set).start()
        assert done.wait(timeout=10)
    assert stop.received == "SIGTERM"


def test_a_signal_is_handed_on_to_the_job_before_it_is_noted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Noted, it lets the watcher end this process, and the others would never hear of it.
    class Client:
        def key_value_try_get(self, key: str) -> str:
            raise jax.errors.JaxRuntimeError(f"NOT_FOUND: {key}")

    send = os.kill
    noted: list[str | None] = []
    monkeypatch.setattr(stopping, "client", Client)
    with StopSignals() as stop:
        monkeypatch.setattr(os, "kill", lambda *sent: noted.append(stop.received))
        send(os.getpid(), signal.SIGINT)
        assert stop.received == "SIGINT"
    assert noted
    assert noted[0] is None
