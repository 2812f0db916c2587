import dataclasses
import itertools
import multiprocessing
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from jaxcls.config import DataConfig
from jaxcls.data.decode import DataError
from jaxcls.data.pipeline import (
    eval_batches,
    process_rows,
    steps_per_epoch,
    to_device,
    train_batches,
    training_order,
)


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


def select(batch, rows):
    return {name: array[rows] for name, array in batch.items()}


def config(**fields):
    return DataConfig(**{"batch_size": 16, "canvas_size": 6, "image_size": 4, **fields})


def epochs(size, data, number, seed=0):
    """Record numbers of the first epochs, in order."""
    order = training_order(size, data, seed=seed)
    steps = steps_per_epoch(size, data)
    sequence = [
        order.records(step, range(data.batch_size)) for step in range(int(np.ceil(number * steps)))
    ]
    per_epoch = round(steps * data.batch_size)
    return np.concatenate(sequence)[: number * per_epoch].reshape(number, per_epoch)


@pytest.mark.parametrize("last_batch", ["drop", "straddle"])
@pytest.mark.parametrize("size", [96, 101])
def test_epochs_are_permutations_and_differ(size, last_batch):
    data = config(last_batch=last_batch)
    sequence = epochs(size, data, 4)
    for epoch in sequence:
        assert len(set(epoch.tolist())) == len(epoch) == (96 if last_batch == "drop" else size)
        assert epoch.min() >= 0
        assert epoch.max() < size
    for one, other in itertools.combinations(sequence, 2):
        assert (one == other).mean() < 0.1
    assert (sequence[0] == np.arange(len(sequence[0]))).mean() < 0.1


def test_every_example_is_used_in_time_though_epochs_drop_some():
    assert set(epochs(101, config(), 6).ravel().tolist()) == set(range(101))


def test_seeds_differ_in_every_epoch():
    first, second = (epochs(96, config(), 4, seed=seed) for seed in (0, 1))
    for one, other in itertools.product(first, second):
        assert (one == other).mean() < 0.1


def test_order_is_the_same_forever():
    """A release that changes these numbers changes every resumed run."""
    order = training_order(1442, config(), seed=0)
    assert order.records(0, range(4)).tolist() == [1009, 815, 1316, 246]
    assert order.records(10**6, range(4)).tolist() == [695, 80, 842, 428]


def test_steps_per_epoch():
    assert steps_per_epoch(101, config()) == 6
    assert steps_per_epoch(101, config(last_batch="straddle")) == 101 / 16
    assert steps_per_epoch(5, config(last_batch="straddle")) == 5 / 16
    with pytest.raises(DataError, match=r"data.batch_size: 16 is more than the 15 examples"):
        steps_per_epoch(15, config())


def test_smaller_than_a_batch(numbered):
    with pytest.raises(DataError, match=r"data.batch_size"):
        train_batches(numbered(size=15), config(), seed=0, rows=range(16))
    (batch,) = take(
        1, train_batches(numbered(size=5), config(last_batch="straddle"), seed=0, rows=range(16))
    )
    assert sorted(np.bincount(batch["index"])) == [3, 3, 3, 3, 4]


def test_training_batch(numbered):
    data = config(batch_size=8)
    for batch in take(3, train_batches(numbered(), data, seed=3, rows=range(8))):
        assert {name: (array.shape, array.dtype.name) for name, array in batch.items()} == {
            "images": ((8, 6, 6, 3), "uint8"),
            "sizes": ((8, 2), "int32"),
            "labels": ((8,), "int32"),
            "index": ((8,), "int32"),
        }
        np.testing.assert_array_equal(batch["labels"], batch["index"] % 10)
        assert (batch["sizes"] == 4).all()
        assert (batch["images"][:, :4, :4] == batch["index"][:, None, None, None]).all()
        assert not batch["images"][:, 4:].any()
        assert not batch["images"][:, :, 4:].any()


