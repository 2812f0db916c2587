"""The zero padding of convolutions, as in TensorFlow or as in PyTorch."""

from typing import Literal

Padding = Literal["same", "symmetric"]


def explicit_padding(
    size: int, *, kernel_size: int, stride: int, padding: Padding
) -> tuple[int, int]:
    """Returns the zeros before and after an axis, such that ceil(size / stride) values result.

    "same" is TensorFlow's padding: the smallest number of zeros, with an odd one after the image.
    "symmetric" is PyTorch's: half a kernel on both sides, without zeros at the end that no window
    reaches.

    Args:
      size: the image's size along the axis.
      kernel_size: the kernel's size along the axis; odd.
      stride: the stride along the axis.
      padding: "same" or "symmetric".
    """
    lacking = max((-(-size // stride) - 1) * stride + kernel_size - size, 0)
    before = lacking // 2 if padding == "same" else kernel_size // 2
    return before, max(lacking - before, 0)
