"""Trains image classifiers at hardware speed on TPU and GPU from one config file."""

from __future__ import annotations

# The program's first import, before it can see to signals (jaxcls/signals.py): so without typing,
# which takes longer than all else here. Type checkers know this name.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from jaxcls.classifier import ImageClassifier
    from jaxcls.config import load_config
    from jaxcls.training.loop import train

__version__ = "0.1.0"
__all__ = ["ImageClassifier", "__version__", "load_config", "train"]

_HOMES = {
    "ImageClassifier": "jaxcls.classifier",
    "load_config": "jaxcls.config",
    "train": "jaxcls.training.loop",
}


def __getattr__(name: str) -> Any:
    """Imports what the package offers, and with it jax, when it is first asked for."""
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module 'jaxcls' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