@pytest.mark.parametrize("last_batch", ["drop", "straddle"])
def test_start_threads_and_rows_change_nothing(numbered, last_batch):
    source, data = numbered(size=101), config(last_batch=last_batch)
    whole = take(20, train_batches(source, data, seed=5, rows=range(16)))
    for start in (1, 6, 13):
        rest = train_batches(source, data, seed=5, rows=range(16), start=start)
        assert_same(take(20 - start, rest), whole[start:])
    for num_threads, prefetch in ((1, 1), (7, 3)):
        other = dataclasses.replace(data, num_threads=num_threads, prefetch=prefetch)
        assert_same(take(20, train_batches(source, other, seed=5, rows=range(16))), whole)
    for rows in (range(8), range(8, 16), np.array([3, 1, 15]), np.arange(0, 16, 2)):
        part = take(20, train_batches(source, data, seed=5, rows=rows))
        assert_same(part, [select(batch, np.asarray(rows)) for batch in whole])


def test_worker_processes_change_nothing(digits, digits_config):
    """And what goes wrong in a worker is raised here, in its turn, as it is."""
    expected = take(4, train_batches(digits, digits_config, seed=1, rows=range(32), start=3))
    labels = np.stack([batch["labels"] for batch in expected])
    rows = np.flatnonzero((labels[:3] != 9).all(axis=0))
    assert (labels[3, rows] == 9).any()
    without_nine = dataclasses.replace(digits, class_names=digits.class_names[:9])
    data = dataclasses.replace(digits_config, num_workers=2, num_threads=1)
    batches = train_batches(without_nine, data, seed=1, rows=rows, start=3)
    assert_same(itertools.islice(batches, 3), [select(batch, rows) for batch in expected[:3]])
    with pytest.raises(DataError, match=r"record \d+ of digits 'train': label 9 is none of the 9"):
        next(batches)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(("size", "batch_size"), [(100, 16), (96, 16), (5, 16), (1, 1), (17, 16)])
@pytest.mark.parametrize("num_processes", [1, 2])
def test_evaluation_sees_every_example_once(numbered, size, batch_size, num_processes):
    source, data = numbered(size=size), config()
    parts = [
        list(eval_batches(source, data, batch_size=batch_size, rows=rows))
        for rows in np.array_split(np.arange(batch_size), num_processes)
    ]
    assert {len(part) for part in parts} == {-(-size // batch_size)}
    seen = []
    for batch in itertools.chain(*parts):
        mask = batch["mask"]
        assert batch["images"].shape[1:] == (4, 4, 3)
        assert (batch["index"][~mask] == -1).all()
        assert not batch["images"][~mask].any()
        assert (batch["images"] == np.where(mask, batch["index"], 0)[:, None, None, None]).all()
        assert (batch["labels"] == np.where(mask, batch["index"] % 10, 0)).all()
        assert batch["images"].dtype == np.uint8
        assert batch["labels"].dtype == batch["index"].dtype == np.int32
        assert mask.dtype == bool
        seen += batch["index"][mask].tolist()
    assert sorted(seen) == list(range(size))


def test_undecodable_image_names_the_record(numbered):
    class Broken(numbered):
        def __getitem__(self, index):
            record = super().__getitem__(index)
            return dataclasses.replace(record, image=b"") if index == 7 else record

    batches = eval_batches(Broken(), config(), batch_size=4, rows=range(4))
    assert next(batches)["index"].tolist() == [0, 1, 2, 3]
    with pytest.raises(DataError, match=r"record 7 of numbered 'train': .*cannot be decoded"):
        next(batches)
    with pytest.raises(StopIteration):
        next(batches)


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


TRAIN = """
import sys
import jax
from jaxcls.config import DataConfig
from jaxcls.data.pipeline import process_rows, to_device, train_batches
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
from jaxcls.data.pipeline import globalize, process_rows

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
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
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
