"""Moves host batches to the devices as global arrays, ahead of their use."""

import contextlib
import queue
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import jax
import numpy as np
from jax.sharding import Mesh

from jaxcls.config import DataConfig
from jaxcls.data.batches import HostBatch, train_batches
from jaxcls.data.source import Source
from jaxcls.distributed.mesh import split_by_example
from jaxcls.system.errors import DataError
from jaxcls.system.output import warn_once

CLOSE_SECONDS = 5.0  # how long closing waits for the batch that is being made, which may hang

BATCH_FIELDS = ("images", "sizes", "labels")  # what a training step takes


@contextlib.contextmanager
def device_batches(
    source: Source,
    data: DataConfig,
    *,
    seed: int,
    mesh: Mesh,
    start: int = 0,
    on_wait: Callable[[float], None] = lambda seconds: None,
) -> Iterator[Iterator[dict[str, jax.Array]]]:
    """Training batches on the devices of all processes, made ahead of their use.

    Args:
      source: the training data.
      data: how it is read and batched.
      seed: decides the order of the examples.
      mesh: the devices, over which each batch is split by example.
      start: the number of the first batch, counted from 0.
      on_wait: as for `to_device`.

    Yields:
      An endless iterator of {"images": uint8 [batch, canvas, canvas, channels], "sizes": int32
      [batch, 2],
      "labels": int32 [batch], or uint8 [batch, classes] if the source has `multi_label`}. Leaving
      the `with` closes it.
    """
    sharding = split_by_example(mesh)
    rows = process_rows(sharding, data.batch_size)
    host_batches = train_batches(source, data, seed=seed, rows=rows, start=start)
    with to_device(host_batches, sharding, depth=data.prefetch, on_wait=on_wait) as batches:
        yield ({name: batch[name] for name in BATCH_FIELDS} for batch in batches)


def require_patience(source: Source, seconds: float, *, most: float) -> None:
    """Ends a wait for the next batch of a split that takes too long; for `on_wait`.

    Args:
      source: the split.
      seconds: how long the wait has taken.
      most: how long it may take; 0 means without end.

    Raises:
      DataError: it has taken longer.
    """
    if 0 < most < seconds:
        raise DataError(
            f"{source.name} {source.split!r}: no batch came for {seconds:.0f} s; the disk, the "
            f"network or a worker that decodes images hangs"
        )


def process_rows(sharding: jax.sharding.Sharding, batch_size: int) -> np.ndarray:
    """Returns the rows of the global batch that this process's devices hold, ascending, each once.

    They follow from the sharding and not from the process number, because a mesh may order devices
    in any way.

    Raises:
      DataError: the sharding does not divide the batch.
    """
    try:
        sharding.shard_shape((batch_size,))
    except ValueError as error:
        raise DataError(
            f"data.batch_size: {batch_size} cannot be divided evenly over {sharding.num_devices} "
            f"devices; choose a multiple"
        ) from error
    indices = sharding.addressable_devices_indices_map((batch_size,))
    spans = {index[0].indices(batch_size) for index in indices.values() if index is not None}
    return np.unique(np.concatenate([np.arange(*span) for span in spans]))


_WAIT_SECONDS = 0.5
_CLOSE_CHECK_SECONDS = 0.05


