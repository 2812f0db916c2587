"""How this process finds its place in a job of several processes, joins the job, and leaves it.

Imports jax only if there may be a job, so that help is quick.
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
from jaxcls.system.errors import UserError, one_line
from jaxcls.system.output import say
from jaxcls.system.terminal_text import public

if TYPE_CHECKING:
    from jax._src.clusters import ClusterEnv

EXIT_FAILED = 1
EXIT_USER_ERROR = 2
END_SECONDS = 10.0  # for threads that are still busy when the program ends
FAREWELL_SECONDS = 10.0
MAX_JOIN_TIMEOUT = 1_000_000  # seconds
# JAX ends all processes without a name of the lost one, after half of this at the earliest: later
# than the watchdog, which needs a minute (GONE_SECONDS).
HEARTBEAT_SECONDS = 240
SHUTDOWN_SECONDS = 60  # from the end of the first process to the end of the last one

COMPILER = "jaxcls-compiler"  # the thread that compiles ahead
TRACKER = "jaxcls-tracker"  # a thread that sends metrics; nobody waits for it if it hangs

_ENDED = "jaxcls/ended/"
# In errors of collectives (Gloo and NCCL) and of the coordination service.
_LOST = ("Gloo", "NCCL", "Connection closed", "Connection reset", "Socket closed", "UNAVAILABLE:")


class JobError(UserError):
    """The processes of a job cannot join each other, or do not agree."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobOptions:
    """The place of this process in a job of several; a scheduler's is found automatically."""

    coordinator: str | None = None
    """HOST:PORT at which process 0 of the job listens (None: JAX_COORDINATOR_ADDRESS, or the one of
    Slurm, Open MPI, a TPU VM or a Kubernetes job)."""
    num_processes: int | None = None
    """Number of processes of the job (None: JAX_NUM_PROCESSES, or the scheduler's)."""
    process_id: int | None = None
    """Number of this process, counted from 0 (None: JAX_PROCESS_ID, or the scheduler's)."""
    join_timeout: int = 300
    """Seconds to wait for the other processes to join."""
    log_all_processes: bool = False
    """Keep a log.N.txt of each process N in the run's directory, besides log.txt."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """The place of a process in a job.

    Attributes:
      coordinator: HOST:PORT at which process 0 listens.
      num_processes: the number of processes of the job.
      process_id: the number of this process, counted from 0.
      local_device_ids: the devices of this machine that the process uses; None for all.
    """

    coordinator: str
    num_processes: int
    process_id: int
    local_device_ids: list[int] | None = None


def find_place(options: JobOptions, environment: Mapping[str, str] = os.environ) -> Place | None:
    """Finds the place from the options, JAX's variables or a scheduler; None if there is no job.

    Raises:
      JobError: a part of the place is missing, not a number, or out of range.
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
            own = None  # the process sees only its own GPU
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
            f"cannot find the other processes of the job through {scheduler.__name__}: {error}; "
            f"give --coordinator HOST:PORT --num-processes N --process-id I"
        ) from error


def join(options: JobOptions, *, stops: bool) -> None:
    """Joins the job of this process, if there is one. Call it before JAX computes anything.

    Args:
      options: the options that name the job and the place in it.
      stops: whether JAX's preemption service handles SIGTERM afterwards, which `StopSignals` needs;
        otherwise SIGTERM ends the process.

    Raises:
      JobError: the place cannot be found, or the other processes do not join in time.
    """
    if not 0 < options.join_timeout <= MAX_JOIN_TIMEOUT:
        raise JobError(
            f"--join-timeout: must be between 1 and {MAX_JOIN_TIMEOUT} s, got "
            f"{options.join_timeout}"
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
        f"{place.coordinator} within {options.join_timeout} s; check that each was started, with "
        f"the same --coordinator and --num-processes, or wait longer with --join-timeout"
    )
    # JAX itself would abort the program and dump its stack.
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
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except RuntimeError as error:  # includes JaxRuntimeError
        raise JobError(f"--coordinator: {place.coordinator}: {one_line(error)}") from error
    finally:
        alarm.cancel()
    if stops:  # all signals act like SIGTERM, also before and after `StopSignals`
        for number in stop_signals():
            if number != signal.SIGTERM:
                signal.signal(number, lambda *_: os.kill(os.getpid(), signal.SIGTERM))


def end_now(status: int, message: str) -> NoReturn:
    """Ends the process at once, from any thread."""
    try:
        sys.stderr.write(f"{public(message)}\n")
    finally:
        _exit(status)


def end_with(status: int) -> NoReturn:
    """Ends the program, whatever its threads do.

    The compiler's and a tracker's thread are not waited for. Others get `END_SECONDS`: after a save
    that failed, a thread of Orbax waits for minutes.
    """
    if any(thread.name in (COMPILER, TRACKER) for thread in threading.enumerate()):
        _exit(status)
    alarm = threading.Timer(END_SECONDS, _exit, [status])
    alarm.daemon = True
    try:
        alarm.start()
    except RuntimeError:  # the system allows no more threads
        _exit(status)
    sys.exit(status)


