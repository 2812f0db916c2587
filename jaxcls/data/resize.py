"""Pixels to the size that training and evaluation want: uint8, 0 to 255, [height, width, 3].

Training images are only shrunk to their canvas (`fit`): cropping and resizing them is random and
happens on the device. Evaluation images are preprocessed here, as the weights in use were evaluated
(`center_crop`). Both are antialiased.
"""

import math
from typing import Literal

import cv2
import numpy as np
import PIL.Image

cv2.setNumThreads(1)  # images are spread over threads already; more would get in each other's way

type Interpolation = Literal["bilinear", "bicubic"]

_FILTERS = {
    "bilinear": PIL.Image.Resampling.BILINEAR,
    "bicubic": PIL.Image.Resampling.BICUBIC,
}


def fit(image: np.ndarray, canvas_size: int) -> np.ndarray:
    """Shrinks an image that is larger than the canvas, antialiased, with its aspect kept.

    Down to a half, three taps and a bilinear resize stand for the wider triangle of an antialiased
    one: 46 to 54 dB from Pillow's on photos, where OpenCV's area resize has 42 to 52 and takes
    three times as long. Near the canvas' size the taps are too small to matter (47 dB without).

    Args:
      image: uint8 [height, width, 3].
      canvas_size: largest height and width of the result, in pixels.

    Returns:
      uint8 [h, w, 3] with 1 <= h, w <= canvas_size; the image itself if it already fits.
    """
    height, width = image.shape[:2]
    ratio = max(height, width) / canvas_size
    if ratio <= 1:
        return image
    size = (max(1, round(width / ratio)), max(1, round(height / ratio)))
    if ratio > 2:
        return cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    if ratio > 1.15:
        # Variances add: the triangle of width `ratio` has ratio² / 6, the resize gives 1 / 6 of it.
        side = (ratio**2 - 1) / 12
        taps = np.array([side, 1 - 2 * side, side], np.float32)
        image = cv2.sepFilter2D(image, -1, taps, taps, borderType=cv2.BORDER_REPLICATE)
    return cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)


def center_crop(
    image: np.ndarray,
    image_size: int,
    crop_fraction: float,
    interpolation: Interpolation = "bilinear",
) -> np.ndarray:
    """Evaluation preprocessing: resizes the shorter side, then cuts the centre square.

    The resize is Pillow's (antialiased when shrinking), which the published accuracies of image
    classifiers were measured with.

    Args:
      image: uint8 [height, width, 3].
      image_size: height and width of the result, in pixels.
      crop_fraction: share of the resized shorter side that is kept, in (0, 1].
      interpolation: the resize's kernel.

    Returns:
      uint8 [image_size, image_size, 3].
    """
    shorter = shorter_side(image_size, crop_fraction)
    windows = [
        _crop_window(side, round(side * shorter / min(image.shape[:2])), image_size)
        for side in (image.shape[1], image.shape[0])
    ]
    (left, width, x_box), (top, height, y_box) = windows
    # Pillow 13 chooses which axis comes first, and between them it rounds to 8 bits; before, the
    # width did, always. With a call for each axis an evaluation depends on no version.
    narrowed = PIL.Image.fromarray(image).resize(
        (width, image.shape[0]),
        _FILTERS[interpolation],
        box=(x_box[0], 0, x_box[1], image.shape[0]),
    )
    resized = narrowed.resize(
        (width, height), _FILTERS[interpolation], box=(0, y_box[0], width, y_box[1])
    )
    return np.asarray(resized.crop((left, top, left + image_size, top + image_size)))


def shorter_side(image_size: int, crop_fraction: float) -> int:
    """Pixels of the shorter side before the crop."""
    return max(image_size, round(image_size / crop_fraction))


def _crop_window(side: int, resized: int, image_size: int) -> tuple[int, int, tuple[float, float]]:
    """What to resize along one axis for the centre `image_size` pixels of `resized` ones.

    Resizing all of a 1x4000 image to a height of 256 would take a gigabyte; so only the crop and a
    margin as wide as the filter is made.

    Args:
      side: pixels of the image.
      resized: pixels of the whole image after the resize, at least image_size.
      image_size: pixels that the crop keeps.

    Returns:
      Where the crop begins in what is made, how many pixels are made, and from which part of the
      image, in its pixels.
    """
    scale = side / resized
    begin = (resized - image_size) // 2
    margin = math.ceil(2 / scale) + 2  # bicubic reaches two pixels of the image
    first, last = max(0, begin - margin), min(resized, begin + image_size + margin)
    return begin - first, last - first, (first * scale, min(side, last * scale))
