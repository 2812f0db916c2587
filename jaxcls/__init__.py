"""Trains image classifiers at hardware speed on TPU and GPU from one config file."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxcls.classifier import ImageClassifier

__version__ = "0.1.0"
__all__ = ["ImageClassifier", "__version__"]


def __getattr__(name: str) -> Any:
    """Imports `ImageClassifier`, and with it jax, when it is first asked for."""
    if name == "ImageClassifier":
        from jaxcls.classifier import ImageClassifier

        return ImageClassifier
    raise AttributeError(f"module 'jaxcls' has no attribute {name!r}")
