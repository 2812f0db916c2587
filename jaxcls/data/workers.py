"""Worker processes that decode images: how they start, meet signals, and end."""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Iterator

from jaxcls.system.early_signals import SIGNALS

GRACE_SECONDS = 60.0  # that a worker goes on after SIGTERM, for its training to save and end it


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """Lets worker processes start without a signal, until `_start_worker` knows what to do."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(number: int, count: int) -> None:
    """Lets a worker process leave signals to its training, and end when that has ended.

    A terminal or a scheduler may signal all processes of a group, and the training still needs data
    while it saves; a training that is killed cannot end its workers.
    """
    del number, count
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: _end_later())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    threading.Thread(target=_end_with_parent, name="jaxcls-parent", daemon=True).start()


def _end_later() -> None:
    timer = threading.Timer(GRACE_SECONDS, os._exit, [1])
    timer.daemon = True  # it must not keep a worker whose work is over
    timer.start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "this is a worker"
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)
