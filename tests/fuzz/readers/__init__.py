"""The readers of jaxcls that are given damaged files, with good files to damage.

All good files are made here. The numbers in them are few, so that damage hits what describes them.
"""

from collections.abc import Callable

from readers import datasets, images, runs, weights
from readers.reader import Reader

__all__ = ["READERS"]

READERS: dict[str, Callable[[], Reader]] = (
    weights.READERS | runs.READERS | images.READERS | datasets.READERS
)
