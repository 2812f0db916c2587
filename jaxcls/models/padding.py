"""The zeros around an image before a convolution: TensorFlow's way, or PyTorch's."""

from typing import Literal

Padding = Literal["same", "symmetric"]


def explicit_padding(
    size: int, *, kernel_size: int, stride: int, padding: Padding
) -> tuple[int, int]:
    """How many zeros go before and after one axis, so that ceil(size / stride) values come out.

    "same" is TensorFlow's: as few as it takes, an odd one after. "symmetric" is PyTorch's, half a
    kernel on both sides; of those after, the ones that no window reaches are left out.

    Args:
      size: of the axis.
      kernel_size: of the axis; odd.
      stride: of the axis.
      padding: "same" or "symmetric".
    """
    lacking = max((-(-size // stride) - 1) * stride + kernel_size - size, 0)
    before = lacking // 2 if padding == "same" else kernel_size // 2
    return before, max(lacking - before, 0)
