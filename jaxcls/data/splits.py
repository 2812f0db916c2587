"""Split syntax, which is TFDS's: train, train[:90%], train[-500:]+test."""

from collections.abc import Mapping
from typing import Any

import tensorflow_datasets as tfds

from jaxcls.config.decoding import nearest
from jaxcls.system.errors import DataError


def parse_split(
    split: str, splits: Mapping[str, Any], *, name: str, field: str = "split", hint: str = ""
) -> list[tuple[str, slice]]:
    """What a split asks for: parts of the stored splits, in order.

    Args:
      split: in TFDS syntax.
      splits: stored split -> anything with `num_examples` and `shard_lengths`.
      name: of the set, for messages.
      field: where the split was asked for, for messages.
      hint: why a split may be empty.

    Returns:
      (stored split, which of its examples) pairs.

    Raises:
      DataError: no such split, or one without examples.
    """
    try:
        parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(splits)
    except ValueError as error:
        bases = [part.partition("[")[0].strip() for part in split.split("+")]
        missing = next((base for base in bases if base and base not in (*splits, "all")), None)
        problem = (
            str(error).splitlines()[0]
            if missing is None
            else f"there is no split {missing!r}{nearest(missing, splits)}; name one that is there"
        )
        raise DataError(
            f"{field}: {split!r} of {name}: {problem} (splits: {describe_splits(splits)})"
        ) from error
    slices = [(part.splitname, slice(part.from_, part.to)) for part in parts]
    if not any(len(range(splits[stored].num_examples)[part]) for stored, part in slices):
        there = describe_splits(splits)
        raise DataError(f"{field}: {split!r} of {name} has no examples (splits: {there}){hint}")
    return slices


def describe_splits(splits: Mapping[str, Any]) -> str:
    """Names and sizes of the stored splits."""
    return ", ".join(f"{name} {split.num_examples:,}" for name, split in splits.items())
