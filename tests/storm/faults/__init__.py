"""The faults of the storm, by theme."""
