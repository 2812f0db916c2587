"""What a signal does to the program while no work of it handles signals itself.

A signal ends the program at once, with status 75 and one line, from its first instruction on: while
it imports, joins a job, compiles or evaluates. A training takes over with `StopSignals`, which
saves first. What a signal does before Python comes to this module, in the first hundredths of a
second, is not ours to say: there Python ends in its own way.

Imports next to nothing, so that it is there before the long imports begin.
"""

from __future__ import annotations

import atexit
import os
import signal
import threading

TYPE_CHECKING = False  # as in jaxcls/__init__.py
if TYPE_CHECKING:
    from types import FrameType

# They stop a training, and end anything else.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
EXIT_STOPPED = 75  # the same command resumes (EX_TEMPFAIL)

_ending = threading.Lock()  # taken by the one that ends the program
_done: int | None = None  # the status of a program whose work is done
_impatient = False


def end_on_signals() -> None:
    """From now on SIGNALS end the program at once; those that its parent ignores stay ignored.

    Python runs a handler in the main thread alone, and not before a long call into compiled code
    has come back. So a thread reads the signal's number from a pipe, too. Whoever sets another
    handler takes a signal over, and gives it back by setting this one again.
    """
    open_standard_files()  # else the pipe below may take the number of a closed one
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _note)
    ours, theirs = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(theirs, False)
    signal.set_wakeup_fd(theirs, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=[ours], name="jaxcls-early-signals", daemon=True).start()
    # A forked child inherits the pipe, and what it wrote there would end its parent.
    os.register_at_fork(before=_hold_back, after_in_parent=_restore_mask, after_in_child=_let_go)
    # Called after all other exit callbacks. Python then takes handlers away, before it ends.
    atexit.register(ignore_signals)


def open_standard_files() -> None:
    """Opens the null device in place of each closed standard file.

    Else the next file that is opened would get its number, and with it whatever is printed there.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
            os.set_inheritable(opened, True)


def stop_signals() -> list[signal.Signals]:
    """The signals that stop a training here: a hangup not where it is ignored, as under nohup."""
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [number for number in SIGNALS if number != signal.SIGHUP or not ignored]


def work_is_done(status: int) -> None:
    """From now on a signal does not change the status of the program, which is about to end.

    The first one does nothing. One more ends it at once, in case something holds up the end.
    """
    global _done
    _done = status


def ignore_signals() -> None:
    """Lets a process whose work is done end in peace."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _note(number: int, _frame: FrameType | None) -> None:
    global _impatient
    if _done is None:
        _end(number)
    elif _impatient:
        os._exit(_done)
    _impatient = True


def _watch(pipe: int) -> None:
    while True:
        for number in os.read(pipe, 64):
            # The pipe gets the numbers of signals that others handle, too.
            if number in SIGNALS and signal.getsignal(number) is _note and _done is None:
                _end(number)


def _end(number: int) -> None:
    if not _ending.acquire(blocking=False):
        return
    text = (
        f"stopped by {signal.Signals(number).name} before it was done; run the same command "
        f"to start over\n"
    )
    try:
        os.write(2, text.encode())  # not sys.stderr, in which the main thread may just be writing
    finally:
        os._exit(EXIT_STOPPED)


_fork = threading.local()


def _hold_back() -> None:
    _fork.mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _restore_mask() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _fork.mask)


def _let_go() -> None:
    """In a forked child: signals act as in any process."""
    signal.set_wakeup_fd(-1)
    for number in SIGNALS:
        if signal.getsignal(number) is _note:
            signal.signal(number, signal.SIG_DFL)
    _restore_mask()
