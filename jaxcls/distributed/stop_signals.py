"""Stops a training on a signal: all processes after the same step, or at once before the first."""

import contextlib
import logging
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Self

import jax
from jax.experimental import multihost_utils

from jaxcls.distributed.agree import client, is_main_process, num_processes, process_id
from jaxcls.distributed.job import EXIT_USER_ERROR, end_now
from jaxcls.system.early_signals import EXIT_STOPPED, stop_signals
from jaxcls.system.errors import UserError

logger = logging.getLogger("jaxcls")

# The key at which JAX's preemption service (jaxlib's PreemptionSyncManager) stores a job's notice.
NOTICE = "RECEIVED_PREEMPTION_NOTICE"
_LEAVING = "jaxcls/leaving/"
_POLL_SECONDS = 0.5
_WAKE = b"\0"  # not the number of a signal
_LEAVE_SECONDS = 10.0  # to wait for the other processes to leave too
_LEAVE_SECONDS_OF_PROCESS_0 = 30.0  # it leaves last, because the others abort without its service
_LINGER_SECONDS = 3.0  # for the others to see that all processes leave


class StoppedError(Exception):
    """Work was interrupted because the processes have agreed to stop."""


class StopSignals:
    """Inside the `with`, SIGINT, SIGTERM, SIGHUP and preemption notices are recorded.

    They end the process only while `leave_at_once` is set; otherwise the training asks `agreed`. A
    SIGHUP that is ignored, as under nohup, stays ignored. In a job of several processes, each
    learns of a signal that any of them received. There JAX's preemption service handles SIGTERM in
    C++ from `jax.distributed.initialize` on. A Python handler would replace it, so this class turns
    the other signals into SIGTERM and leaves SIGTERM alone.

    Attributes:
      received: the name of the first signal that this process knows of, or None.
      leave_at_once: whether there is nothing to save, so that a signal ends the process with status
        75 at once, even while the main thread compiles.
      before_leaving: is called in another thread before such an end. If it raises a user's mistake,
        the process ends with that message and status 2.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self.leave_at_once = False
        self.before_leaving: Callable[[], None] = lambda: None
        self._client = client()
        self._previous = {}
        self._calls = 0
        self._leaving = False
        self._agreed = False
        self._exited = threading.Event()

    def __enter__(self) -> Self:
        handled = stop_signals()
        if self._client is not None:
            handled.remove(signal.SIGTERM)
        # Python runs handlers only in the main thread, and not while it compiles. But it writes the
        # number of the signal to this pipe at any time.
        self._pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._previous_fd = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        for number in handled:
            self._previous[number] = signal.signal(number, self._record)
        self._watcher = threading.Thread(target=self._watch, name="jaxcls-signals", daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._exited.set()
        os.write(self._pipe[1], _WAKE)
        self._watcher.join()
        # Restored last, because the sender of a signal may send another one meanwhile.
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_fd)
        for end in self._pipe:
            os.close(end)

    def agreed(self) -> bool:
        """Whether to stop now; returns the same in every process.

        All processes must call it equally often, between two pieces of work.
        """
        if self._client is None:
            return self.received is not None
        self._calls += 1
        # It returns True for only one number of calls, the same in all processes.
        if multihost_utils.reached_preemption_sync_point(self._calls):
            self._agreed = True
            self.received = self.received or "SIGTERM"
        return self._agreed

    def finish_leaving(self, *_: object) -> None:
        """An exit callback: if the watcher is ending the process, waits for it.

        So errors that other processes cause by exiting are not printed.
        """
        if self._leaving:
            self._watcher.join()  # it ends the process

    def _record(self, number: int, _: FrameType | None = None) -> None:
        # Tell the others first: once it is recorded, the watcher may leave without them.
        if self._client is not None:
            os.kill(os.getpid(), signal.SIGTERM)
        self.received = self.received or signal.Signals(number).name

    def _watch(self) -> None:
        while not self._exited.is_set():
            if select.select([self._pipe[0]], [], [], _POLL_SECONDS)[0]:
                for number in os.read(self._pipe[0], 64):
                    if number in self._previous:
                        self._record(number)
            if self._client is not None:
                self._ask_the_others()
            if self.received and self.leave_at_once:
                self._leave()

    def _ask_the_others(self) -> None:
        try:
            self._client.key_value_try_get(NOTICE)
        except jax.errors.JaxRuntimeError:  # there is no notice
            return
        self.received = self.received or "SIGTERM"
        # If a process has left before its first step, no step can finish any more.
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # process 0 may be gone
            if self._client.key_value_dir_get(_LEAVING):
                self._leave()

    def _leave(self) -> None:
        self._leaving = True
        status, message = (
            EXIT_STOPPED,
            f"stopped by {self.received} before the first step, so nothing new was trained; run "
            f"the same command to start again",
        )
        # In case a bucket does not answer.
        alarm = threading.Timer(_LEAVE_SECONDS, end_now, [status, message])
        alarm.daemon = True
        alarm.start()
        try:
            self.before_leaving()
        except UserError as error:
            status, message = EXIT_USER_ERROR, f"jaxcls: {error}"
        except Exception:  # nothing may keep this process from ending
            logger.exception("the end could not be recorded")
        finally:
            alarm.cancel()
        if self._client is not None:
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # process 0 may be gone
                self._leave_together()
        end_now(status, message)

    def _leave_together(self) -> None:
        """Waits for the other processes to leave too, because they would fail without this one."""
        self._client.key_value_set(f"{_LEAVING}{process_id()}", "", allow_overwrite=True)
        patience = _LEAVE_SECONDS_OF_PROCESS_0 if is_main_process() else _LEAVE_SECONDS
        until = time.monotonic() + patience
        while time.monotonic() < until:
            if len(self._client.key_value_dir_get(_LEAVING)) == num_processes():
                break
            time.sleep(_POLL_SECONDS / 5)
        if is_main_process():
            time.sleep(_LINGER_SECONDS)
