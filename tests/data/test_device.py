import itertools
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P
from ports import free_address
from xla_flags import xla_flags

from jaxcls.config import DataConfig
from jaxcls.data import device
from jaxcls.data.batches import eval_batches, train_batches
from jaxcls.data.device import process_rows, require_patience, to_device
from jaxcls.system.errors import DataError
from jaxcls.system.output import warn_once


def config():
    return DataConfig(batch_size=16, canvas_size=6, image_size=4)


def take(number, iterator):
    try:
        return list(itertools.islice(iterator, number))
    finally:
        iterator.close()


def assert_same(batches, others):
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name], err_msg=name)


def mesh_sharding(order=(0, 1, 2, 3, 4, 5, 6, 7), *, spec=None, shape=(8,), axes=("data",)):
    assert jax.device_count() == 8, "set XLA_FLAGS=--xla_force_host_platform_device_count=8"
    devices = np.array(jax.devices())[list(order)].reshape(shape)
    mesh = Mesh(devices, axes, axis_types=(AxisType.Auto,) * len(axes))
    return NamedSharding(mesh, P("data") if spec is None else spec)


SHARDINGS = {
    "plain": lambda: mesh_sharding(),
    "permuted": lambda: mesh_sharding((5, 2, 7, 0, 1, 6, 3, 4)),
    "replicated over model": lambda: mesh_sharding(
        (5, 2, 7, 0, 1, 6, 3, 4), shape=(4, 2), axes=("data", "model")
    ),
    "two axes": lambda: mesh_sharding(spec=P(("x", "y")), shape=(4, 2), axes=("x", "y")),
    "replicated": lambda: mesh_sharding(spec=P()),
    "one device": lambda: SingleDeviceSharding(jax.devices()[3]),
}


@pytest.mark.parametrize("kind", SHARDINGS)
def test_global_arrays_keep_every_row_in_place(numbered, kind):
    sharding = SHARDINGS[kind]()
    rows = process_rows(sharding, 16)
    assert rows.tolist() == list(range(16))
    expected = take(4, train_batches(numbered(), config(), seed=0, rows=rows))
    with to_device(
        train_batches(numbered(), config(), seed=0, rows=rows), sharding, depth=2
    ) as batches:
        actual = take(4, batches)
    assert_same(actual, expected)
    for array in actual[0].values():
        assert array.sharding.is_equivalent_to(sharding, array.ndim)


def test_no_thread_is_left(numbered):
    before = set(threading.enumerate())
    with to_device(
        train_batches(numbered(), config(), seed=0, rows=range(16)), mesh_sharding(), depth=2
    ) as batches:
        next(batches)
    dropped = to_device(
        train_batches(numbered(), config(), seed=0, rows=range(16)), mesh_sharding(), depth=1
    )
    del dropped
    unfinished = train_batches(numbered(), config(), seed=0, rows=range(16))
    next(unfinished)
    unfinished.close()
    list(eval_batches(numbered(), config(), batch_size=16, rows=range(16)))
    deadline = time.monotonic() + 5
    while (left := set(threading.enumerate()) - before) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not left


def test_batch_that_the_devices_do_not_divide():
    with pytest.raises(DataError, match=r"data.batch_size: 12 cannot be divided .* 8"):
        process_rows(mesh_sharding(), 12)


def test_to_device_keeps_to_its_depth():
    made = []

    def batches():
        for number in itertools.count():
            made.append(number)
            yield {"number": np.full(8, number)}

    with to_device(batches(), mesh_sharding(), depth=3) as arrays:
        for number in range(3):
            assert np.asarray(next(arrays)["number"])[0] == number
        time.sleep(0.3)
        assert len(made) <= 3 + 3 + 1


def test_to_device_ends_with_its_batches():
    with to_device(iter([{"x": np.arange(8)}] * 2), mesh_sharding(), depth=5) as arrays:
        assert len(list(arrays)) == 2
        assert list(arrays) == []


def test_errors_reach_the_consumer_after_the_batches_before():
    closed = []

    def batches():
        try:
            yield {"x": np.arange(8)}
            raise DataError("record 9: gone")
        finally:
            closed.append(True)

    arrays = to_device(batches(), mesh_sharding(), depth=2)
    assert next(arrays)["x"].shape == (8,)
    with pytest.raises(DataError, match="record 9: gone"):
        next(arrays)
    with pytest.raises(StopIteration):
        next(arrays)
    assert closed == [True]


