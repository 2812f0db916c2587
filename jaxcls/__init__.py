"""Trains image classifiers at hardware speed on TPU and GPU from one config file."""

from __future__ import annotations

from jaxcls.system.version import VERSION

# The program imports this module first, before it handles signals (jaxcls/system/early_signals.py).
# So it does not import typing, which takes longer than all the rest. Type checkers know this name.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from jaxcls.config import load_config
    from jaxcls.inference.classifier import ImageClassifier
    from jaxcls.system.errors import UserError
    from jaxcls.training.loop import train

__version__ = VERSION
__all__ = ["ImageClassifier", "UserError", "__version__", "load_config", "train"]

_HOMES = {
    "ImageClassifier": "jaxcls.inference.classifier",
    "UserError": "jaxcls.system.errors",
    "load_config": "jaxcls.config",
    "train": "jaxcls.training.loop",
}


def __getattr__(name: str) -> Any:
    """Imports a public name, and with it jax, only when it is first used."""
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module 'jaxcls' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
