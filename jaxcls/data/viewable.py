"""Images of any number of channels as people can look at them."""

import numpy as np


def viewable(images: np.ndarray) -> np.ndarray:
    """Makes RGB of images: grey of one or two channels, four over white by alpha, else the first 3.

    Args:
      images: uint8 [..., height, width, channels].

    Returns:
      uint8 [..., height, width, 3].
    """
    channels = images.shape[-1]
    if channels == 4:
        colors, alpha = images[..., :3].astype(np.float32), images[..., 3:] / np.float32(255)
        return np.rint(255 + (colors - 255) * alpha).astype(np.uint8)
    return np.repeat(images[..., :1], 3, axis=-1) if channels < 3 else images[..., :3]
