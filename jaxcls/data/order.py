"""The record in each row of each training batch: a function of seed and step only.

Batch k takes examples k * n to k * n + n - 1 of an endless sequence that contains the whole data
set once an epoch, each epoch in another order. n is batch_size, or with repeated augmentation
(Hoffer et al., 2020) batch_size / repeats: each example then has `repeats` rows, n rows apart. An
epoch always contains every example once, so with `repeats` it has that many times as many rows.

With data.sampling "balanced" the sequence has the classes in equal parts instead, and an epoch is
only its length.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from grain.experimental import index_shuffle

from jaxcls.data.source import Label, classes_of
from jaxcls.system.errors import DataError

if TYPE_CHECKING:
    from jaxcls.config import DataConfig

type Rows = np.ndarray | range

_FEW = 1024  # for an element of fewer numbers `index_shuffle` takes up to 12 ms, of 50,000 5 us


def steps_per_epoch(num_examples: int, data: "DataConfig") -> int | float:
    """Returns the batches in an epoch: whole with last_batch "drop", fractional with "straddle".

    Raises:
      DataError: with "drop", an epoch would have no batch.
    """
    examples_per_batch = data.batch_size // data.repeats
    if data.last_batch == "straddle":
        return num_examples / examples_per_batch
    if num_examples < examples_per_batch:
        raise DataError(
            f"data.batch_size: {data.batch_size} takes {examples_per_batch} examples, more than "
            f"the {num_examples} of an epoch; choose a smaller one, or data.last_batch "
            f'"straddle"'
        )
    return num_examples // examples_per_batch


@dataclasses.dataclass(frozen=True)
class Order:
    """The record in each row of each training batch.

    Attributes:
      num_examples: the number of records in the source.
      examples_per_batch: the number of different examples in a batch; row i has the example
        i % examples_per_batch.
      examples_per_epoch: the number of examples used in an epoch; with last_batch "drop" the
        remainder of the epoch's permutation is skipped.
      seed: the seed of the first epoch's permutation. A permutation of many numbers is computed
        element by element, never as a whole.
    """

    num_examples: int
    examples_per_batch: int
    examples_per_epoch: int
    seed: int

    def records(self, step: int, rows: Rows) -> np.ndarray:
        """Returns the record numbers of some rows of batch `step`, int32 [len(rows)]."""
        return _records(self._record, self.examples_per_batch, step, rows)

    def _record(self, example: int) -> int:
        epoch, place = divmod(example, self.examples_per_epoch)
        return _shuffled(place, self.num_examples, seed=self.seed + epoch)


@dataclasses.dataclass(frozen=True)
class BalancedOrder:
    """The record in each row of each training batch, with the classes in equal parts.

    Each round of the sequence has one example of each class, the classes in a new order. The
    examples of a class come in a new order whenever all of them have come.

    Attributes:
      members: the records of each class that has any, int32 [records]. An image with several
        classes is in each of them; those without any are like one more class.
      examples_per_batch: as for `Order`.
      seeds: the seed of the order of the classes, and then that of each class.
    """

    members: tuple[np.ndarray, ...]
    examples_per_batch: int
    seeds: tuple[int, ...]

    def records(self, step: int, rows: Rows) -> np.ndarray:
        """Returns the record numbers of some rows of batch `step`, int32 [len(rows)]."""
        return _records(self._record, self.examples_per_batch, step, rows)

    def _record(self, example: int) -> int:
        round_, place = divmod(example, len(self.members))
        number = _shuffled(place, len(self.members), seed=self.seeds[0] + round_)
        members = self.members[number]
        epoch, place = divmod(round_, len(members))
        seed = self.seeds[1 + number] + epoch
        return int(members[_shuffled(place, len(members), seed=seed)])


def _records(
    record: Callable[[int], int], examples_per_batch: int, step: int, rows: Rows
) -> np.ndarray:
    first = step * examples_per_batch
    return np.asarray([record(first + int(row) % examples_per_batch) for row in rows], np.int32)


def _shuffled(place: int, count: int, *, seed: int) -> int:
    """The number at a place of a permutation of `count` numbers that the seed decides."""
    if count == 1:
        return 0
    if count < _FEW:
        return int(_permutation(count, seed % 2**32)[place])
    return index_shuffle(place, max_index=count - 1, seed=seed % 2**32, rounds=4)


@functools.lru_cache(maxsize=2**14)  # for each class one, and for the order of the classes
def _permutation(count: int, seed: int) -> np.ndarray:
    """All of a permutation of a few numbers; the random bits are the same in all NumPy versions."""
    return np.argsort(np.random.Philox(key=seed).random_raw(count), kind="stable")


def training_order(num_examples: int, data: "DataConfig", *, seed: int) -> Order:
    """Returns the order of a training run.

    Raises:
      DataError: an epoch would have no batch.
    """
    steps = steps_per_epoch(num_examples, data)
    dropping = data.last_batch == "drop"
    examples_per_batch = data.batch_size // data.repeats
    return Order(
        num_examples=num_examples,
        examples_per_batch=examples_per_batch,
        examples_per_epoch=int(steps) * examples_per_batch if dropping else num_examples,
        # Hashed, because otherwise epoch 1 of a seed would equal epoch 0 of the next seed.
        seed=int(np.random.SeedSequence(seed).generate_state(1)[0]),
    )


def balanced_order(labels: Sequence[Label], data: "DataConfig", *, seed: int) -> BalancedOrder:
    """Returns the order of a training run whose data.sampling is "balanced".

    Args:
      labels: the label of each record.
      data: the batch size and the repeats.
      seed: decides the order.
    """
    members: dict[int, list[int]] = {}
    for record, label in enumerate(labels):
        for number in classes_of(label) or (-1,):
            members.setdefault(number, []).append(record)
    # Hashed, as in `training_order`.
    seeds = np.random.SeedSequence([seed, len(members)]).generate_state(1 + len(members))
    return BalancedOrder(
        members=tuple(np.asarray(members[number], np.int32) for number in sorted(members)),
        examples_per_batch=data.batch_size // data.repeats,
        seeds=tuple(map(int, seeds)),
    )
