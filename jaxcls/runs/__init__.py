"""The directory of a run: its record, checkpoints, log and trackers, and how it is restored."""
