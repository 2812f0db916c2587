"""Encoded bytes to pixels: RGB, uint8, 0 to 255, [height, width, 3].

Training images go on a square canvas as they are (`to_canvas`): cropping and resizing them is
random and happens on the device. Evaluation images are preprocessed here (`center_crop`).
"""

import io
import math

import cv2
import numpy as np
import PIL.Image
import simplejpeg

from jaxcls.errors import UserError


class DataError(UserError):
    """A data set, split, record or image that cannot be used; the message says which and why."""


def decode_image(data: bytes, *, where: str) -> np.ndarray:
    """Decodes an image file's content; grey becomes RGB.

    Args:
      data: a whole file: JPEG, PNG, WebP, GIF (first frame), BMP or whatever Pillow reads.
      where: what to call this image in an error, for example "record 7 of digits train".

    Returns:
      uint8 [height, width, 3], RGB.

    Raises:
      DataError: the bytes are no image, or a damaged or incomplete one.
    """
    if data[:2] == b"\xff\xd8":
        try:
            if simplejpeg.decode_jpeg_header(data)[2] != "CMYK":
                return simplejpeg.decode_jpeg(data, colorspace="RGB")
        except ValueError:
            pass  # Pillow tolerates more and explains better, so it has the last word
    try:
        with PIL.Image.open(io.BytesIO(data)) as image:
            if image.mode.startswith("I;16"):
                return _grey_to_rgb((np.asarray(image) >> 8).astype(np.uint8))
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, EOFError, PIL.Image.DecompressionBombError) as error:
        # Pillow names its in-memory file by its address, which says nothing.
        reason = "not an image" if isinstance(error, PIL.UnidentifiedImageError) else error
        raise DataError(
            f"{where}: the image cannot be decoded ({reason}; {len(data)} bytes); "
            f"replace or remove it"
        ) from error


def fit(image: np.ndarray, canvas_size: int) -> np.ndarray:
    """Shrinks an image that is larger than the canvas, antialiased, with its aspect kept.

    Args:
      image: uint8 [height, width, 3].
      canvas_size: largest height and width of the result, in pixels.

    Returns:
      uint8 [h, w, 3] with 1 <= h, w <= canvas_size; the image itself if it already fits.
    """
    height, width = image.shape[:2]
    longer = max(height, width)
    if longer <= canvas_size:
        return image
    size = (max(1, round(side * canvas_size / longer)) for side in (width, height))
    return cv2.resize(image, tuple(size), interpolation=cv2.INTER_AREA)


def to_canvas(image: np.ndarray, canvas_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Places an image, shrunk only if it is larger, at the top left of a black square.

    Args:
      image: uint8 [height, width, 3].
      canvas_size: height and width of the canvas, in pixels.

    Returns:
      The canvas, uint8 [canvas_size, canvas_size, 3], and the valid size, int32 [2]: height, width.
    """
    image = fit(image, canvas_size)
    canvas = np.zeros((canvas_size, canvas_size, 3), np.uint8)
    canvas[: image.shape[0], : image.shape[1]] = image
    return canvas, np.array(image.shape[:2], np.int32)


def center_crop(image: np.ndarray, image_size: int, crop_fraction: float) -> np.ndarray:
    """Evaluation preprocessing: resizes the shorter side, then cuts the centre square.

    The resize is Pillow's bilinear one (antialiased when shrinking), which the published
    accuracies of image classifiers were measured with.

    Args:
      image: uint8 [height, width, 3].
      image_size: height and width of the result, in pixels.
      crop_fraction: share of the resized shorter side that is kept, in (0, 1].

    Returns:
      uint8 [image_size, image_size, 3].
    """
    shorter = max(image_size, round(image_size / crop_fraction))
    windows = [
        _crop_window(side, round(side * shorter / min(image.shape[:2])), image_size)
        for side in (image.shape[1], image.shape[0])
    ]
    (left, width, x_box), (top, height, y_box) = windows
    resized = PIL.Image.fromarray(image).resize(
        (width, height),
        PIL.Image.Resampling.BILINEAR,
        box=(x_box[0], y_box[0], x_box[1], y_box[1]),
    )
    return np.asarray(resized.crop((left, top, left + image_size, top + image_size)))


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
    margin = math.ceil(1 / scale) + 2
    first, last = max(0, begin - margin), min(resized, begin + image_size + margin)
    return begin - first, last - first, (first * scale, min(side, last * scale))


def _grey_to_rgb(image: np.ndarray) -> np.ndarray:
    return np.repeat(image[:, :, None], 3, axis=2)
