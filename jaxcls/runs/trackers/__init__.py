"""Trackers: services, besides metrics.csv, that a run's metrics and images are sent to.

To add a tracker, write a file with a function like those in `TRACKERS`, and add it to the table.
"""

from collections.abc import Callable

from jaxcls.config import Config
from jaxcls.runs.trackers import tensorboard, wandb
from jaxcls.runs.trackers.tracker import BeginTracker, TrackedRun, Tracker

__all__ = ["TRACKERS", "BeginTracker", "TrackedRun", "Tracker", "wanted_trackers"]

# For each tracker, by its name in messages: how to begin it, or None if the config does not ask for
# it. The function raises a UserError if the tracker cannot work, such as without its library.
TRACKERS: dict[str, Callable[[Config], BeginTracker | None]] = {
    "TensorBoard's file": tensorboard.how_to_begin,
    "Weights & Biases": wandb.how_to_begin,
}


def wanted_trackers(config: Config) -> dict[str, BeginTracker]:
    """The trackers that a config asks for, by name.

    Raises:
      UserError: one of them cannot work; the message says why.
    """
    found = {name: how_to_begin(config) for name, how_to_begin in TRACKERS.items()}
    return {name: begin for name, begin in found.items() if begin is not None}
