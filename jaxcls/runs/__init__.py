"""The directory of a run: its record, checkpoints, log and trackers, and who may write to it."""
