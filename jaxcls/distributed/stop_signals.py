"""Stopping on a signal: all processes of a job after the same step, or at once before the first."""

import contextlib
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

# Where JAX's preemption service (jaxlib's PreemptionSyncManager) notes the first notice of a job.
NOTICE = "RECEIVED_PREEMPTION_NOTICE"
_LEAVING = "jaxcls/leaving/"
_POLL_SECONDS = 0.5
_WAKE = b"\0"  # no signal's number
_LEAVE_SECONDS = 10.0  # for the others to leave, too
_LEAVE_FIRST_SECONDS = 30.0  # process 0's: without its service the others abort
_LINGER_SECONDS = 3.0  # for the others to see that all leave


class StoppedError(Exception):
    """The work was cut short, because the processes have agreed to stop."""


class StopSignals:
    """Inside the `with`, SIGINT, SIGTERM, SIGHUP and preemption notices are noted, not obeyed.

    A SIGHUP that is ignored, as under nohup, stays so. Of several processes, each knows of a signal
    that any of them got. There the preemption service handles SIGTERM itself, in C++, since
    `jax.distributed.initialize`: a handler of ours would take its place, so the others are turned
    into SIGTERM.

    Attributes:
      received: what was received first, as far as this process knows, or None.
      leave_at_once: whether there is nothing to save, so that a signal ends the process with status
        75 at once, even while the main thread compiles.
      before_leaving: called by another thread before such an end. A mistake of the user that it
        raises is what the process ends with.
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
        self._left = threading.Event()

    def __enter__(self) -> Self:
        ours = stop_signals()
        if self._client is not None:
            ours.remove(signal.SIGTERM)
        # Python runs a handler in the main thread and not during a compile; but the number of the
        # signal comes through this pipe at any time.
        self._pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._previous_fd = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        for number in ours:
            self._previous[number] = signal.signal(number, self._note)
        self._watcher = threading.Thread(target=self._watch, name="jaxcls-signals", daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        os.write(self._pipe[1], _WAKE)
        self._watcher.join()
        # Not before: whoever sends a signal may send another one.
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_fd)
        for end in self._pipe:
            os.close(end)

    def agreed(self) -> bool:
        """Whether to stop here; the same answer in every process.

        All processes call it equally often, between two pieces of work.
        """
        if self._client is None:
            return self.received is not None
        self._calls += 1
        # True at one call only, the same in all processes.
        if multihost_utils.reached_preemption_sync_point(self._calls):
            self._agreed = True
            self.received = self.received or "SIGTERM"
        return self._agreed

    def finish_leaving(self, *_: object) -> None:
        """An exit callback: what fails while this process leaves fails because the others left."""
        if self._leaving:
            self._watcher.join()  # which ends the process

    def _note(self, number: int, _: FrameType | None = None) -> None:
        # The others first: once it is noted, the watcher may leave without them.
        if self._client is not None:
            os.kill(os.getpid(), signal.SIGTERM)
        self.received = self.received or signal.Signals(number).name

    def _watch(self) -> None:
        while not self._left.is_set():
            if select.select([self._pipe[0]], [], [], _POLL_SECONDS)[0]:
                for number in os.read(self._pipe[0], 64):
                    if number in self._previous:
                        self._note(number)
            if self._client is not None:
                self._ask_the_others()
            if self.received and self.leave_at_once:
                self._leave()

    def _ask_the_others(self) -> None:
        try:
            self._client.key_value_try_get(NOTICE)
        except jax.errors.JaxRuntimeError:  # there is none
            return
        self.received = self.received or "SIGTERM"
        # One that was still at its start has left; its step will never come.
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # process 0 may be gone
            if self._client.key_value_dir_get(_LEAVING):
                self._leave()

    def _leave(self) -> None:
        self._leaving = True
        status, message = (
            EXIT_STOPPED,
            f"stopped by {self.received} before the first step; nothing was trained since the "
            f"start, and the same command starts again",
        )
        # A bucket may not answer.
        alarm = threading.Timer(_LEAVE_SECONDS, end_now, [status, message])
        alarm.daemon = True
        alarm.start()
        try:
            self.before_leaving()
        except UserError as error:
            status, message = EXIT_USER_ERROR, f"jaxcls: {error}"
        finally:
            alarm.cancel()
        if self._client is not None:
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # process 0 may be gone
                self._leave_together()
        end_now(status, message)

    def _leave_together(self) -> None:
        """Waits for the others: where one is missing, what they do fails with another status."""
        self._client.key_value_set(f"{_LEAVING}{process_id()}", "", allow_overwrite=True)
        until = time.monotonic() + (_LEAVE_FIRST_SECONDS if is_main_process() else _LEAVE_SECONDS)
        while time.monotonic() < until:
            if len(self._client.key_value_dir_get(_LEAVING)) == num_processes():
                break
            time.sleep(_POLL_SECONDS / 5)
        if is_main_process():
            time.sleep(_LINGER_SECONDS)
