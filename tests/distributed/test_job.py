import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import pytest

from jaxcls.distributed.job import JobError, JobOptions, Place, find_place, lost_connection

SLURM = {
    "SLURM_JOB_ID": "4096",
    "SLURM_STEP_NODELIST": "node[007-009],other1",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
}
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
}
VARIABLES = {
    "JAX_COORDINATOR_ADDRESS": "host:1234",
    "JAX_NUM_PROCESSES": "4",
    "JAX_PROCESS_ID": "3",
}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the variables of a job, in place of those that are there."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "JAX_COORD", "JAX_NUM_PROC", "JAX_PROCESS")):
            monkeypatch.delenv(name)

    def place(options: JobOptions, variables: dict[str, str]) -> Place | None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return find_place(options)

    return place


def test_a_process_alone_has_no_place(environment: Any) -> None:
    assert environment(JobOptions(), {}) is None


def test_variables_give_a_place_and_options_overrule_them(environment: Any) -> None:
    expected = Place(coordinator="host:1234", num_processes=4, process_id=3)
    assert environment(JobOptions(), VARIABLES) == expected
    options = JobOptions(coordinator="[::1]:9", process_id=0)
    expected = Place(coordinator="[::1]:9", num_processes=4, process_id=0)
    assert environment(options, VARIABLES) == expected


def test_slurm_gives_a_place_and_one_device(environment: Any) -> None:
    place = environment(JobOptions(), SLURM)
    assert place.coordinator.startswith("node007:")
    assert (place.num_processes, place.process_id, place.local_device_ids) == (8, 5, [1])


def test_a_task_of_slurm_that_sees_one_gpu_uses_it(environment: Any) -> None:
    place = environment(JobOptions(), SLURM | {"CUDA_VISIBLE_DEVICES": "0"})
    assert place.local_device_ids is None
    place = environment(JobOptions(), SLURM | {"CUDA_VISIBLE_DEVICES": "0,1"})
    assert place.local_device_ids == [1]


@pytest.mark.parametrize("change", [{"SLURM_NTASKS": "1"}, {"SLURM_STEP_NUM_TASKS": "1"}])
def test_a_single_task_of_slurm_is_alone(environment: Any, change: dict[str, str]) -> None:
    assert environment(JobOptions(), SLURM | change) is None


def test_open_mpi_gives_a_place(environment: Any) -> None:
    place = environment(JobOptions(), OPEN_MPI)
    assert place.coordinator.startswith("10.96.0.1:")
    assert (place.num_processes, place.process_id, place.local_device_ids) == (4, 2, [0])


@pytest.mark.filterwarnings("error")
def test_a_pod_that_is_no_indexed_job_is_alone(environment: Any) -> None:
    assert environment(JobOptions(), {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}) is None


@pytest.mark.filterwarnings("ignore:Kubernetes environment detected")
def test_a_pod_of_an_indexed_job_needs_the_package(
    environment: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    pod = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"}
    with pytest.raises(JobError, match="needs the package kubernetes: install the extra k8s"):
        environment(JobOptions(), pod)


END = """
import threading, time
from jaxcls.distributed.job import COMPILER, end_with
threading.Thread(target=time.sleep, args=(60,), name=COMPILER).start()
print("said")
end_with(75)
"""


def test_the_end_does_not_wait_for_a_compile() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", END], capture_output=True, text=True, timeout=30, check=False
    )
    assert (ended.returncode, ended.stdout) == (75, "said\n"), ended.stderr


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        ("UNKNOWN: Gloo all-reduce failed: Connection closed by peer [127.0.0.1]:43678", True),
        ("UNAVAILABLE: failed to connect to all addresses", True),
        ("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8 bytes", False),
    ],
)
def test_errors_of_a_lost_connection_are_told_from_others(text: str, lost: bool) -> None:
    assert lost_connection(jax.errors.JaxRuntimeError(text)) is lost
    assert not lost_connection(RuntimeError(text))


def test_the_end_waits_a_little_for_other_threads() -> None:
    program = """
import threading, time
from jaxcls.distributed import job
job.END_SECONDS = 0.5
threading.Thread(target=time.sleep, args=[60]).start()
job.end_with(2)
"""
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "")
    assert time.monotonic() - start < 30


def test_the_end_after_a_fault_of_ours_waits_a_little_too() -> None:
    program = """
import threading, time
from jaxcls import __main__ as program
from jaxcls.commands import cli
from jaxcls.distributed import job
job.END_SECONDS = 0.5

def fail(arguments):
    threading.Thread(target=time.sleep, args=[60]).start()
    raise KeyError("a fault of ours")

cli.find_command = fail
program.run()
"""
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.endswith("KeyError: 'a fault of ours'\n")
    assert time.monotonic() - start < 30


def test_the_end_does_not_leave_workers_that_hang() -> None:
    program = """
import multiprocessing, os, signal, time
from jaxcls.distributed import job
job.END_SECONDS = 0.5
worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=[600], daemon=True)
worker.start()
os.kill(worker.pid, signal.SIGSTOP)
print(worker.pid, flush=True)
job.end_with(2)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "")
    worker = Path("/proc", done.stdout.strip(), "stat")
    until = time.monotonic() + 10
    while worker.exists() and ") Z " not in worker.read_text():  # nobody may wait for it
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (JobOptions(num_processes=2), "--coordinator, --process-id: missing"),
        (JobOptions(coordinator="host", num_processes=2, process_id=0), "must be HOST:PORT"),
        (JobOptions(coordinator="host:1", num_processes=2, process_id=2), "got 2 of 2"),
    ],
)
def test_half_a_place_is_refused(environment: Any, options: JobOptions, message: str) -> None:
    with pytest.raises(JobError, match=message):
        environment(options, {})


def test_variables_that_are_no_numbers_are_refused(environment: Any) -> None:
    with pytest.raises(JobError, match="whole numbers"):
        environment(JobOptions(), VARIABLES | {"JAX_PROCESS_ID": "first"})


JOIN = "import sys; from jaxcls.commands.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.mark.parametrize("case", ["no coordinator", "nobody comes", "port taken"])
def test_who_does_not_come_is_named_in_one_line(case: str) -> None:
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
        if case != "port taken":
            server.close()
        place = ["--coordinator", f"localhost:{port}", "--num-processes", "2", "--process-id"]
        place += ["1" if case == "no coordinator" else "0", "--join-timeout", "1"]
        start = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", JOIN, "train", "configs/digits.py", *place],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 2, done.stderr
    [line] = done.stderr.splitlines()
    expected = {
        "no coordinator": f"process 0 does not answer at localhost:{port} within 1 s",
        "nobody comes": f"did not all join at localhost:{port} within 1 s",
        "port taken": f"cannot listen at port {port}",
    }
    assert expected[case] in line
    assert time.monotonic() - start < 60
