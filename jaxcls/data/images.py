"""Decoded images by record number, for training and evaluation; safe to use from many threads."""

import abc
import itertools
from typing import TYPE_CHECKING

import numpy as np

from jaxcls.data.decode import decode_image
from jaxcls.data.resize import center_crop, fit
from jaxcls.data.source import Source
from jaxcls.system.errors import BrokenImageError, DataError

if TYPE_CHECKING:
    from jaxcls.config import DataConfig

LARGE_PIXELS = 89_478_485  # 256 MiB once they are decoded

type Example = tuple[np.ndarray, int]  # uint8 [height, width, 3], label


class Images(abc.ABC):
    """Images of a source, as far as the host prepares them.

    Attributes:
      source: where they come from.
      data: how they are prepared.
    """

    def __init__(self, source: Source, data: "DataConfig"):
        self.source = source
        self.data = data

    @abc.abstractmethod
    def __getitem__(self, record: int) -> Example:
        """The image and label of a record.

        Raises:
          DataError: it cannot be read; a BrokenImageError: it cannot be decoded.
        """

    def _unless_skipping(self, error: BrokenImageError) -> None:
        """Raises the error, with advice, unless data.broken is "skip"."""
        if self.data.broken == "error":
            raise BrokenImageError(
                f'{error}; replace or remove it, or set data.broken to "skip"'
            ) from error


class TrainingImages(Images):
    """Images no larger than the canvas.

    They are kept in memory when the canvases of the whole set would fit into `data.cache_gib`.
    """

    def __init__(self, source: Source, data: "DataConfig"):
        super().__init__(source, data)
        needed = len(source) * data.canvas_size**2 * 3
        self._kept: dict[int, Example] | None = {} if needed <= data.cache_gib * 2**30 else None

    def __getitem__(self, record: int) -> Example:
        if self._kept is not None and record in self._kept:
            return self._kept[record]
        stored = self.source[record]
        image = training_image(stored.image, self.data, where=self.source.describe(record))
        example = image, stored.label
        if self._kept is not None:
            self._kept[record] = example
        return example

    def or_next(self, record: int) -> tuple[Example, bool]:
        """A record, or with data.broken "skip" the next one that is not broken; and which it was.

        What stands in for a broken image follows from the set alone, so every process, thread and
        resumed run finds the same.

        Raises:
          DataError: as for a record; or no image of the set can be decoded.
        """
        for candidate in itertools.chain(range(record, len(self.source)), range(record)):
            try:
                return self[candidate], candidate != record
            except BrokenImageError as error:
                self._unless_skipping(error)
        raise DataError(f"none of the {len(self.source)} images of {self.source.name} is readable")


class EvaluationImages(Images):
    """Images as the network sees them: resized and centre-cropped."""

    def __getitem__(self, record: int) -> Example:
        stored = self.source[record]
        image = whole_image(stored.image, self.data, where=self.source.describe(record))
        return evaluation_image(image, self.data), stored.label

    def or_none(self, record: int) -> Example | None:
        """A record, or with data.broken "skip" None if it is broken.

        Raises:
          DataError: as for a record.
        """
        try:
            return self[record]
        except BrokenImageError as error:
            self._unless_skipping(error)
            return None


def training_image(encoded: bytes, data: "DataConfig", *, where: str) -> np.ndarray:
    """Decodes an image for its canvas.

    Args:
      encoded: content of an image file.
      data: `canvas_size`, `background` and `max_pixels` are used.
      where: what to call the image in an error.

    Returns:
      uint8 [height, width, 3], both at most canvas_size.

    Raises:
      BrokenImageError: it cannot be decoded.
    """
    image = decode_image(
        encoded,
        where=where,
        background=data.background,
        longest=data.canvas_size,
        max_pixels=data.max_pixels,
    )
    return fit(image, data.canvas_size)


def whole_image(encoded: bytes, data: "DataConfig", *, where: str) -> np.ndarray:
    """Decodes an image for evaluation and prediction.

    Args:
      encoded: content of an image file.
      data: `background` and `max_pixels` are used.
      where: what to call the image in an error.

    Returns:
      uint8 [height, width, 3], as stored but for JPEGs of more than LARGE_PIXELS: those have no
      more, and still many times what a network sees.

    Raises:
      BrokenImageError: it cannot be decoded.
    """
    return decode_image(
        encoded,
        where=where,
        background=data.background,
        scale_above=LARGE_PIXELS,
        max_pixels=data.max_pixels,
    )


def evaluation_image(image: np.ndarray, data: "DataConfig") -> np.ndarray:
    """Preprocesses a decoded image for evaluation and prediction.

    Args:
      image: uint8 [height, width, 3].
      data: `image_size`, `crop_fraction` and `interpolation` are used.

    Returns:
      uint8 [image_size, image_size, 3].
    """
    assert data.interpolation != "auto", "resolved before data is read"
    return center_crop(image, data.image_size, data.crop_fraction, data.interpolation)
