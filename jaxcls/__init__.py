"""Trains image classifiers at hardware speed on TPU and GPU from one config file."""

from __future__ import annotations

from jaxcls.system.version import VERSION

# The program's first import, before it can see to signals (jaxcls/system/early_signals.py): so
# without typing, which takes longer than all else here. Type checkers know this name.
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
    """Imports what the package offers, and with it jax, when it is first asked for."""
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module 'jaxcls' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
