"""Images that a user gives, as files or arrays, brought to a network in batches."""

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxcls.config import DataConfig
from jaxcls.data.arrays import to_levels
from jaxcls.data.images import evaluation_image, whole_image
from jaxcls.system.errors import UserError
from jaxcls.system.paths import local_path

type Image = np.ndarray | str | Path
type Images = np.ndarray | Sequence[Image]


def map_images(
    images: Images,
    function: Callable[[jax.Array], jax.Array],
    data: DataConfig,
    *,
    width: int,
    batch_size: int,
    broken: dict[int, str] | None,
) -> np.ndarray:
    """Preprocesses images and applies a function to them, batch by batch.

    Args:
      images: as for `ImageClassifier.predict`.
      function: from uint8 [batch, height, width, channels] to [batch, width].
      data: the preprocessing.
      width: numbers that the function returns for each image.
      batch_size: the largest number of images in a batch.
      broken: if given, gets the index and error message of each file that cannot be read.

    Returns:
      float32 [N, width]; NaN for each image in `broken`.

    Raises:
      UserError: an argument is wrong; or without `broken`, an image file cannot be read.
    """
    if batch_size < 1:
        raise UserError(f"batch_size: must be at least 1, got {batch_size}")
    if isinstance(images, str | Path) or (isinstance(images, np.ndarray) and images.ndim != 4):
        raise UserError(
            f"images: expected uint8 [N, height, width, {data.channels}] or a list of images; put "
            f"a single image in a list"
        )
    size = min(batch_size, len(images))
    rows = np.full((len(images), width), np.nan, np.float32)
    for start in range(0, len(images), batch_size):
        chunk: dict[int, np.ndarray] = {}
        for index in range(start, min(start + batch_size, len(images))):
            image = _pixels(images[index], index, data, broken)
            if image is not None:
                chunk[index] = evaluation_image(_with_channels(image, data), data)
        if not chunk:
            continue
        prepared = list(chunk.values())
        padding = [np.zeros_like(prepared[0])] * (size - len(chunk))  # one shape compiles once
        batch = jnp.asarray(np.stack(prepared + padding))
        rows[list(chunk)] = np.asarray(function(batch))[: len(chunk)]
    return rows


def read_image(path: Path, data: DataConfig | None = None) -> np.ndarray:
    """Reads an image file for prediction.

    Args:
      path: the file.
      data: the fields of `jaxcls.data.images.whole_image` are used (None: their defaults).

    Returns:
      uint8 [height, width, channels], as `jaxcls.data.images.whole_image` returns it.

    Raises:
      UserError: there is no such file, or it cannot be decoded.
    """
    try:
        encoded = path.read_bytes()
    except OSError as error:
        raise UserError(f"image {str(path)!r} cannot be read: {error.strerror}") from error
    return whole_image(encoded, data or DataConfig(), where=f"image {str(path)!r}")


def _pixels(
    image: Image, index: int, data: DataConfig, broken: dict[int, str] | None
) -> np.ndarray | None:
    """Returns an image's pixels; None if its file cannot be read, which is noted in `broken`.

    Raises:
      UserError: the file cannot be read, and `broken` is None.
    """
    if isinstance(image, np.ndarray):
        return image
    try:
        return read_image(local_path(image), data)
    except UserError as error:
        if broken is None:
            raise
        broken[index] = str(error)
        return None


def _with_channels(image: np.ndarray, data: DataConfig) -> np.ndarray:
    """Checks an image, and repeats the channel of a grey one for three.

    Returns:
      uint8 [height, width, channels].
    """
    shape, channels = list(image.shape), data.channels
    if image.ndim == 2:
        image = image[:, :, None]
    grey = channels == 3 and image.ndim == 3 and image.shape[2] == 1
    grey_too = ", or grey [height, width]" if channels in (1, 3) else ""
    refusal = (
        f"images: expected uint8 [height, width, {channels}]{grey_too}, got {image.dtype} {shape}"
    )
    if image.ndim != 3 or not (grey or image.shape[2] == channels):
        raise UserError(refusal)
    try:
        levels = to_levels(image, data.value_range)
    except ValueError as error:
        raise UserError(f"{refusal}; {error}") from error
    return np.repeat(levels, 3, axis=2) if grey else levels
