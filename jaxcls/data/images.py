"""Decoded images by record number, for training and evaluation; thread-safe."""

import abc
import itertools
from typing import TYPE_CHECKING

import numpy as np

from jaxcls.data.decode import decode_image
from jaxcls.data.resize import center_crop, fit
from jaxcls.data.source import Label, Source
from jaxcls.system.errors import BrokenImageError, DataError

if TYPE_CHECKING:
    from jaxcls.config import DataConfig

LARGE_PIXELS = 89_478_485  # 256 MiB when decoded

type Example = tuple[np.ndarray, Label]  # uint8 [height, width, channels], label


class Images(abc.ABC):
    """The images of a source after the host's preprocessing.

    Attributes:
      source: the data set.
      data: the preprocessing.
    """

    def __init__(self, source: Source, data: "DataConfig"):
        self.source = source
        self.data = data

    @abc.abstractmethod
    def __getitem__(self, record: int) -> Example:
        """Returns the image and label of a record.

        Raises:
          BrokenImageError: the image cannot be decoded.
          DataError: the record cannot be read.
        """

    def _unless_skipping(self, error: BrokenImageError) -> None:
        """Raises the error, with advice, unless data.broken is "skip"."""
        if self.data.broken == "error":
            raise BrokenImageError(
                f'{error}; replace or remove it, or set data.broken to "skip"'
            ) from error


class TrainingImages(Images):
    """Images shrunk to the canvas size.

    They are cached in memory if the canvases of the whole set fit into `data.cache_gib`.
    """

    def __init__(self, source: Source, data: "DataConfig"):
        super().__init__(source, data)
        needed = len(source) * data.canvas_size**2 * data.channels
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
        """Returns an example, and whether it replaces the record's own broken image.

        With data.broken "skip", the next record with a good image replaces a broken one. This
        depends on the data only, so it is the same in every process, thread and resumed run.

        Raises:
          DataError: a record cannot be read or decoded, or no image of the set can be decoded.
        """
        for candidate in itertools.chain(range(record, len(self.source)), range(record)):
            try:
                return self[candidate], candidate != record
            except BrokenImageError as error:
                self._unless_skipping(error)
        raise DataError(f"none of the {len(self.source)} images of {self.source.name} is readable")


class EvaluationImages(Images):
    """Images as the network gets them: resized and centre-cropped."""

    def __getitem__(self, record: int) -> Example:
        stored = self.source[record]
        image = whole_image(stored.image, self.data, where=self.source.describe(record))
        return evaluation_image(image, self.data), stored.label

    def or_none(self, record: int) -> Example | None:
        """Returns an example; None if its image is broken and data.broken is "skip".

        Raises:
          DataError: the record cannot be read or decoded.
        """
        try:
            return self[record]
        except BrokenImageError as error:
            self._unless_skipping(error)
            return None


def training_image(encoded: bytes, data: "DataConfig", *, where: str) -> np.ndarray:
    """Decodes an image and shrinks it to the canvas size.

    Args:
      encoded: the content of an image file.
      data: `canvas_size`, `channels`, `value_range`, `background` and `max_pixels` are used.
      where: the name of the image in errors.

    Returns:
      uint8 [height, width, channels], both at most canvas_size.

    Raises:
      BrokenImageError: it cannot be decoded.
    """
    image = decode_image(
        encoded,
        where=where,
        channels=data.channels,
        value_range=data.value_range,
        background=data.background,
        longest=data.canvas_size,
        max_pixels=data.max_pixels,
    )
    return fit(image, data.canvas_size)


def whole_image(encoded: bytes, data: "DataConfig", *, where: str) -> np.ndarray:
    """Decodes an image for evaluation and prediction.

    Args:
      encoded: the content of an image file.
      data: `channels`, `value_range`, `background` and `max_pixels` are used.
      where: the name of the image in errors.

    Returns:
      uint8 [height, width, channels] of the stored size. Only JPEGs of more than LARGE_PIXELS are
      decoded at a fraction of it, still many times what a network sees.

    Raises:
      BrokenImageError: it cannot be decoded.
    """
    return decode_image(
        encoded,
        where=where,
        channels=data.channels,
        value_range=data.value_range,
        background=data.background,
        scale_above=LARGE_PIXELS,
        max_pixels=data.max_pixels,
    )


def evaluation_image(image: np.ndarray, data: "DataConfig") -> np.ndarray:
    """Preprocesses a decoded image for evaluation and prediction.

    Args:
      image: uint8 [height, width, channels].
      data: `image_size`, `crop_fraction` and `interpolation` are used.

    Returns:
      uint8 [height, width, channels] of `image_size`.
    """
    assert data.interpolation != "auto", "resolve() has replaced it"
    return center_crop(image, data.image_size, data.crop_fraction, data.interpolation)