def test_a_wait_that_is_given_up_leaves_the_batch_that_hangs(numbered):
    free, waits = threading.Event(), []

    def hanging():
        yield {"x": np.zeros(8)}
        free.wait(60)
        yield {"x": np.zeros(8)}

    def give_up(seconds):
        waits.append(seconds)
        require_patience(numbered(size=8), seconds, most=1)

    begin = time.monotonic()
    with to_device(hanging(), mesh_sharding(), depth=1, on_wait=give_up) as batches:
        next(batches)
        with pytest.raises(DataError, match=r"no batch came for 2 s; the disk, the network or a"):
            next(batches)
        assert list(batches) == []
    assert time.monotonic() - begin < 30
    assert waits == [0.5, 1.0, 1.5]
    free.set()
    require_patience(numbered(size=8), 1e9, most=0)


def test_closing_closes_the_batches_behind():
    closed = []

    def batches():
        try:
            while True:
                yield {"x": np.arange(8)}
        finally:
            closed.append(True)

    arrays = to_device(batches(), mesh_sharding(), depth=2)
    arrays.close()
    arrays.close()
    assert closed == [True]
    with pytest.raises(StopIteration):
        next(arrays)


@pytest.mark.parametrize("place", ["at the first batch", "while full", "while it closes"])
def test_leaving_does_not_wait_for_data_that_hang(place, monkeypatch, caplog):
    free = threading.Event()

    def batches():
        try:
            for _ in range(4 if place == "while full" else 0):
                yield {"x": np.zeros(8)}
            if place != "while it closes":
                free.wait(30)
            yield {"x": np.zeros(8)}
            yield {"x": np.zeros(8)}
        finally:
            free.wait(30)

    warn_once.cache_clear()
    monkeypatch.setattr(device, "CLOSE_SECONDS", 0.3)
    before = set(threading.enumerate())
    for _ in range(2):
        begin = time.monotonic()
        with to_device(batches(), mesh_sharding(), depth=1) as arrays:
            time.sleep(0.1)
        assert time.monotonic() - begin < 10
        assert list(arrays) == []
    assert [record.getMessage() for record in caplog.records if record.name == "jaxcls"] == [
        "the data hang: a batch that is no longer needed is still being made after 0.3 s; "
        "continuing without waiting for it"
    ]
    free.set()  # then the threads end
    deadline = time.monotonic() + 10
    while set(threading.enumerate()) - before:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("fails", [False, True])
def test_an_error_while_the_batches_close_reaches_the_consumer(fails):
    class Batches(Iterator):
        first = True

        def __next__(self):
            if self.first:
                self.first = False
                return {"x": np.zeros(8)}
            raise DataError("record 9: gone") if fails else StopIteration

        def close(self):
            raise OSError("cannot be closed")

    with to_device(Batches(), mesh_sharding(), depth=2) as arrays:
        next(arrays)
        with pytest.raises(DataError if fails else OSError, match="gone" if fails else "closed"):
            next(arrays)


TRAIN = """
import sys
import jax
from jaxcls.config import DataConfig
from jaxcls.data.batches import train_batches
from jaxcls.data.device import process_rows, to_device
from jaxcls.data.sources import open_source

data = DataConfig(data_dir=sys.argv[1], batch_size=32, canvas_size=16)
sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
source = open_source(data, "train")
rows = process_rows(sharding, data.batch_size)
batches = to_device(train_batches(source, data, seed=0, rows=rows), sharding, depth=2)
for _ in range(3):
    next(batches)
assert "tensorflow" not in sys.modules
assert "sklearn" not in sys.modules
print("fed")
# No close: leaving in the middle must be clean too.
"""


def test_training_path_imports_no_tensorflow_and_leaves_quietly(digits, digits_dir):
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", TRAIN, str(digits_dir)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "fed\n", "")


PROCESS = """
import sys
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxcls.data.device import globalize, process_rows

address, process = sys.argv[1], int(sys.argv[2])
jax.distributed.initialize(address, 2, process)
assert jax.device_count() == 4
by_process = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
devices = np.array(by_process)[[2, 0, 3, 1]]  # the processes' devices take turns
sharding = NamedSharding(
    Mesh(devices, "data", axis_types=(AxisType.Auto,)), PartitionSpec("data")
)
rows = process_rows(sharding, 8)
assert rows.tolist() == ([2, 3, 6, 7], [0, 1, 4, 5])[process], rows
array = globalize({"x": rows * 10}, sharding)["x"]
assert array.shape == (8,)
for shard in array.addressable_shards:
    np.testing.assert_array_equal(shard.data, np.arange(8)[shard.index] * 10)
print("same")
"""


def test_two_processes_on_an_interleaved_mesh():
    address = free_address()
    environment = {
        **os.environ,
        "XLA_FLAGS": xla_flags(devices=2),
        "JAX_PLATFORMS": "cpu",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(PROCESS), address, str(process)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    for process in processes:
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (0, "same\n"), err
