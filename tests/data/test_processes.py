import contextlib
import itertools
import os
import socket
import subprocess
import sys

import numpy as np

from jaxcls.config import DataConfig
from jaxcls.data.batches import train_batches

# One of two processes with a device each; writes its rows of batches FIRST to FIRST + 2.
PROCESS = """
import itertools, sys
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxcls.config import DataConfig
from jaxcls.data.batches import train_batches
from jaxcls.data.device import process_rows
from jaxcls.data.sources import open_source

address, process, first, data_dir, out = sys.argv[1:]
jax.distributed.initialize(address, 2, int(process))
mesh = Mesh(np.array(jax.devices()), "data", axis_types=(AxisType.Auto,))
rows = process_rows(NamedSharding(mesh, PartitionSpec("data")), 32)
data = DataConfig(data_dir=data_dir, batch_size=32, image_size=16, canvas_size=16)
batches = train_batches(open_source(data, "train"), data, seed=2, rows=rows, start=int(first))
taken = list(itertools.islice(batches, 3))
batches.close()
np.savez(out, rows=rows, **{name: np.stack([b[name] for b in taken]) for name in taken[0]})
"""


def in_two_processes(first, data_dir, folder):
    """Batches `first` to `first` + 2, put together from the rows of both processes."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    outs = [folder / f"{first}-{process}.npz" for process in range(2)]
    arguments = [
        [address, str(process), str(first), str(data_dir), str(out)]
        for process, out in enumerate(outs)
    ]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, *own],
            env={
                **os.environ,
                "JAX_PLATFORMS": "cpu",
                "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        for own in arguments
    ]
    for process in processes:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    parts = [dict(np.load(out)) for out in outs]
    order = np.argsort(np.concatenate([part.pop("rows") for part in parts]))
    assert order.size == 32
    return {
        name: np.concatenate([part[name] for part in parts], axis=1)[:, order] for name in parts[0]
    }


def in_one_process(first, source, data):
    batches = train_batches(source, data, seed=2, rows=range(32), start=first)
    taken = list(itertools.islice(batches, 3))
    batches.close()
    return {name: np.stack([batch[name] for batch in taken]) for name in taken[0]}


def test_one_process_or_two_before_and_after_a_restart(digits, digits_dir, tmp_path):
    data = DataConfig(data_dir=str(digits_dir), batch_size=32, image_size=16, canvas_size=16)
    with contextlib.closing(train_batches(digits, data, seed=2, rows=range(32))) as batches:
        whole = list(itertools.islice(batches, 6))
    for first in (0, 3):
        expected = {
            name: np.stack([batch[name] for batch in whole[first : first + 3]]) for name in whole[0]
        }
        for made in (
            in_one_process(first, digits, data),
            in_two_processes(first, digits_dir, tmp_path),
        ):
            assert made.keys() == expected.keys()
            for name in expected:  # record numbers, pixels and all
                np.testing.assert_array_equal(made[name], expected[name], err_msg=name)
