"""Many batches and evaluation passes take no more memory, threads or files than a few."""

import subprocess
import sys

import pytest

RUN = """
import gc, os, sys
import jax
from jaxcls.config import DataConfig
from jaxcls.data.batches import eval_batches, train_batches
from jaxcls.data.device import process_rows, to_device
from jaxcls.data.sources import open_source

data = DataConfig(data_dir=sys.argv[1], batch_size=16, canvas_size=8, image_size=8)
sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
rows = process_rows(sharding, data.batch_size)
train, test = (open_source(data, split) for split in ("train", "test"))

def footprint():
    gc.collect()
    with open("/proc/self/statm") as file:
        resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return resident / 2**20, len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))

def evaluate(passes):
    for _ in range(passes):
        batches = eval_batches(test, data, batch_size=16, rows=rows)
        with to_device(batches, sharding, depth=2) as arrays:
            for _ in arrays:
                pass

batches = to_device(train_batches(train, data, seed=0, rows=rows), sharding, depth=2)
for _ in range(2_000):
    next(batches)
evaluate(10)
before = footprint()
for _ in range(10_000):
    next(batches)
evaluate(50)
after = footprint()
print(*before, *after)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_threads_and_files_stay_flat_and_the_end_is_clean(digits, digits_dir):
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", RUN, str(digits_dir)],
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
