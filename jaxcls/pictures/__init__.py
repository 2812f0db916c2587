"""Figures of data, augmentation, schedules and runs."""
