"""Keras is the peer that the models are compared with; it reads its backend at import."""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")
