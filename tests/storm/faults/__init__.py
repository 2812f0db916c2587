"""The faults of the storm, by theme."""

from faults import disks, files, inputs, jobs, kills, lasting, signals
from faults.disks import can_mount
from faults.fault import Fault

__all__ = ["FAULTS", "can_mount"]

FAULTS: dict[str, Fault] = (
    kills.FAULTS
    | files.FAULTS
    | disks.FAULTS
    | signals.FAULTS
    | jobs.FAULTS
    | inputs.FAULTS
    | lasting.FAULTS
)
