"""Worker processes that decode images: how they start, handle signals, and end."""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Iterator

from jaxcls.system.early_signals import SIGNALS

GRACE_SECONDS = 60.0  # how long a worker runs after SIGTERM, so that its training can save


@contextlib.contextmanager
def signals_held_back() -> Iterator[None]:
    """Blocks signals while worker processes start, until `start_worker` handles them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_worker(number: int, count: int) -> None:
    """Makes a worker process ignore signals, and end when the training process has ended.

    A terminal or a scheduler may signal all processes of a group, but the training needs data until
    it has saved. And a training that is killed cannot end its workers, so they end by themselves.
    """
    del number, count
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: _end_later())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    threading.Thread(target=_end_with_parent, name="jaxcls-parent", daemon=True).start()


def _end_later() -> None:
    timer = threading.Timer(GRACE_SECONDS, os._exit, [1])
    timer.daemon = True  # does not keep a finished worker alive
    timer.start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "this is a worker"
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)
