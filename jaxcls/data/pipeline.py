"""Batch k of a seed: the order of the examples, this process' share of it, the way to the devices.

A training batch is a function of (seed, step) alone. Example r of batch k is example
g = k * batch_size + r of an endless sequence that visits the whole set once an epoch, each epoch in
another order. A process makes only the rows that its devices hold, so that processes, devices,
threads and workers may change, or a run start anywhere, without changing what any row holds.
"""

import abc
import contextlib
import dataclasses
import queue
import sys
import threading
import weakref
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self, cast

import grain
import jax
import numpy as np
from absl import flags

from jaxcls.data.decode import DataError, center_crop, decode_image, fit
from jaxcls.data.sources import Source

if TYPE_CHECKING:
    from jaxcls.config import DataConfig

Batch = dict[str, np.ndarray]
Batches = Generator[Batch, None, None]
Rows = np.ndarray | range


def steps_per_epoch(num_examples: int, data: "DataConfig") -> int | float:
    """Batches an epoch: whole with last_batch "drop", fractional with "straddle".

    Raises:
      DataError: "drop" leaves no batch at all.
    """
    if data.last_batch == "straddle":
        return num_examples / data.batch_size
    if num_examples < data.batch_size:
        raise DataError(
            f"data.batch_size: {data.batch_size} is more than the {num_examples} examples of an "
            f'epoch; choose a smaller one, or data.last_batch "straddle"'
        )
    return num_examples // data.batch_size


@dataclasses.dataclass(frozen=True)
class Order:
    """Which record each row of each training batch holds.

    Attributes:
      num_examples: records in the source.
      batch_size: rows of the global batch.
      examples_per_epoch: how many places of the sequence share a permutation; those that are left
        of it (last_batch "drop") belong to no batch.
      permutations: at e * num_examples + p, the record at place p of epoch e; never computed whole.
    """

    num_examples: int
    batch_size: int
    examples_per_epoch: int
    permutations: Sequence[int]

    def records(self, step: int, rows: Rows) -> np.ndarray:
        """Record numbers of the rows of batch `step`, int32 [len(rows)]."""
        records = np.empty(len(rows), np.int32)
        for i, row in enumerate(rows):
            epoch, place = divmod(step * self.batch_size + int(row), self.examples_per_epoch)
            records[i] = self.permutations[epoch * self.num_examples + place]
        return records


def training_order(num_examples: int, data: "DataConfig", *, seed: int) -> Order:
    """The order of a training run.

    Raises:
      DataError: an epoch would have no batch.
    """
    steps = steps_per_epoch(num_examples, data)
    dropping = data.last_batch == "drop"
    # grain's epoch e of seed s is its epoch 0 of seed s + e: hashed, neighbouring seeds part.
    hashed_seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
    shuffled = grain.MapDataset.range(num_examples).shuffle(seed=hashed_seed)
    return Order(
        num_examples=num_examples,
        batch_size=data.batch_size,
        examples_per_epoch=int(steps) * data.batch_size if dropping else num_examples,
        permutations=cast(Sequence[int], shuffled),
    )


def train_batches(
    source: Source, data: "DataConfig", *, seed: int, rows: Rows, start: int = 0
) -> Batches:
    """Endless training batches; closing the iterator ends its threads and worker processes.

    Args:
      source: where the examples come from.
      data: how they are batched, and with how many threads or processes.
      seed: decides the order; not negative.
      rows: the places in the global batch that this process feeds.
      start: number of the first batch.

    Yields:
      images: uint8 [len(rows), canvas_size, canvas_size, 3]; each at the top left, the rest zero.
      sizes: int32 [len(rows), 2]; height and width of each image on its canvas.
      labels: int32 [len(rows)].
      index: int32 [len(rows)]; record number in the source.

    Raises:
      DataError: the set is smaller than a batch, or a record cannot be read or decoded.
    """
    order = training_order(len(source), data, seed=seed)
    load = _LoadTraining(source, np.asarray(rows), data.canvas_size, order)
    return _run(grain.MapDataset.range(sys.maxsize)[start:].map(load), data)


