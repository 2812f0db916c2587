"""Whether a run is running, or how it ended: state.json."""

import contextlib
import dataclasses
import logging
import threading
from collections.abc import Iterator
from typing import Literal

from jaxcls.config.decoding import decode_fields
from jaxcls.distributed.agree import is_main_process
from jaxcls.runs.directory import RunLostError, write_json
from jaxcls.system.errors import one_line
from jaxcls.system.json_text import parse_json
from jaxcls.system.paths import RunPath

logger = logging.getLogger("jaxcls")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunState:
    """The state of a run, as its process recorded it.

    Attributes:
      state: a process that was killed leaves the state "running".
      num_steps: the number of steps of the whole training.
      why: the signal that stopped it, or the error that it failed with; else empty.
    """

    state: Literal["running", "finished", "stopped", "failed"]
    num_steps: int
    why: str = ""


def record_state(run: RunPath, state: RunState) -> None:
    """Writes state.json in process 0; if that fails, only warns, because a run works without it."""
    if is_main_process():
        with _recording:
            _write_state(run, state)


def record_early_stop(run: RunPath, stopped_by: str) -> None:
    """Records that a training stops before its first step, if state.json says that it is running.

    The caller, in any thread, must then end the process, because no state can be recorded any more.
    """
    if not is_main_process():
        return
    # Never released, because the main thread may be about to record that the training is running.
    _recording.acquire()
    state = recorded_state(run)
    if state is not None and state.state == "running":
        why = f"{stopped_by} before its first step"
        _write_state(run, dataclasses.replace(state, state="stopped", why=why))


_recording = threading.Lock()


def _write_state(run: RunPath, state: RunState) -> None:
    try:
        write_json(run / "state.json", dataclasses.asdict(state))
    except Exception as error:  # errors of a bucket have many types
        logger.warning("cannot write state.json in %s: %s", run, one_line(error))


@contextlib.contextmanager
def recording_status(run: RunPath, *, num_steps: int) -> Iterator[None]:
    """Records in state.json that the run is running, and if the block fails, the error."""
    record_state(run, RunState(state="running", num_steps=num_steps))
    try:
        yield
    except RunLostError:
        raise  # the directory belongs to another training, or is another one
    except KeyboardInterrupt:  # Python's default for SIGINT, if a library user calls `train`
        record_state(run, RunState(state="stopped", num_steps=num_steps, why="SIGINT"))
        raise
    except Exception as error:
        why = one_line(error)
        record_state(run, RunState(state="failed", num_steps=num_steps, why=why))
        raise


def recorded_state(run: RunPath) -> RunState | None:
    """The recorded state of a run; None if it is unknown, as for runs of older versions."""
    try:
        return decode_fields(RunState, parse_json((run / "state.json").read_text()), prefix="")
    except Exception:  # errors of a bucket have many types
        return None
