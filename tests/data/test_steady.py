"""Many batches and evaluation passes take no more memory, threads or files than a few."""

import subprocess
import sys

import pytest

RUN = """
import gc, os, sys, time
import jax
from jaxcls.config import DataConfig
from jaxcls.data.batches import eval_batches, train_batches
from jaxcls.data.device import process_rows, to_device
from jaxcls.data.sources import open_source

num_batches, num_passes = int(sys.argv[2]), int(sys.argv[3])
data = DataConfig(data_dir=sys.argv[1], batch_size=16, canvas_size=8, image_size=8)
sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
rows = process_rows(sharding, data.batch_size)
train, test = (open_source(data, split) for split in ("train", "test"))

def footprint():
    gc.collect()
    with open("/proc/self/statm") as file:
        resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    threads = []
    for _ in range(20):  # those of a closed pipeline end a moment later
        threads.append(len(os.listdir("/proc/self/task")))
        time.sleep(0.1)
    return resident / 2**20, min(threads), len(os.listdir("/proc/self/fd"))

def evaluate(passes):
    for _ in range(passes):
        batches = eval_batches(test, data, batch_size=16, rows=rows)
        with to_device(batches, sharding, depth=2) as arrays:
            for _ in arrays:
                pass

batches = to_device(train_batches(train, data, seed=0, rows=rows), sharding, depth=2)
for _ in range(num_batches // 5):
    next(batches)
evaluate(num_passes // 5)
before = footprint()
for _ in range(num_batches):
    next(batches)
evaluate(num_passes)
after = footprint()
print(*before, *after)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("num_batches", "num_passes"),
    [
        pytest.param(1_000, 5, marks=pytest.mark.slow),
        pytest.param(10_000, 50, marks=pytest.mark.long),
    ],
)
def test_memory_threads_and_files_stay_flat_and_the_end_is_clean(
    digits, digits_dir, num_batches, num_passes
):
    sizes = (str(num_batches), str(num_passes))
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", RUN, str(digits_dir), *sizes],
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert (run.returncode, run.stderr) == (0, "")
    memory, threads, files, memory_after, threads_after, files_after = map(
        float, run.stdout.split()
    )
    assert memory_after < memory + 20, run.stdout  # MiB
    assert threads_after <= threads, run.stdout
    assert files_after <= files, run.stdout
