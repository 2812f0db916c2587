"""Lets the processes of a job agree, through the key-value store of JAX's coordination service.

All processes must call these functions in the same order, except for `announce` and `announced`.
A single process never waits.
"""

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jax._src import distributed

from jaxcls.distributed.job import JobError
from jaxcls.system.errors import UserError, mistake_behind

WAIT_SECONDS = 3600  # longer than any save; the watchdog ends a stuck job sooner

_PREFIX = "jaxcls/exchange/"
_EVENTS = "jaxcls/events/"
_calls = itertools.count()


def client() -> Any:
    """The client of JAX's coordination service; None if there is only one process."""
    state = distributed.global_state  # JAX's public functions would start the devices
    return state.client if state.num_processes > 1 else None


def process_id() -> int:
    """The number of this process in its job, counted from 0; starts no devices."""
    return distributed.global_state.process_id


def num_processes() -> int:
    """The number of processes of the job; starts no devices."""
    return distributed.global_state.num_processes


def is_main_process() -> bool:
    """Whether this is process 0, which writes files and prints for the whole job."""
    return process_id() == 0


def exchange(text: str) -> list[str]:
    """Sends a text to all processes; returns the texts of all, in the order of the processes."""
    service = client()
    if service is None:
        return [text]
    call, mine = next(_calls), process_id()
    service.key_value_set(f"{_PREFIX}{call}/{mine}", text or " ")  # it stores no empty texts
    texts = [
        service.blocking_key_value_get(f"{_PREFIX}{call}/{process}", WAIT_SECONDS * 1000)
        for process in range(num_processes())
    ]
    if call:  # all have read the texts of the previous call, or they would not be in this one
        service.key_value_delete(f"{_PREFIX}{call - 1}/{mine}")
    return ["" if got == " " else got for got in texts]


def first_problem(problem: str | None) -> str | None:
    """The first problem of any process, or None; returns the same in all processes."""
    return next((text for text in exchange(problem or "") if text), None)


def any_process(condition: bool) -> bool:
    """Whether a condition holds in any process; returns the same in all processes."""
    return first_problem("it holds" if condition else None) is not None


def announce(event: str) -> None:
    """Tells all processes of an event (see `announced`); can be called in any thread."""
    if (service := client()) is not None:
        service.key_value_set(f"{_EVENTS}{event}/{process_id()}", " ", allow_overwrite=True)


def announced(event: str) -> bool:
    """Whether any process has announced an event; False for a process alone. Does not wait."""
    service = client()
    return service is not None and bool(service.key_value_dir_get(f"{_EVENTS}{event}/"))


def by_main_process(act: Callable[[], None]) -> None:
    """Calls `act` in process 0 only; the other processes wait for it.

    Raises:
      UserError: `act` raised it; it is then raised in every process.
    """
    with shared_errors():
        if is_main_process():
            act()


@contextlib.contextmanager
def shared_errors() -> Iterator[None]:
    """Raises a user's mistake that any process finds inside the `with` in all processes.

    Raises:
      UserError: the mistake of this process, or else of the first process that has one.
    """
    mine: UserError | None = None
    cause: Exception | None = None
    try:
        yield
    except Exception as error:
        mine = mistake_behind(error)
        if mine is None:
            raise
        cause = None if mine is error else error
    texts = exchange("" if mine is None else str(mine))
    if mine is not None:
        raise mine from cause
    for process, text in enumerate(texts):
        if text:
            raise JobError(f"process {process}: {text}")


def require_same(
    facts: Mapping[str, Any],
    *,
    remedy: str = "start all of them with the same command, files and versions",
) -> None:
    """Checks that `facts`, values by name, are the same in all processes.

    Args:
      facts: the values, which must be JSON.
      remedy: what the user can do if they differ.

    Raises:
      JobError: one differs; the message names it, and its value in two processes.
    """
    mine = {name: json.dumps(value, sort_keys=True) for name, value in facts.items()}
    theirs = [json.loads(text) for text in exchange(json.dumps(mine))]
    for process, other in enumerate(theirs):
        for name in sorted(theirs[0].keys() | other.keys()):
            if other.get(name) != theirs[0].get(name):
                raise JobError(
                    f"the processes of this job differ in {name}: {theirs[0].get(name)} in process "
                    f"0, {other.get(name)} in process {process}; {remedy}"
                )
