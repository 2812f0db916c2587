"""Worker processes (data.num_workers) under signals: a job of its own process group."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

SIGNALS = [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)]

# Takes batches, as a training does that notes signals and goes on to its next stop.
PROCESS = """
import signal, sys
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: None)
from jaxcls.config import DataConfig
from jaxcls.data.batches import train_batches
from jaxcls.data.sources import open_source

data = DataConfig(batch_size=8, image_size=8, canvas_size=8, num_workers=2)
batches = train_batches(open_source(data, "train"), data, seed=0, rows=range(8))
for word in ("ready", "went on"):
    for _ in range(30):  # more than are made ahead
        next(batches)
    print(word, flush=True)
    sys.stdin.readline()
batches.close()
print("closed", flush=True)
sys.stdin.readline()
"""

# Leaves with an error while its workers hang, as a training does whose evaluation gets no data.
HANGING = """
import contextlib, multiprocessing, os, queue, signal
import jax
from jaxcls.config import DataConfig
from jaxcls.data import device
from jaxcls.data.batches import train_batches
from jaxcls.data.sources import open_source
from jaxcls.distributed import job

device.CLOSE_SECONDS = job.END_SECONDS = 1.0
data = DataConfig(batch_size=8, image_size=8, canvas_size=8, num_workers=2)
batches = train_batches(open_source(data, "train"), data, seed=0, rows=range(8))
sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
with device.to_device(batches, sharding, depth=1) as arrays:
    next(arrays)
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGSTOP)
    with contextlib.suppress(queue.Empty):  # what was made ahead
        while True:
            arrays._ready.get(timeout=2)
print("left", flush=True)
job.end_with(2)
"""


@pytest.fixture
def starting() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROCESS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    yield process
    if members(process):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.fixture
def job(starting: subprocess.Popen[str]) -> subprocess.Popen[str]:
    assert starting.stdout is not None
    assert starting.stdout.readline() == "ready\n"
    return starting


def members(job: subprocess.Popen[str]) -> list[str]:
    """The processes of the job's group that are not just waiting to be collected."""
    listed = subprocess.run(
        ["ps", "-eo", "pgid=,stat="], capture_output=True, text=True, check=True
    )
    pairs = [line.split() for line in listed.stdout.splitlines()]
    return [group for group, state in pairs if int(group) == job.pid and state[0] != "Z"]


def await_end(job: subprocess.Popen[str], *, but: int = 0) -> None:
    """Waits until `but` of the job's processes are left."""
    until = time.monotonic() + 20
    while len(members(job)) > but:
        assert time.monotonic() < until, "workers have outlived it"
        time.sleep(0.1)


def answer(job: subprocess.Popen[str]) -> str:
    """Lets the job go on; returns the next line that it prints."""
    assert job.stdin is not None
    assert job.stdout is not None
    job.stdin.write("\n")
    job.stdin.flush()
    return job.stdout.readline()


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_to_the_whole_group_does_not_take_the_data_away(
    job: subprocess.Popen[str], number: signal.Signals
) -> None:
    assert len(members(job)) >= 3
    os.killpg(job.pid, number)
    time.sleep(0.5)  # what would have ended by then
    assert answer(job) == "went on\n"
    assert answer(job) == "closed\n"
    await_end(job, but=2)  # itself, and what tracks what it shares
    assert answer(job) == ""
    assert job.wait(60) == 0
    await_end(job)


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_while_the_workers_start_does_not_take_the_data_away(
    starting: subprocess.Popen[str], number: signal.Signals
) -> None:
    while len(members(starting)) < 4:  # the two, and one that tracks what they share
        assert starting.poll() is None
        time.sleep(0.01)
    os.killpg(starting.pid, number)
    assert starting.stdout is not None
    assert starting.stdout.readline() == "ready\n"


@pytest.mark.slow
def test_workers_end_with_a_process_that_is_killed(job: subprocess.Popen[str]) -> None:
    job.kill()
    job.wait()
    await_end(job)


@pytest.mark.slow
def test_workers_that_hang_neither_hold_up_the_program_nor_outlive_it() -> None:
    job = subprocess.Popen(
        [sys.executable, "-c", HANGING], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert job.stdout is not None
        assert job.stdout.readline() == "left\n"
        assert job.wait(30) == 2
        await_end(job)
    finally:
        if members(job):
            os.killpg(job.pid, signal.SIGKILL)
        job.communicate()
