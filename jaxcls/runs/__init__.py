"""A run's directory: what it records, its checkpoints, logs and trackers, and how it is restored."""
