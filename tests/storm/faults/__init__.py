"""The faults of the storm, by theme."""

from faults import (
    buckets,
    datasets,
    disks,
    files,
    inputs,
    jobs,
    kills,
    lasting,
    rivals,
    signals,
    sweeps,
    weights,
)
from faults.disks import can_mount
from faults.fault import Fault

__all__ = ["FAULTS", "can_mount"]

FAULTS: dict[str, Fault] = (
    kills.FAULTS
    | files.FAULTS
    | disks.FAULTS
    | signals.FAULTS
    | rivals.FAULTS
    | jobs.FAULTS
    | inputs.FAULTS
    | datasets.FAULTS
    | weights.FAULTS
    | sweeps.FAULTS
    | buckets.FAULTS
    | lasting.FAULTS
)
