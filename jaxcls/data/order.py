"""The record in each row of each training batch: a function of seed and step only.

Batch k takes examples k * n to k * n + n - 1 of an endless sequence that contains the whole data
set once an epoch, each epoch in another order. n is batch_size, or with repeated augmentation
(Hoffer et al., 2020) batch_size / repeats: each example then has `repeats` rows, n rows apart. An
epoch always contains every example once, so with `repeats` it has that many times as many rows.
"""

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
from grain.experimental import index_shuffle

from jaxcls.system.errors import DataError

if TYPE_CHECKING:
    from jaxcls.config import DataConfig

type Rows = np.ndarray | range


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
      seed: the seed of the first epoch's permutation. A permutation is computed element by element,
        never as a whole.
    """

    num_examples: int
    examples_per_batch: int
    examples_per_epoch: int
    seed: int

    def records(self, step: int, rows: Rows) -> np.ndarray:
        """Returns the record numbers of some rows of batch `step`, int32 [len(rows)]."""
        records = np.empty(len(rows), np.int32)
        for i, row in enumerate(rows):
            example = step * self.examples_per_batch + int(row) % self.examples_per_batch
            epoch, place = divmod(example, self.examples_per_epoch)
            records[i] = index_shuffle(
                place,
                max_index=self.num_examples - 1,
                seed=(self.seed + epoch) % 2**32,
                rounds=4,
            )
        return records


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
