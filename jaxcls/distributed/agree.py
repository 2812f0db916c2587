"""What the processes of a job agree on, through the key-value store of JAX's coordination service.

With one process, all of it is immediate. All processes call the same functions in the same order.
"""

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jax._src import distributed

from jaxcls.distributed.job import JobError
from jaxcls.system.errors import UserError, mistake_behind

WAIT_SECONDS = 3600  # longer than any save; the watchdog ends a job that is stuck sooner

_PREFIX = "jaxcls/exchange/"
_calls = itertools.count()


def client() -> Any:
    """The client of JAX's coordination service; None where there is one process."""
    state = distributed.global_state  # asking JAX itself would start the devices
    return state.client if state.num_processes > 1 else None


def process_id() -> int:
    """The number of this process in its job, from 0 up; starts no devices."""
    return distributed.global_state.process_id


def num_processes() -> int:
    """Processes of the job; starts no devices."""
    return distributed.global_state.num_processes


def is_main_process() -> bool:
    """Whether this is process 0, which writes and shows what one process alone should."""
    return process_id() == 0


def exchange(text: str) -> list[str]:
    """What each process gave, in their order."""
    service = client()
    if service is None:
        return [text]
    call, mine = next(_calls), process_id()
    service.key_value_set(f"{_PREFIX}{call}/{mine}", text or " ")  # the store takes no empty texts
    texts = [
        service.blocking_key_value_get(f"{_PREFIX}{call}/{process}", WAIT_SECONDS * 1000)
        for process in range(num_processes())
    ]
    if call:  # all have read the last ones, or they would not have come here
        service.key_value_delete(f"{_PREFIX}{call - 1}/{mine}")
    return ["" if got == " " else got for got in texts]


def first_problem(problem: str | None) -> str | None:
    """The first problem that any process has: the same answer in all of them."""
    return next((text for text in exchange(problem or "") if text), None)


def by_main_process(act: Callable[[], None]) -> None:
    """Does something in process 0 alone; the others wait for it.

    Raises:
      UserError: what it raised, in every process.
    """
    with together():
        if is_main_process():
            act()


@contextlib.contextmanager
def together() -> Iterator[None]:
    """A user's mistake that one process meets inside ends the work of all.

    Raises:
      UserError: its own, or else that of the first process that has one.
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


def require_same(facts: Mapping[str, Any]) -> None:
    """Checks that every process has the same facts, by their names.

    Raises:
      JobError: names the first one that differs, and its value in two processes.
    """
    mine = {name: json.dumps(value, sort_keys=True) for name, value in facts.items()}
    theirs = [json.loads(text) for text in exchange(json.dumps(mine))]
    for process, other in enumerate(theirs):
        for name in sorted(theirs[0].keys() | other.keys()):
            if other.get(name) != theirs[0].get(name):
                raise JobError(
                    f"the processes of this job differ in {name}: {theirs[0].get(name)} in process "
                    f"0, {other.get(name)} in process {process}; start all of them with the same "
                    f"command, files and versions"
                )
