"""This process' place in a job of several, how it joins the job, and how it leaves it.

Imports jax when there is a job to look for, so that help is quick.
"""

import dataclasses
import importlib.util
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from jaxcls.system.early_signals import EXIT_STOPPED, ignore_signals, stop_signals
from jaxcls.system.errors import UserError

if TYPE_CHECKING:
    from jax._src.clusters import ClusterEnv

EXIT_FAILED = 1
EXIT_USER_ERROR = 2
FAREWELL_SECONDS = 10.0
LONGEST_WAIT = 1_000_000  # seconds for the others to join
SHUTDOWN_SECONDS = 60  # after the first process has ended, for the last one to

COMPILER = "jaxcls-compiler"  # the thread that compiles ahead
TRACKER = "jaxcls-tracker"  # of metrics; it is left when it hangs

_ENDED = "jaxcls/ended/"


class JobError(UserError):
    """The processes of a job do not come together, or do not agree."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobOptions:
    """Where this process stands in a job of several; found by itself under a scheduler."""

    coordinator: str | None = None
    """HOST:PORT at which process 0 of the job listens (None: JAX_COORDINATOR_ADDRESS, or as Slurm,
    Open MPI, a TPU VM or a Kubernetes job has it)."""
    num_processes: int | None = None
    """Processes of the job (None: JAX_NUM_PROCESSES, or the scheduler's)."""
    process_id: int | None = None
    """Number of this process, from 0 up (None: JAX_PROCESS_ID, or the scheduler's)."""
    join_timeout: int = 300
    """Seconds to wait for the other processes at the start."""
    log_all_processes: bool = False
    """Keep a log.N.txt of each process N in the run's directory, besides log.txt."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """A process' place in a job.

    Attributes:
      coordinator: HOST:PORT at which process 0 listens.
      num_processes: of the job.
      process_id: of this process, from 0 up.
      local_device_ids: the devices of this machine that are its own; None for all.
    """

    coordinator: str
    num_processes: int
    process_id: int
    local_device_ids: list[int] | None = None


def find_place(options: JobOptions, environment: Mapping[str, str] = os.environ) -> Place | None:
    """The place that options, JAX's variables or a scheduler give; None for a process alone.

    Raises:
      JobError: some of it is missing, no number, or out of range.
    """
    given = _given(options, environment)
    if any(value is not None for value in given.values()):
        return _checked_place(given)
    scheduler = _scheduler(environment)
    if scheduler is None:
        return None
    try:
        if scheduler.get_process_count() == 1:
            return None
        own = scheduler.get_local_process_id()
        if "," not in environment.get("CUDA_VISIBLE_DEVICES", ","):
            own = None  # it sees its own GPU alone
        return Place(
            coordinator=scheduler.get_coordinator_address(
                timeout_secs=options.join_timeout,
                override_coordinator_port=environment.get("JAX_COORDINATOR_PORT"),
            ),
            num_processes=scheduler.get_process_count(),
            process_id=scheduler.get_process_id(),
            local_device_ids=None if own is None else [own],
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise JobError(
            f"the job's processes cannot be found through {scheduler.__name__}: {error}; give "
            f"--coordinator HOST:PORT --num-processes N --process-id I"
        ) from error


def join(options: JobOptions, *, stops: bool) -> None:
    """Joins the job that this process belongs to, if there is one; before JAX computes anything.

    Args:
      options: where in which job.
      stops: whether JAX's preemption service handles SIGTERM from then on, for `StopSignals`; else
        it ends the process.

    Raises:
      JobError: there is no such place, or the others do not come.
    """
    if not 0 < options.join_timeout <= LONGEST_WAIT:
        raise JobError(
            f"--join-timeout: must be between 1 and {LONGEST_WAIT} s, got {options.join_timeout}"
        )
    place = find_place(options)
    if place is None:
        return
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", stops)
    if place.process_id:
        _await_coordinator(place.coordinator, options.join_timeout)
    else:
        _require_free(place.coordinator)
    problem = (
        f"jaxcls: the {place.num_processes} processes of the job did not all join at "
        f"{place.coordinator} within {options.join_timeout} s; see whether every one was started, "
        f"with the same --coordinator and --num-processes, or wait longer with --join-timeout"
    )
    # JAX would abort the program with a dump of its stack.
    alarm = threading.Timer(options.join_timeout, end_now, [EXIT_USER_ERROR, problem])
    alarm.daemon = True
    alarm.start()
    try:
        jax.distributed.initialize(
            place.coordinator,
            place.num_processes,
            place.process_id,
            place.local_device_ids,
            cluster_detection_method="deactivate",
            initialization_timeout=options.join_timeout + 60,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except RuntimeError as error:  # JaxRuntimeError is one
        raise JobError(f"--coordinator: {place.coordinator}: {_first_line(error)}") from error
    finally:
        alarm.cancel()
    if stops:  # all are one from here on, also before `StopSignals` and after it
        for number in stop_signals():
            if number != signal.SIGTERM:
                signal.signal(number, lambda *_: os.kill(os.getpid(), signal.SIGTERM))


def end_now(status: int, message: str) -> NoReturn:
    """Ends the process from any thread, whatever the others do."""
    try:
        sys.stderr.write(f"{message}\n")
    finally:
        _exit(status)


def end_with(status: int) -> NoReturn:
    """Ends the program; at once if a thread still compiles, or hangs, that nobody waits for."""
    if any(thread.name in (COMPILER, TRACKER) for thread in threading.enumerate()):
        _exit(status)
    sys.exit(status)


def _exit(status: int) -> NoReturn:
    try:
        sys.stderr.flush()
        sys.stdout.flush()
    finally:  # where they cannot be written, or are not there
        os._exit(status)


def joined() -> bool:
    """Whether this process has joined a job of several."""
    return _job() is not None


def leave(status: int) -> int:
    """Ends the process' part in its job, if there is one; returns the exit status of the command.

    A process that fails does not wait for those that go on: it ends here, with its own status and
    not with that of the connection, which would be lost. It names those that it leaves behind.
    """
    job = _job()
    if job is None:
        return status
    import jax

    if status in (0, EXIT_STOPPED):
        if jax.config.jax_enable_preemption_service:
            ignore_signals()
        try:
            jax.distributed.shutdown()
        except jax.errors.JaxRuntimeError as error:
            end_now(status, f"jaxcls: not all processes ended well: {_first_line(error)}")
        return status
    sys.stdout.flush()
    sys.stderr.flush()
    process, count = job.process_id, job.num_processes
    try:
        news = _tell_end(job.client, status, process=process, count=count)
    except jax.errors.JaxRuntimeError:
        news = ["process 0, through which all others talk, is gone"]
    if news:
        text = "; ".join([f"process {process} ends with status {status}", *news])
        print(f"jaxcls: {text}", file=sys.stderr)
    if process == 0:  # it holds the connection of the others, who are about to leave
        time.sleep(1)
    _exit(status)


def _tell_end(client: Any, status: int, *, process: int, count: int) -> list[str]:
    """Tells the others of the end of this process, and returns what is known of theirs."""
    before = _ended(client)
    client.key_value_set(f"{_ENDED}{process}", json.dumps(status), allow_overwrite=True)
    until, ended = time.monotonic() + FAREWELL_SECONDS, before
    while len(ended) < count and time.monotonic() < until:
        time.sleep(0.1)
        ended = _ended(client)
    news = []
    if status != EXIT_USER_ERROR:  # that explains itself
        news = [f"process {other} had ended with status {its}" for other, its in before.items()]
    if silent := sorted(set(range(count)) - ended.keys()):
        news.append(f"it has heard nothing of the end of process {', '.join(map(str, silent))}")
    return news


def _ended(client: Any) -> dict[int, int]:
    """The status of each process that has ended, as far as they have told."""
    found = client.key_value_dir_get(_ENDED)
    return {int(key.rpartition("/")[2]): json.loads(status) for key, status in sorted(found)}


def _job() -> Any:
    """JAX's own record of the job, if this process has joined one.

    Asking JAX for its process' number would start the devices, and they may be what has failed.
    """
    if "jax" not in sys.modules:
        return None
    from jax._src.distributed import global_state

    return global_state if global_state.client is not None else None


def _given(options: JobOptions, environment: Mapping[str, str]) -> dict[str, Any]:
    """What options, or else JAX's variables, say, by the names of the options."""
    found: dict[str, Any] = {}
    for name, variable in (
        ("coordinator", "JAX_COORDINATOR_ADDRESS"),
        ("num_processes", "JAX_NUM_PROCESSES"),
        ("process_id", "JAX_PROCESS_ID"),
    ):
        value = getattr(options, name)
        found[name] = value if value is not None else environment.get(variable)
    return found


def _checked_place(given: Mapping[str, Any]) -> Place:
    missing = [name for name, value in given.items() if value is None]
    if missing:
        options = ", ".join("--" + name.replace("_", "-") for name in missing)
        raise JobError(
            f"{options}: missing; a place in a job takes --coordinator, --num-processes and "
            f"--process-id (or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID)"
        )
    coordinator = given["coordinator"]
    host, _, port = coordinator.rpartition(":")
    if not host or not re.fullmatch("[0-9]{1,5}", port) or int(port) >= 1 << 16:
        raise JobError(f"--coordinator: must be HOST:PORT, got {coordinator!r}")
    try:
        count, process = int(given["num_processes"]), int(given["process_id"])
    except ValueError as error:
        raise JobError(f"--num-processes, --process-id: must be whole numbers ({error})") from error
    if not 0 <= process < count:
        raise JobError(
            f"--process-id: must be from 0 to --num-processes - 1, got {process} of {count}"
        )
    return Place(coordinator=coordinator, num_processes=count, process_id=process)


def _scheduler(environment: Mapping[str, str]) -> "type[ClusterEnv] | None":
    """What started this process as one of several, as JAX sees it."""
    from jax._src.clusters import ClusterEnv

    for kind in ClusterEnv._cluster_types:
        if kind.opt_in_only_method:
            continue
        # Any pod of Kubernetes looks like one of a job to JAX.
        if kind.__name__ == "K8sCluster" and "JOB_COMPLETION_INDEX" not in environment:
            continue
        # A shell in an allocation of several tasks is a step of one.
        if kind.name == "slurm" and environment.get("SLURM_STEP_NUM_TASKS") == "1":
            continue
        if kind.is_env_present():
            return kind
    pod = {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= environment.keys()
    if pod and importlib.util.find_spec("kubernetes") is None:
        raise JobError(
            "this is a pod of an indexed job, and finding the others needs the package kubernetes: "
            "install the extra k8s, or give --coordinator, --num-processes and --process-id"
        )
    return None


def _await_coordinator(address: str, timeout: float) -> None:
    """Waits until process 0 listens. (JAX ends the program when it does not.)"""
    host, _, port = address.rpartition(":")
    until, problem = time.monotonic() + timeout, "no answer"
    while time.monotonic() < until:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=5):
                return
        except OSError as error:
            problem = error.strerror or str(error)
            time.sleep(0.2)
    raise JobError(
        f"--coordinator: process 0 does not answer at {address} within {timeout} s ({problem}); "
        f"start it, give its address, or wait longer with --join-timeout"
    )


def _require_free(address: str) -> None:
    """Checks that process 0 can listen. (jaxlib would crash.)"""
    port = int(address.rpartition(":")[2])
    try:
        with socket.create_server(("", port)):
            pass
    except OSError as error:
        raise JobError(
            f"--coordinator: port {port} cannot be listened at ({error.strerror}); end what uses "
            f"it, or choose another one for all processes"
        ) from error


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0][:200] if str(error) else repr(error)
