"""Batches of images on the host: the rows of each global batch that this process's devices hold.

The content of a row depends only on the seed, the batch's number and the row's place in the global
batch. So it stays the same when the number of processes, devices, threads or workers changes, and
when a run resumes at any step.
"""

import contextlib
import dataclasses
import logging
import math
import re
import sys
from collections.abc import Callable, Generator
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any

import grain
import numpy as np
from absl import flags

from jaxcls.config.sizes import height_and_width
from jaxcls.data.images import EvaluationImages, Images, TrainingImages
from jaxcls.data.order import BalancedOrder, Order, Rows, balanced_order, training_order
from jaxcls.data.source import Label, Source
from jaxcls.data.workers import signals_held_back, start_worker
from jaxcls.system.errors import DataError

if TYPE_CHECKING:
    from jaxcls.config import DataConfig

logger = logging.getLogger("jaxcls")

MAX_KILLED = 3  # times in a row that workers may be killed, without a batch between
_WORKER_ENDED = re.compile("Worker process .*(exit code -?[0-9]+)")  # grain's error


type HostBatch = dict[str, np.ndarray]
type HostBatches = Generator[HostBatch, None, None]


def train_batches(
    source: Source, data: "DataConfig", *, seed: int, rows: Rows, start: int = 0
) -> HostBatches:
    """Yields training batches without end; closing the iterator ends its threads and workers.

    Args:
      source: the data set.
      data: the batch size and order, and the number of threads or worker processes.
      seed: decides the order; not negative.
      rows: the rows of the global batch that this process makes.
      start: the number of the first batch.

    Yields:
      images: uint8 [len(rows), canvas_size, canvas_size, channels]; each at the top left, the rest
        zero.
      sizes: int32 [len(rows), 2]; height and width of each image on its canvas.
      labels: int32 [len(rows)]; or if the source has `multi_label`, uint8 [len(rows), num_classes],
        1 for each class that the image has.
      index: int32 [len(rows)]; the number of each row's record in the source.
      broken: bool [len(rows)]; True where that record is broken and another one replaces it.

    Raises:
      DataError: the set is smaller than a batch, a record cannot be read, or an image is broken
        (with data.broken "skip": more than data.max_broken of the images are).
    """
    images = TrainingImages(source, data)
    if data.sampling == "balanced":
        order = balanced_order(source.all_labels(), data, seed=seed)
    else:
        order = training_order(len(source), data, seed=seed)
    load = _LoadTraining(images, order, np.asarray(rows))
    return _run(load, images, start=start)