class DeviceBatches(Iterator[dict[str, jax.Array]]):
    """Batches on the devices, made by `to_device`. Close it, or use it in a `with` statement."""

    def __init__(
        self,
        ready: queue.Queue,
        stop: threading.Event,
        thread: threading.Thread,
        on_wait: Callable[[float], None],
    ):
        self._ready = ready
        self._stop = stop
        self._on_wait = on_wait
        # Also stops when the iterator is garbage-collected, and at exit.
        self._finalizer = weakref.finalize(self, _stop, ready, stop, thread)

    def __next__(self) -> dict[str, jax.Array]:
        if not self._finalizer.alive:
            raise StopIteration
        batch, error = self._get()
        if batch is None:
            self.close()
            raise error or StopIteration
        return batch

    def _get(self) -> Any:
        seconds = 0.0  # counted here, because a clock goes on while the process is suspended
        while True:
            with contextlib.suppress(queue.Empty):
                return self._ready.get(timeout=_WAIT_SECONDS)
            seconds += _WAIT_SECONDS
            try:
                self._on_wait(seconds)
            except BaseException:
                self._abandon()
                raise

    def _abandon(self) -> None:
        """Closes without waiting for the batch that is being made, because it may hang."""
        self._finalizer.detach()
        self._stop.set()

    def close(self) -> None:
        """Ends the thread after its current batch, and closes the host batches.

        A thread that hangs is left behind after `CLOSE_SECONDS`; it ends when its batch comes.
        """
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def to_device(
    batches: Iterator[HostBatch],
    sharding: jax.sharding.Sharding,
    *,
    depth: int,
    on_wait: Callable[[float], None] = lambda seconds: None,
) -> DeviceBatches:
    """Moves this process's rows to its devices, as global arrays, ahead of their use.

    Args:
      batches: this process's rows, in the order of `process_rows`; closing the result closes it.
      sharding: splits the leading axis; the other axes stay whole.
      depth: the number of batches to keep ready.
      on_wait: called twice a second while waiting for the next batch, with the seconds of this
        wait. An error that it raises ends the wait and closes the iterator.

    Returns:
      An iterator of dicts of global arrays, in the same order. An error of `batches` is raised
      after the batches before it.
    """
    ready: queue.Queue = queue.Queue(maxsize=depth)
    stop = threading.Event()
    thread = threading.Thread(
        target=_feed, args=(batches, sharding, ready, stop), name="jaxcls-to-device", daemon=True
    )
    thread.start()
    return DeviceBatches(ready, stop, thread, on_wait)


def _feed(
    batches: Iterator[HostBatch],
    sharding: jax.sharding.Sharding,
    ready: queue.Queue,
    stop: threading.Event,
) -> None:
    """Runs in the thread of `to_device`: puts (batch, None), at the end (None, error or None).

    After `stop` nobody reads, so nothing more is put.
    """
    errors: list[Exception] = []  # the consumer raises the first one
    try:
        for batch in batches:
            if stop.is_set():
                break
            ready.put((globalize(batch, sharding), None))
    except Exception as error:
        errors.append(error)
    try:
        if close := getattr(batches, "close", None):
            close()
    except Exception as error:
        errors.append(error)
    if not stop.is_set():
        ready.put((None, errors[0] if errors else None))


def _stop(ready: queue.Queue, stop: threading.Event, thread: threading.Thread) -> None:
    stop.set()
    # Counted, because a clock goes on while the process is suspended.
    for _ in range(round(CLOSE_SECONDS / _CLOSE_CHECK_SECONDS)):
        with contextlib.suppress(queue.Empty):  # frees a `put` that waits for room
            while True:
                ready.get_nowait()
        thread.join(_CLOSE_CHECK_SECONDS)
        if not thread.is_alive():
            return
    warn_once(
        f"the data hang: a batch that is no longer needed is still being made after "
        f"{CLOSE_SECONDS:g} s; continuing without waiting for it"
    )


def globalize(
    batch: Mapping[str, np.ndarray], sharding: jax.sharding.Sharding
) -> dict[str, jax.Array]:
    """Joins the processes' rows to global arrays.

    Args:
      batch: arrays [local rows, ...], the rows in the order of `process_rows`.
      sharding: splits the leading axis of the global arrays.

    Returns:
      Arrays [global rows, ...].
    """
    (num_local,) = {len(array) for array in batch.values()}
    batch_size = _global_size(num_local, sharding)
    rows = process_rows(sharding, batch_size)

    def place(local: np.ndarray) -> jax.Array:
        def shard(index: Any) -> np.ndarray:
            first, last, _ = index[0].indices(batch_size)
            position = int(np.searchsorted(rows, first))
            return local[position : position + last - first]

        return jax.make_array_from_callback((batch_size, *local.shape[1:]), sharding, shard)

    return {name: place(array) for name, array in batch.items()}


def _global_size(num_local: int, sharding: jax.sharding.Sharding) -> int:
    """Returns the rows of the global batch if this process holds `num_local` of them."""
    probe = sharding.num_devices  # any size that every sharding divides
    num_shards = probe // sharding.shard_shape((probe,))[0]
    num_local_shards = len(process_rows(sharding, num_shards))
    assert num_local % num_local_shards == 0, (num_local, num_local_shards)
    return num_local // num_local_shards * num_shards
