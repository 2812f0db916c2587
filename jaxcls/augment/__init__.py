"""Random changes to images, compiled on the device: pure functions of a key and a batch."""