def eval_batches(source: Source, data: "DataConfig", *, batch_size: int, rows: Rows) -> HostBatches:
    """Yields every example exactly once, in the source's order.

    Every process gets the same number of batches.

    Args:
      source: the data set.
      data: the preprocessing, and the number of threads or worker processes (batch_size is not
        used).
      batch_size: rows of the global batch.
      rows: the rows of the global batch that this process makes.

    Yields:
      images: uint8 [len(rows), height, width, channels] of image_size; resized and centre-cropped.
      labels: as `train_batches`.
      mask: bool [len(rows)]; False for the padding of the last batch (zeros) and for broken images.
      index: int32 [len(rows)]; the number of each row's record in the source, -1 for padding.
      broken: bool [len(rows)]; True for broken images.

    Raises:
      DataError: as `train_batches`.
    """
    images = EvaluationImages(source, data)
    load = _LoadEvaluation(images, np.asarray(rows), batch_size)
    return _run(load, images, start=0, count=-(-len(source) // batch_size))


@dataclasses.dataclass(frozen=True)
class _LoadTraining:
    """Makes this process's rows of batch `step`; is pickled for the worker processes."""

    images: TrainingImages
    order: Order | BalancedOrder
    rows: np.ndarray

    def __call__(self, step: int) -> HostBatch:
        index = self.order.records(step, self.rows)
        data = self.images.data
        canvas = (data.canvas_size, data.canvas_size, data.channels)
        images = np.zeros((len(index), *canvas), np.uint8)
        sizes = np.empty((len(index), 2), np.int32)
        labels = _no_labels(self.images.source, len(index))
        broken = np.empty(len(index), bool)
        for record in dict.fromkeys(index.tolist()):  # decode an image of several rows once
            (image, label), is_broken = self.images.or_next(record)
            height, width = image.shape[:2]
            for i in np.flatnonzero(index == record):
                images[i, :height, :width] = image
                sizes[i], broken[i] = (height, width), is_broken
                _set_label(labels, int(i), label)
        return {
            "images": images,
            "sizes": sizes,
            "labels": labels,
            "index": index,
            "broken": broken,
        }


@dataclasses.dataclass(frozen=True)
class _LoadEvaluation:
    """Makes this process's rows of evaluation batch `step`; is pickled for the worker processes."""

    images: EvaluationImages
    rows: np.ndarray
    batch_size: int

    def __call__(self, step: int) -> HostBatch:
        index = step * self.batch_size + self.rows
        index = np.where(index < len(self.images.source), index, -1).astype(np.int32)
        data = self.images.data
        images = np.zeros((len(index), *height_and_width(data.image_size), data.channels), np.uint8)
        labels = _no_labels(self.images.source, len(index))
        mask = np.zeros(len(index), bool)
        for i in np.flatnonzero(index >= 0):
            if (example := self.images.or_none(int(index[i]))) is not None:
                images[i], label = example
                _set_label(labels, int(i), label)
                mask[i] = True
        return {
            "images": images,
            "labels": labels,
            "mask": mask,
            "index": index,
            "broken": (index >= 0) & ~mask,
        }


def _no_labels(source: Source, count: int) -> np.ndarray:
    """Zeros in the form of a batch's labels; see `train_batches`."""
    if source.multi_label:
        return np.zeros((count, source.num_classes), np.uint8)
    return np.zeros(count, np.int32)


def _set_label(labels: np.ndarray, row: int, label: Label) -> None:
    """Writes the label of a record into a row of `_no_labels`."""
    if isinstance(label, tuple):
        labels[row, list(label)] = 1
    else:
        labels[row] = label


def _run(
    load: Callable[[int], HostBatch], images: Images, *, start: int, count: int | None = None
) -> HostBatches:
    """Yields `count` batches (None: without end) from `start`, made by threads or workers ahead.

    If a worker is killed, new ones go on at the same batch; a batch depends on its number only.

    Raises:
      DataError: workers are killed again and again.
    """
    number, end = start, math.inf if count is None else start + count
    killed = 0  # since the last batch
    while number < end:
        iterator = _iterate(load, images.data, start=number)
        try:
            while number < end:
                with signals_held_back() if images.data.num_workers else contextlib.nullcontext():
                    batch = next(iterator)
                _note_broken(images, batch["index"][batch["broken"]])
                if images.data.num_workers:
                    # Copy out of the workers' shared memory, so that it is freed.
                    batch = {key: np.array(value) for key, value in batch.items()}
                killed, number = 0, number + 1
                yield batch
        except RuntimeError as error:
            if not (exit_code := _WORKER_ENDED.search(str(error))):
                raise
            killed += 1
            if killed > MAX_KILLED:
                raise DataError(
                    f"data.num_workers: workers that decode images ended {killed} times in a row "
                    f"with {exit_code[1]}; the machine may lack memory: set the field to fewer "
                    f"workers, or to 0, which decodes in threads"
                ) from error
            logger.warning(
                "a worker that decodes images ended with %s (perhaps for lack of memory); new "
                "workers go on at the same batch",
                exit_code[1],
            )
        finally:
            iterator.close()


def _iterate(load: Callable[[int], HostBatch], data: "DataConfig", *, start: int) -> Any:
    """Begins to make batches from `start` on, in threads or workers.

    grain leaks shared memory when the dataset of a worker ends, so it always gets an endless one.
    """
    read = grain.ReadOptions(
        num_threads=data.num_threads,
        prefetch_buffer_size=max(data.prefetch, data.num_threads),
    )
    dataset = grain.MapDataset.range(start, sys.maxsize).map(load).to_iter_dataset(read)
    if data.num_workers:
        if not flags.FLAGS.is_parsed():  # grain's workers read absl flags; jaxcls has none
            flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(
                num_workers=data.num_workers, per_worker_buffer_size=data.prefetch
            ),
            worker_init_fn=start_worker,
        )
        # Started now, because starting it later would unblock the signals that are held back.
        resource_tracker.ensure_running()
    return iter(dataset)


def _note_broken(images: Images, records: np.ndarray) -> None:
    """Logs each broken image once.

    Raises:
      DataError: more than data.max_broken of the images are broken, or all of them.
    """
    source, share = images.source, images.data.max_broken
    allowed = min(int(share * len(source) + 1e-9), len(source) - 1)  # 0.29 * 100 is below 29
    for record in sorted(set(records.tolist()) - source.broken.keys()):
        source.broken[record] = _reason(images, record)
        count = len(source.broken)
        if count > allowed:
            raise DataError(
                f"data.max_broken: more than {share:.2%} of the {len(source)} images of "
                f"{source.name} {source.split!r} are broken (the last one: "
                f"{source.broken[record]}); repair the data, or set the field to "
                f"{math.ceil(1e4 * count / len(source)) / 1e4:g} or more"
            )
        logger.warning("skipped (%d of at most %d): %s", count, allowed, source.broken[record])


def _reason(images: Images, record: int) -> str:
    """Why an image is broken. It is read again, because a worker process tells only that it is."""
    try:
        images[record]
    except DataError as error:
        return str(error)
    return (
        f"{images.source.describe(record)}: it could not be decoded when its batch was made, but "
        f"can be now (is it still being copied?)"
    )
