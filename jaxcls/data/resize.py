"""Resizes images for training and evaluation: uint8, 0 to 255, [height, width, channels].

Training images are only shrunk to their canvas (`fit`), because their random crop and resize run on
the device. Evaluation images get here the preprocessing that the weights were evaluated with
(`center_crop`). Both are antialiased, and treat each channel alone, also alpha.
"""

from collections.abc import Callable
from typing import Any, Literal

import cv2
import numpy as np
import PIL.Image

from jaxcls.config.sizes import ImageSize, height_and_width

cv2.setNumThreads(1)  # each image has its own thread already

type Interpolation = Literal["bilinear", "bicubic"]

_FILTERS = {
    "bilinear": PIL.Image.Resampling.BILINEAR,
    "bicubic": PIL.Image.Resampling.BICUBIC,
}


def fit(image: np.ndarray, canvas_size: int) -> np.ndarray:
    """Shrinks an image that is larger than the canvas, antialiased, and keeps its aspect ratio.

    Down to half the size, a filter of three taps and a bilinear resize replace the wide triangle
    filter of an antialiased resize. On photos the result has a PSNR of 46 to 54 dB to Pillow's;
    OpenCV's area resize has 42 to 52 dB and takes three times as long. For images that are hardly
    larger than the canvas the taps are left out (47 dB).

    Args:
      image: uint8 [height, width, channels].
      canvas_size: the largest height and width of the result, in pixels.

    Returns:
      uint8 [h, w, channels] with 1 <= h, w <= canvas_size; the image itself if it already fits.
    """
    height, width = image.shape[:2]
    ratio = max(height, width) / canvas_size
    if ratio <= 1:
        return image
    size = (max(1, round(width / ratio)), max(1, round(height / ratio)))

    def shrink(part: np.ndarray) -> np.ndarray:
        if ratio > 2:
            return cv2.resize(part, size, interpolation=cv2.INTER_AREA)
        if ratio > 1.15:
            # Variances add: the triangle of width `ratio` has ratio² / 6, the bilinear one 1 / 6.
            side = (ratio**2 - 1) / 12
            taps = np.array([side, 1 - 2 * side, side], np.float32)
            part = cv2.sepFilter2D(part, -1, taps, taps, borderType=cv2.BORDER_REPLICATE)
        return cv2.resize(part, size, interpolation=cv2.INTER_LINEAR)

    return _by_channels(image, shrink)


def center_crop(
    image: np.ndarray,
    image_size: ImageSize,
    crop_fraction: float,
    interpolation: Interpolation = "bilinear",
) -> np.ndarray:
    """Resizes an image so that it covers the result, then crops the centre, as for evaluation.

    The resize is Pillow's (antialiased when shrinking), because the published accuracies of image
    classifiers were measured with it.

    Args:
      image: uint8 [height, width, channels].
      image_size: of the result.
      crop_fraction: the share that the crop keeps of the side that decides the scale (of a square,
        the shorter side of the image), in (0, 1].
      interpolation: the kernel of the resize.

    Returns:
      uint8 [height, width, channels].
    """
    kept = height_and_width(image_size)
    # The scale at which the image just covers the crop and its margin.
    resized, side = max(
        zip(uncropped(image_size, crop_fraction), image.shape[:2], strict=True),
        key=lambda pair: pair[0] / pair[1],
    )
    (top, height, y_box), (left, width, x_box) = (
        _resize_window(image.shape[axis], round(image.shape[axis] * resized / side), kept[axis])
        for axis in (0, 1)
    )

    def resize(part: np.ndarray) -> np.ndarray:
        # One call for each axis, because Pillow rounds to 8 bits between the axes, and their order
        # depends on its version: the width is always first before Pillow 13.
        narrowed = PIL.Image.fromarray(part).resize(
            (width, part.shape[0]),
            _FILTERS[interpolation],
            box=(x_box[0], 0, x_box[1], part.shape[0]),
        )
        enlarged = narrowed.resize(
            (width, height), _FILTERS[interpolation], box=(0, y_box[0], width, y_box[1])
        )
        return np.asarray(enlarged.crop((left, top, left + kept[1], top + kept[0])))

    return _by_channels(image, resize)


def _by_channels(image: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Changes three channels at a time, and then single ones, [height, width].

    Pillow and OpenCV have at most four channels, and Pillow would take the last of two or four for
    alpha, by which it multiplies the others before it resizes them.
    """
    channels = image.shape[2]
    if channels == 3:
        return change(image)
    edge = channels - channels % 3
    parts = [change(image[:, :, first : first + 3]) for first in range(0, edge, 3)]
    parts += [change(image[:, :, single])[:, :, None] for single in range(edge, channels)]
    return np.concatenate(parts, axis=2)


def uncropped(image_size: ImageSize, crop_fraction: float) -> tuple[int, int]:
    """Returns the smallest height and width in pixels that an image is resized to before a crop."""
    height, width = height_and_width(image_size)
    return max(height, round(height / crop_fraction)), max(width, round(width / crop_fraction))


def crop_range(side: Any, resized: Any, kept: int, *, xp: Any = np) -> tuple[Any, Any, Any]:
    """Returns what to compute of one resized axis for a crop of its centre.

    Resizing all of a 1x4000 image to a height of 256 would take a gigabyte, so only the crop is
    computed, with a margin as wide as the filter.

    Args:
      side: pixels of the image along the axis.
      resized: pixels of the whole image after the resize, at least `kept`.
      kept: pixels that the crop keeps.
      xp: numpy, or jax.numpy for traced numbers.

    Returns:
      The first pixel of the crop, and the first and last (exclusive) pixel to compute: whole
      numbers in floating point.
    """
    begin = xp.floor((resized - kept) / 2)
    margin = xp.ceil(2 / (side / resized)) + 2  # bicubic reaches two pixels of the image
    return (
        begin,
        xp.maximum(0, begin - margin),
        xp.minimum(resized, begin + kept + margin),
    )


def _resize_window(side: int, resized: int, kept: int) -> tuple[int, int, tuple[float, float]]:
    """Returns `crop_range` as Pillow needs it.

    Returns:
      The offset of the crop within the computed pixels, their number, and the part of the image to
      resize, in its pixels.
    """
    begin, first, last = map(int, crop_range(side, resized, kept))
    scale = side / resized
    return begin - first, last - first, (first * scale, min(side, last * scale))