def _exit(status: int) -> NoReturn:
    try:
        if "multiprocessing" in sys.modules:
            for worker in sys.modules["multiprocessing"].active_children():
                worker.kill()  # one that hangs would stay
        sys.stderr.flush()
        sys.stdout.flush()
    finally:  # even if they are closed or cannot be written
        os._exit(status)


def joined() -> bool:
    """Whether this process has joined a job of several processes."""
    return _job() is not None


def lost_connection(error: Exception) -> bool:
    """Whether an error says that a connection to another process of the job was lost."""
    text = str(error)
    return type(error).__name__ == "JaxRuntimeError" and any(sign in text for sign in _LOST)


def leave(status: int) -> int:
    """Leaves the job, if there is one; returns the exit status of the command.

    A process that failed does not wait for those that continue. It ends here with its own status,
    because the lost connection would otherwise end it with another one. Its last message names the
    processes that have ended, or that it has not heard from.
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
            end_now(status, f"jaxcls: not all processes ended well: {one_line(error)}")
        return status
    sys.stdout.flush()
    sys.stderr.flush()
    process, count = job.process_id, job.num_processes
    try:
        news = _tell_end(job.client, status, process=process, count=count)
    except jax.errors.JaxRuntimeError:
        news = ["process 0, through which all processes communicate, is gone"]
    if news:
        text = "; ".join([f"process {process} ends with status {status}", *news])
        say(f"jaxcls: {text}", sys.stderr)
    if process == 0:  # it serves the connections of the others, which are about to end
        time.sleep(1)
    _exit(status)


def _tell_end(client: Any, status: int, *, process: int, count: int) -> list[str]:
    """Tells the other processes that this one ends; returns messages about how they ended."""
    before = _ended(client)
    client.key_value_set(f"{_ENDED}{process}", json.dumps(status), allow_overwrite=True)
    until, ended = time.monotonic() + FAREWELL_SECONDS, before
    while len(ended) < count and time.monotonic() < until:
        time.sleep(0.1)
        ended = _ended(client)
    news = []
    if status != EXIT_USER_ERROR:  # a user's mistake has its own message
        news = [f"process {other} had ended with status {its}" for other, its in before.items()]
    if silent := sorted(set(range(count)) - ended.keys()):
        news.append(f"process {', '.join(map(str, silent))} has not reported its end")
    return news


def _ended(client: Any) -> dict[int, int]:
    """The exit status of each process that has reported its end."""
    found = client.key_value_dir_get(_ENDED)
    return {int(key.rpartition("/")[2]): json.loads(status) for key, status in sorted(found)}


def _job() -> Any:
    """JAX's own record of the job, if this process has joined one.

    JAX's public functions would start the devices, and these may be what has failed.
    """
    if "jax" not in sys.modules:
        return None
    from jax._src.distributed import global_state

    return global_state if global_state.client is not None else None


def _given(options: JobOptions, environment: Mapping[str, str]) -> dict[str, Any]:
    """The values of the options, or else of JAX's variables, by the names of the options."""
    variables = {
        "coordinator": "JAX_COORDINATOR_ADDRESS",
        "num_processes": "JAX_NUM_PROCESSES",
        "process_id": "JAX_PROCESS_ID",
    }
    given = {name: getattr(options, name) for name in variables}
    return {
        name: environment.get(variables[name]) if value is None else value
        for name, value in given.items()
    }


def _checked_place(given: Mapping[str, Any]) -> Place:
    missing = [name for name, value in given.items() if value is None]
    if missing:
        options = ", ".join("--" + name.replace("_", "-") for name in missing)
        raise JobError(
            f"{options}: missing; give all of --coordinator, --num-processes and --process-id (or "
            f"JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID)"
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
    """The scheduler that started this process as one of several, as JAX detects it."""
    from jax._src.clusters import ClusterEnv

    for kind in ClusterEnv._cluster_types:
        if kind.opt_in_only_method:
            continue
        # JAX takes every pod of Kubernetes for a part of a job.
        if kind.__name__ == "K8sCluster" and "JOB_COMPLETION_INDEX" not in environment:
            continue
        # An interactive shell in an allocation of several tasks is a step with one task.
        if kind.name == "slurm" and environment.get("SLURM_STEP_NUM_TASKS") == "1":
            continue
        if kind.is_env_present():
            return kind
    pod = {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= environment.keys()
    if pod and importlib.util.find_spec("kubernetes") is None:
        raise JobError(
            "this pod belongs to an indexed job, and finding the other pods needs the package "
            "kubernetes: install the extra k8s, or give --coordinator, --num-processes and "
            "--process-id"
        )
    return None


def _await_coordinator(address: str, timeout: float) -> None:
    """Waits until process 0 listens, because otherwise JAX would end the program."""
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
        f"start it, correct its address, or wait longer with --join-timeout"
    )


def _require_free(address: str) -> None:
    """Checks that process 0 can listen at its port, because otherwise jaxlib would crash."""
    port = int(address.rpartition(":")[2])
    try:
        with socket.create_server(("", port)):
            pass
    except OSError as error:
        raise JobError(
            f"--coordinator: cannot listen at port {port} ({error.strerror}); end the program that "
            f"uses it, or choose another port for all processes"
        ) from error
