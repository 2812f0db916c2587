"""Bytes on disk to global uint8 batches on the devices."""
