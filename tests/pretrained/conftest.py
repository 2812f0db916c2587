"""Keras writes the files that are read back; it reads its backend at import."""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")
