"""The record of a checkpoint: what the caller says of it, and the digests of its arrays."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from jaxcls.runs.fingerprint import fingerprint


def make_record(
    step: int, arrays: Mapping[str, Any], *, metadata: Mapping[str, Any], metric: float | None
) -> dict[str, Any]:
    """Makes the record of a step, as it is after it was written to JSON and read again.

    Args:
      step: the training step.
      arrays: the arrays of its state, by name.
      metadata: what the caller saves with it.
      metric: its score, or None.

    Raises:
      TypeError, ValueError: the metadata or the metric is not JSON.
    """
    record = {
        "step": step,
        "metric": None if metric is None else float(metric),
        "metadata": dict(metadata),
        "arrays": fingerprint(arrays),
    }
    return json.loads(json.dumps(record, allow_nan=False))


def is_record(record: Any) -> bool:
    """Whether JSON has the form that `make_record` returns."""
    match record:
        case {
            "step": int(),
            "metric": None | int() | float(),
            "metadata": dict(),
            "arrays": dict(),
        }:
            return all(_is_fingerprint(array) for array in record["arrays"].values())
    return False


def sealed(record: Any) -> dict[str, Any]:
    """What is written of a record: itself and its checksum."""
    return {"record": record, "sha256": checksum(record)}


def checksum(record: Any) -> str:
    """The SHA-256 of a record, in hexadecimal."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _is_fingerprint(array: Any) -> bool:
    match array:
        case {"shape": [*sizes], "dtype": str(), "digest": str()}:
            return all(type(size) is int and size >= 0 for size in sizes)
    return False