def eval_batches(source: Source, data: "DataConfig", *, batch_size: int, rows: Rows) -> Batches:
    """Every example exactly once, in the source's order; as many batches in every process.

    Args:
      source: where the examples come from.
      data: preprocessing, threads and processes (its batch_size is not used).
      batch_size: rows of the global batch.
      rows: the places in the global batch that this process feeds.

    Yields:
      images: uint8 [len(rows), image_size, image_size, 3]; resized and centre-cropped.
      labels: int32 [len(rows)].
      mask: bool [len(rows)]; False where the last batch is padded (with zeros).
      index: int32 [len(rows)]; record number in the source, -1 for padding.

    Raises:
      DataError: a record cannot be read or decoded.
    """
    num_batches = -(-len(source) // batch_size)
    load = _LoadEvaluation(
        source, np.asarray(rows), data.image_size, data.crop_fraction, batch_size
    )
    return _run(grain.MapDataset.range(num_batches).map(load), data)


@dataclasses.dataclass(frozen=True)
class _Load(abc.ABC):
    """Makes this process' rows of batch `step`; travels to the worker processes."""

    source: Source
    rows: np.ndarray

    @abc.abstractmethod
    def __call__(self, step: int) -> Batch: ...

    def read(self, index: int) -> tuple[np.ndarray, int]:
        record = self.source[index]
        return decode_image(record.image, where=self.source.describe(index)), record.label


@dataclasses.dataclass(frozen=True)
class _LoadTraining(_Load):
    canvas_size: int
    order: Order

    def __call__(self, step: int) -> Batch:
        index = self.order.records(step, self.rows)
        images = np.zeros((len(index), self.canvas_size, self.canvas_size, 3), np.uint8)
        sizes = np.empty((len(index), 2), np.int32)
        labels = np.empty(len(index), np.int32)
        for i, record in enumerate(index):
            image, labels[i] = self.read(int(record))
            image = fit(image, self.canvas_size)
            height, width = sizes[i] = image.shape[:2]
            images[i, :height, :width] = image
        return {"images": images, "sizes": sizes, "labels": labels, "index": index}


@dataclasses.dataclass(frozen=True)
class _LoadEvaluation(_Load):
    image_size: int
    crop_fraction: float
    batch_size: int

    def __call__(self, step: int) -> Batch:
        places = step * self.batch_size + self.rows
        mask = places < len(self.source)
        images = np.zeros((len(places), self.image_size, self.image_size, 3), np.uint8)
        labels = np.zeros(len(places), np.int32)
        for i in np.flatnonzero(mask):
            image, labels[i] = self.read(int(places[i]))
            images[i] = center_crop(image, self.image_size, self.crop_fraction)
        index = np.where(mask, places, -1).astype(np.int32)
        return {"images": images, "labels": labels, "mask": mask, "index": index}


def _run(batches: grain.MapDataset[Batch], data: "DataConfig") -> Batches:
    """Computes the batches ahead, in threads or worker processes, in order."""
    read = grain.ReadOptions(
        num_threads=data.num_threads,
        prefetch_buffer_size=max(data.prefetch, data.num_threads),
    )
    dataset = batches.to_iter_dataset(read)
    if data.num_workers:
        if (
            not flags.FLAGS.is_parsed()
        ):  # grain's worker start reads absl flags, which we have none of
            flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(
                num_workers=data.num_workers, per_worker_buffer_size=data.prefetch
            )
        )
    iterator = iter(dataset)
    try:
        for batch in iterator:
            # A worker's arrays lie in shared memory that must be let go before the process ends.
            yield {key: np.array(v) for key, v in batch.items()} if data.num_workers else batch
    finally:
        iterator.close()


def process_rows(sharding: jax.sharding.Sharding, batch_size: int) -> np.ndarray:
    """The places in the global batch that this process' devices hold, ascending, each once.

    Taken from the sharding, never from the process number: a mesh may order devices as it likes.

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


class DeviceBatches(Iterator[dict[str, jax.Array]]):
    """Batches already on the devices; made by `to_device`. Close it, or use it in a `with`."""

    def __init__(self, ready: queue.Queue, stop: threading.Event, thread: threading.Thread):
        self._ready = ready
        # Also when the iterator is dropped, and at exit.
        self._finalizer = weakref.finalize(self, _stop, ready, stop, thread)

    def __next__(self) -> dict[str, jax.Array]:
        if not self._finalizer.alive:
            raise StopIteration
        batch, error = self._ready.get()
        if batch is None:
            self.close()
            raise error or StopIteration
        return batch

    def close(self) -> None:
        """Ends the thread and closes the batches behind it. Waits for the batch in the making."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def to_device(
    batches: Iterator[Batch], sharding: jax.sharding.Sharding, *, depth: int
) -> DeviceBatches:
    """Moves this process' rows to its devices, as global arrays, ahead of their use.

    Args:
      batches: this process' rows, in the order of `process_rows`; belongs to the result from now on
        and is closed with it.
      sharding: splits the leading axis; the other axes stay whole.
      depth: batches kept ready.

    Returns:
      An iterator of dicts of global arrays, in the same order. It raises what `batches` raises,
      after the batches before that.
    """
    ready: queue.Queue = queue.Queue(maxsize=depth)
    stop = threading.Event()
    thread = threading.Thread(
        target=_feed, args=(batches, sharding, ready, stop), name="jaxcls-to-device", daemon=True
    )
    thread.start()
    return DeviceBatches(ready, stop, thread)


def _feed(
    batches: Iterator[Batch],
    sharding: jax.sharding.Sharding,
    ready: queue.Queue,
    stop: threading.Event,
) -> None:
    """The thread of `to_device`: puts (batch, None), and at the end (None, error or None)."""
    error = None
    try:
        for batch in batches:
            if stop.is_set():
                break
            ready.put((globalize(batch, sharding), None))
    except Exception as raised:  # the consumer raises it
        error = raised
    finally:
        if close := getattr(batches, "close", None):
            close()
        ready.put((None, error))


def _stop(ready: queue.Queue, stop: threading.Event, thread: threading.Thread) -> None:
    stop.set()
    while thread.is_alive():
        with contextlib.suppress(queue.Empty):  # frees a `put` that waits for room
            ready.get(timeout=0.05)
    thread.join()


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
    """Rows of the global batch of which this process holds `num_local`."""
    probe = sharding.num_devices  # any size that every sharding divides
    num_shards = probe // sharding.shard_shape((probe,))[0]
    num_local_shards = len(process_rows(sharding, num_shards))
    assert num_local % num_local_shards == 0, (num_local, num_local_shards)
    return num_local // num_local_shards * num_shards
