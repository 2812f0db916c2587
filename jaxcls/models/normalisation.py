"""Means and standard deviations of the channels that weights share, for images in [0, 1]."""

from collections.abc import Sequence

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
ONE_HALF = (0.5, 0.5, 0.5)  # as mean and std, maps [0, 1] to [-1, 1]


def for_channels(numbers: Sequence[float], channels: int) -> tuple[float, ...]:
    """Returns a number for each channel: those given, or their mean for each if these are others.

    Args:
      numbers: one for each channel of some images, such as red, green and blue.
      channels: of the images to be normalised.
    """
    if len(numbers) == channels:
        return tuple(numbers)
    return (sum(numbers) / len(numbers),) * channels
