"""EfficientNet-Lite's forward pass in NumPy alone, from the tensors of its published files.

Written from the architecture (https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite)
to stand against ours: it shares nothing with it but the images.
"""

import itertools
from collections.abc import Mapping

import numpy as np

STAGE_STRIDES = (1, 2, 2, 2, 1, 2, 1)
EPSILON = 1e-3


def logits(
    tensors: Mapping[str, np.ndarray], images: np.ndarray, repeats: tuple[int, ...]
) -> np.ndarray:
    """[batch, 1000] of images [batch, height, width, 3] that are normalised.

    Args:
      tensors: by the names of the published file.
      images: float32.
      repeats: blocks a stage.
    """
    x = relu6(norm(tensors, "_bn0", conv(images, tensors["_conv_stem.weight"], stride=2)))
    strides = itertools.chain.from_iterable(
        (stride, *(1,) * (count - 1)) for stride, count in zip(STAGE_STRIDES, repeats, strict=True)
    )
    for number, stride in enumerate(strides):
        x = block(tensors, f"_blocks.{number}.", x, stride)
    x = relu6(norm(tensors, "_bn1", conv(x, tensors["_conv_head.weight"])))
    return x.mean(axis=(1, 2)) @ tensors["_fc.weight"].T + tensors["_fc.bias"]


def block(
    tensors: Mapping[str, np.ndarray], prefix: str, inputs: np.ndarray, stride: int
) -> np.ndarray:
    x = inputs
    if prefix + "_expand_conv.weight" in tensors:
        x = conv(x, tensors[prefix + "_expand_conv.weight"])
        x = relu6(norm(tensors, prefix + "_bn0", x))
    x = depthwise(x, tensors[prefix + "_depthwise_conv.weight"], stride)
    x = relu6(norm(tensors, prefix + "_bn1", x))
    x = norm(tensors, prefix + "_bn2", conv(x, tensors[prefix + "_project_conv.weight"]))
    return x + inputs if x.shape == inputs.shape else x


def conv(x: np.ndarray, weight: np.ndarray, stride: int = 1) -> np.ndarray:
    """`weight` is [out, in, height, width]."""
    windows = patches(x, weight.shape[2], stride)
    return np.tensordot(windows, weight, axes=((3, 4, 5), (1, 2, 3)))


def depthwise(x: np.ndarray, weight: np.ndarray, stride: int) -> np.ndarray:
    """`weight` is [channels, 1, height, width]."""
    return np.einsum("bhwcij,cij->bhwc", patches(x, weight.shape[2], stride), weight[:, 0])


def patches(x: np.ndarray, size: int, stride: int) -> np.ndarray:
    """What each output pixel sees, [batch, rows, cols, channels, size, size], padded as SAME."""
    padding = [(0, 0)]
    for side in x.shape[1:3]:
        total = max((-(-side // stride) - 1) * stride + size - side, 0)
        padding.append((total // 2, total - total // 2))
    padded = np.pad(x, [*padding, (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))
    return windows[:, ::stride, ::stride]


def norm(tensors: Mapping[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    mean, var = tensors[f"{name}.running_mean"], tensors[f"{name}.running_var"]
    scaled = (x - mean) / np.sqrt(var + EPSILON)
    return scaled * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]


def relu6(x: np.ndarray) -> np.ndarray:
    return np.clip(x, 0, 6)
