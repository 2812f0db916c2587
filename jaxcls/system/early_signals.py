"""Signals before and after a training: they end the program at once, with status 75 and one line.

This holds from the program's first instruction, while it imports, joins a job, compiles or
evaluates. During a training `StopSignals` replaces these handlers and saves first. In the first few
hundredths of a second, before Python imports this module, Python handles signals in its own way.

This module imports as little as possible, so that it is ready before the long imports begin.
"""

from __future__ import annotations

import atexit
import os
import signal
import threading

TYPE_CHECKING = False  # as in jaxcls/__init__.py
if TYPE_CHECKING:
    from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # stop a training, end anything else
EXIT_STOPPED = 75  # the same command resumes (EX_TEMPFAIL)

_ending = threading.Lock()  # held by the thread that ends the program
_done_status: int | None = None  # the exit status, once the work is done
_got_signal_when_done = False


def end_on_signals() -> None:
    """Makes SIGNALS end the program at once; signals that the parent ignores stay ignored.

    Python runs a handler only in the main thread, and only after a long call into compiled code has
    returned. Therefore a second thread also reads the numbers of the signals from a pipe. Code that
    handles a signal itself sets its own handler, and afterwards sets this one again.
    """
    open_standard_files()  # otherwise the pipe below may take the number of a closed one
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _handle)
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    threading.Thread(
        target=_watch_pipe, args=[read_end], name="jaxcls-early-signals", daemon=True
    ).start()
    # The program may have been started again with them blocked (jaxcls/system/huge_pages.py).
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    # A forked child inherits the pipe, and a signal that it writes there would end its parent.
    os.register_at_fork(
        before=_block_signals,
        after_in_parent=_unblock_signals,
        after_in_child=_restore_default_handlers,
    )
    # Called after all other exit callbacks. Python then removes its handlers, before it ends.
    atexit.register(ignore_signals)


def open_standard_files() -> None:
    """Opens the null device in place of each closed standard file.

    Otherwise the next file that is opened would get the number of the closed one, and everything
    that is printed would be written to it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, this one
            os.set_inheritable(opened, True)


def stop_signals() -> list[signal.Signals]:
    """The signals that stop a training; SIGHUP only if it is not ignored, as under nohup."""
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [number for number in SIGNALS if number != signal.SIGHUP or not ignored]


def work_is_done(status: int) -> None:
    """From now on a signal does not change the exit status of the program, which is about to end.

    The first signal is ignored. A second one ends the program at once with `status`, in case
    something delays the end.
    """
    global _done_status
    _done_status = status


def ignore_signals() -> None:
    """Ignores SIGNALS, so that a process whose work is done can end undisturbed."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _handle(number: int, _frame: FrameType | None) -> None:
    global _got_signal_when_done
    if _done_status is None:
        _end(number)
    elif not _got_signal_when_done:
        _got_signal_when_done = True
    else:
        os._exit(_done_status)


def _watch_pipe(pipe: int) -> None:
    while True:
        for number in os.read(pipe, 64):
            # The pipe also gets the numbers of signals that other code handles.
            if number in SIGNALS and signal.getsignal(number) is _handle and _done_status is None:
                _end(number)


def _end(number: int) -> None:
    if not _ending.acquire(blocking=False):
        return
    text = (
        f"stopped by {signal.Signals(number).name} before it was done; run the same command "
        f"to start over\n"
    )
    try:
        os.write(2, text.encode())  # not sys.stderr, to which the main thread may be writing
    finally:
        os._exit(EXIT_STOPPED)


_fork = threading.local()


def _block_signals() -> None:
    _fork.mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _unblock_signals() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _fork.mask)


def _restore_default_handlers() -> None:
    """In a forked child, signals act as in any process."""
    signal.set_wakeup_fd(-1)
    for number in SIGNALS:
        if signal.getsignal(number) is _handle:
            signal.signal(number, signal.SIG_DFL)
    _unblock_signals()
