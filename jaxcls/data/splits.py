"""The syntax of splits, which is that of TFDS: train, train[:90%], train[-500:]+test."""

from collections.abc import Mapping
from typing import Any

import tensorflow_datasets as tfds

from jaxcls.config.decoding import nearest
from jaxcls.system.errors import DataError


def parse_split(
    split: str, splits: Mapping[str, Any], *, name: str, field: str = "split", hint: str = ""
) -> list[tuple[str, slice]]:
    """Parses a split into parts of the stored splits.

    Args:
      split: in TFDS syntax.
      splits: stored split -> an object with `num_examples` and `shard_lengths`.
      name: the name of the data set, for error messages.
      field: the name of the field that gave the split, for error messages.
      hint: the likely reason for an empty split, added to the error message.

    Returns:
      Pairs of a stored split and a slice of its examples, in order.

    Raises:
      DataError: there is no such split, or it has no examples.
    """
    try:
        parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(splits)
    except ValueError as error:
        bases = [part.partition("[")[0].strip() for part in split.split("+")]
        missing = next((base for base in bases if base and base not in (*splits, "all")), None)
        problem = (
            str(error).splitlines()[0]
            if missing is None
            else f"there is no split {missing!r}{nearest(missing, splits)}; name one that exists"
        )
        raise DataError(
            f"{field}: {split!r} of {name}: {problem} (splits: {describe_splits(splits)})"
        ) from error
    slices = [(part.splitname, slice(part.from_, part.to)) for part in parts]
    if not any(len(range(splits[stored].num_examples)[part]) for stored, part in slices):
        known = describe_splits(splits)
        raise DataError(f"{field}: {split!r} of {name} has no examples (splits: {known}){hint}")
    return slices


def describe_splits(splits: Mapping[str, Any]) -> str:
    """Returns the names and sizes of the stored splits, for the user."""
    return ", ".join(f"{name} {split.num_examples:,}" for name, split in splits.items())
