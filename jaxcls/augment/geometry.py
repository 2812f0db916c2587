"""Changes of geometry: crop and resize, flip, and affine warps.

Canvases are uint8 [batch, height, width, channels]. Images are planar, uint8 [batch, channels,
height, width], so that every platform works on long rows of one channel. The inner functions work
on three channels, so groups of three of any other number count as images of their own.

Resizes and warps work along one axis after the other, in exact integer arithmetic: weights are
whole numbers that sum to 256. So results do not depend on how the batch is split, and are the same
to the bit on all platforms. CPU and GPU use gathers. On a TPU gathers are a hundred times slower,
so it multiplies with dense matrices, whose entries (up to 256) and products are exact in bfloat16
and float32. (dm-pix's affine_transform gathers floats one image at a time. For 128 images of 224
pixels a TPU does not have the memory, and a CPU takes 100 times as long.)
"""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental.layout import Layout, with_layout_constraint

from jaxcls.config.augment import RandomCropAndResize
from jaxcls.config.sizes import ImageSize, height_and_width

_ONE = 256  # the sum of a pixel's weights
_FRACTION_BITS = 16  # of the fixed-point positions in a warp
_PACKED = 3  # channels that share a number


PyTree = Any
Taps = tuple[Array, Array]  # indices and weights, both int32 [batch, size, taps]


# --- Weighted sums of pixels ---------------------------------------------------------------------


_SHIFTS = np.array([0, 8, 16], np.uint32)


def _pack(images: Array, *, axis: int) -> Array:
    """Packs the three channels along `axis` into a uint32, so that a gather gets whole pixels."""
    shifts = np.expand_dims(_SHIFTS, tuple(range(1, images.ndim - axis)))
    return lax.optimization_barrier(jnp.sum(images.astype(jnp.uint32) << shifts, axis=axis))


def _pack_turned(lines: Array, *, axis: int) -> Array:
    """Packs as `_pack`, and exchanges rows and columns; on a CPU both in one pass."""

    def in_one_pass(lines: Array) -> Array:
        channels = jnp.moveaxis(lines, axis, 0).astype(jnp.uint32)
        packed = channels[0] | (channels[1] << 8) | (channels[2] << 16)
        return lax.optimization_barrier(jnp.swapaxes(packed, 1, 2))

    def one_by_one(lines: Array) -> Array:
        return lax.optimization_barrier(jnp.swapaxes(_pack(lines, axis=axis), 1, 2))

    return lax.platform_dependent(lines, cpu=in_one_pass, default=one_by_one)


def _unpack(packed: Array, *, axis: int) -> Array:
    """Inverts `_pack`."""
    shifts = np.expand_dims(_SHIFTS, tuple(range(1, packed.ndim + 1 - axis)))
    channels = jnp.expand_dims(packed, axis) >> shifts
    return lax.optimization_barrier(channels.astype(jnp.uint8))


def _weigh(terms: Iterable[tuple[Array, Array]]) -> Array:
    """Sums packed pixels times weights, which add up to 256, in all channels at once; rounds.

    A channel's sum needs 16 bits, so red and blue share a 32-bit word and green has another.
    """
    red_blue, green = jnp.uint32(0x00800080), jnp.uint32(0x00008000)
    for pixels, weights in terms:
        weights = weights.astype(jnp.uint32)
        red_blue += (pixels & 0x00FF00FF) * weights
        green += (pixels & 0x0000FF00) * weights
    return lax.optimization_barrier(((red_blue >> 8) & 0x00FF00FF) | ((green >> 8) & 0x0000FF00))


def _in_groups(images: Array, *places: PyTree, axis: int) -> tuple[Array, *tuple[PyTree, ...]]:
    """Splits images into images of three channels, and repeats what belongs to each image.

    Args:
      images: [batch, ...] with channels along `axis`; black ones make them a multiple of three.
      places: arrays [batch, ...], or nested.
      axis: 1 or 3.

    Returns:
      Images and places of [batch * groups, ...]; of three channels, as they are.
    """
    channels = images.shape[axis]
    if channels == _PACKED:
        return images, *places
    groups = -(-channels // _PACKED)
    missing = [(0, 0)] * images.ndim
    missing[axis] = (0, groups * _PACKED - channels)
    whole = jnp.pad(images, missing)
    split = whole.reshape(*whole.shape[:axis], groups, _PACKED, *whole.shape[axis + 1 :])
    folded = jnp.moveaxis(split, axis, 1).reshape(
        -1, *split.shape[1:axis], *split.shape[axis + 1 :]
    )
    return folded, *jax.tree.map(lambda place: jnp.repeat(place, groups, axis=0), places)


def _ungrouped(images: Array, channels: int) -> Array:
    """Inverts `_in_groups` for planar images: [batch, channels, height, width]."""
    if channels == _PACKED:
        return images
    groups = -(-channels // _PACKED)
    return images.reshape(-1, groups * _PACKED, *images.shape[2:])[:, :channels]


def row_major(images: Array) -> Array:
    """Fixes the layout, so that a TPU's compiler does not transpose float32 intermediates."""
    return with_layout_constraint(images, Layout(major_to_minor=tuple(range(images.ndim))))


def _matmul(subscripts: str, weights: Array, images: Array) -> Array:
    """Computes an einsum of weights, which add up to 256, and uint8 images; rounds to uint8."""
    total = jnp.einsum(subscripts, weights.astype(jnp.float32), images.astype(jnp.float32))
    return jnp.floor((total + _ONE // 2) / _ONE).astype(jnp.uint8)


# --- Crop and resize -----------------------------------------------------------------------------


def resize_windows(
    canvases: Array, sizes: Array, windows: Array, mirrored: Array, size: ImageSize
) -> Array:
    """Resizes a window of each image to a size: bilinear, antialiased when shrinking.

    Equal to `PIL.Image.resize` with BILINEAR and `box`, up to the rounding of weights and pixels.
    Mirroring is free here. As a separate pass (dm-pix's flips) it moves 1.5 MB for each image of
    224 pixels on a TPU, a fifth of the whole augmentation.

    Args:
      canvases: uint8 [batch, height, width, channels], each image at the top left; other pixels
        are not used.
      sizes: int32 [batch, 2], height and width of each image on its canvas.
      windows: float32 [batch, 4]: top, left, height and width in pixels, inside the image.
      mirrored: bool [batch, 2]: whether to flip top-bottom and left-right.
      size: of the result.

    Returns:
      uint8 [batch, channels, height, width].
    """
    rows, cols = (
        _resize_taps(
            windows[:, axis],
            windows[:, axis + 2],
            sizes[:, axis],
            mirrored[:, axis],
            size=side,
            extent=canvases.shape[axis + 1],
        )
        for axis, side in enumerate(height_and_width(size))
    )
    groups = _in_groups(canvases, rows, cols, axis=3)
    resized = lax.platform_dependent(*groups, tpu=resize_by_matmul, default=resize_by_gather)
    return _ungrouped(resized, canvases.shape[3])


def _resize_taps(
    start: Array, length: Array, valid: Array, mirrored: Array, *, size: int, extent: int
) -> Taps:
    """Computes, along one axis, the source pixels of each of `size` pixels and their weights.

    Returns:
      Indices into the axis and weights that add up to 256, both int32 [batch, size, taps].
    """
    scale = (length / size)[:, None, None]  # pixels of the canvas for each pixel of the result
    reach = jnp.maximum(scale, 1.0)
    num_taps = math.ceil(2 * max(extent / size, 1))
    place = jnp.arange(size)
    place = jnp.where(mirrored[:, None], size - 1 - place, place)[:, :, None]
    centres = start[:, None, None] + (place + 0.5) * scale
    indices = jnp.floor(centres - reach - 0.5).astype(jnp.int32) + 1 + jnp.arange(num_taps)
    weights = jnp.maximum(1 - jnp.abs(indices + 0.5 - centres) / reach, 0)
    weights = jnp.where((indices >= 0) & (indices < valid[:, None, None]), weights, 0)
    weights = weights / jnp.sum(weights, axis=2, keepdims=True)
    whole = jnp.round(weights * _ONE).astype(jnp.int32)
    rest = _ONE - jnp.sum(whole, axis=2, keepdims=True)  # added to the largest weight
    largest = jnp.arange(num_taps) == jnp.argmax(weights, axis=2)[:, :, None]
    indices = jnp.clip(indices, 0, valid[:, None, None] - 1)
    return indices, whole + jnp.where(largest, rest, 0)


def resize_by_gather(canvases: Array, rows: Taps, cols: Taps) -> Array:
    """Sums weighted rows, transposes, and sums weighted columns."""
    rows, cols = lax.optimization_barrier((rows, cols))
    batch, height, width, _ = canvases.shape
    new_height, new_width = rows[0].shape[1], cols[0].shape[1]
    lines = _weigh_lines(canvases.reshape(batch, height, width * 3), rows)
    packed = _pack_turned(lines.reshape(batch, new_height, width, 3), axis=3)
    lines = _weigh_lines(_unpack(packed, axis=2).reshape(batch, width, 3 * new_height), cols)
    return _unpack(_pack_turned(lines.reshape(batch, new_width, 3, new_height), axis=2), axis=1)


def _weigh_lines(lines: Array, taps: Taps) -> Array:
    """Sums weighted lines: uint8 [batch, extent, n] to [batch, size, n], in 16 bits."""
    indices, weights = taps
    take = jax.vmap(partial(jnp.take, axis=0, mode="clip"))
    total = jnp.uint16(_ONE // 2)
    for tap in range(indices.shape[2]):
        chosen = take(lines, indices[:, :, tap]).astype(jnp.uint16)
        total = total + chosen * weights[:, :, tap, None].astype(jnp.uint16)
    return lax.optimization_barrier((total >> 8).astype(jnp.uint8))


def resize_by_matmul(canvases: Array, rows: Taps, cols: Taps) -> Array:
    """Does the same with one matrix for each axis, with `size` rows of `extent` weights."""

    def matrix(taps: Taps, extent: int) -> Array:
        indices, weights = (x[..., None] for x in taps)
        weights = weights.astype(jnp.bfloat16)  # exact, as is their sum
        return jnp.sum(jnp.where(indices == jnp.arange(extent), weights, 0), axis=2)

    images = _matmul("bih,bhwc->bciw", matrix(rows, canvases.shape[1]), canvases)
    return row_major(_matmul("bjw,bciw->bcij", matrix(cols, canvases.shape[2]), images))


# --- Windows -------------------------------------------------------------------------------------


def shaped_windows(sizes: Array, size: ImageSize, crop_fraction: float, offsets: Array) -> Array:
    """Returns windows of the shape of the result, with a share of the largest such window.

    Args:
      sizes: int32 [batch, 2], height and width of each image.
      size: of the result; windows of a square are squares.
      crop_fraction: the sides of the window as a share of those of the largest window in the image.
      offsets: float32 [batch, 2] in [0, 1]: the place of the window in the image, from the top left
        to the bottom right; 0.5 is the centre.

    Returns:
      float32 [batch, 4]: top, left, height, width.
    """
    height, width = height_and_width(size)
    shape = jnp.asarray([height / min(height, width), width / min(height, width)])
    scale = jnp.min(sizes / shape, axis=1) * crop_fraction
    lengths = scale[:, None] * shape
    return jnp.concatenate([offsets * (sizes - lengths), lengths], axis=1)


def random_windows(
    entry: RandomCropAndResize, uniforms: Array, sizes: Array, size: ImageSize
) -> Array:
    """Returns windows of random area, shape and place (KerasCV's RandomCropAndResize).

    Area and aspect are uniform. Height sqrt(area / aspect) and width sqrt(area * aspect) are shares
    of the image's height and width, at most 1; the place is uniform. Aspects of pixels are relative
    to the shape of the result, so that with 1 nothing is stretched.

    Args:
      entry: the ranges of area and aspect, and whether aspects are of pixels or relative to the
        image's.
      uniforms: float32 [batch, 4] in [0, 1).
      sizes: int32 [batch, 2], height and width of each image.
      size: of the result.

    Returns:
      float32 [batch, 4]: top, left, height, width.
    """
    height, width = height_and_width(size)
    areas = entry.area[0] + (entry.area[1] - entry.area[0]) * uniforms[:, 0]
    aspects = entry.aspect[0] + (entry.aspect[1] - entry.aspect[0]) * uniforms[:, 1]
    if entry.aspect_of == "pixels":
        aspects = aspects * (width / height) * sizes[:, 0] / sizes[:, 1]
    shares = jnp.sqrt(jnp.stack([areas / aspects, areas * aspects], axis=1))
    lengths = jnp.minimum(shares, 1) * sizes
    return jnp.concatenate([uniforms[:, 2:] * (sizes - lengths), lengths], axis=1)


# --- Affine warps --------------------------------------------------------------------------------


def warp(images: Array, matrices: Array, *, turns: bool) -> Array:
    """Applies an affine map to each image: bilinear, mirrored beyond the borders.

    The map is split into one along the columns and one along the rows (Catmull and Smith 1980),
    with linear interpolation along one axis each. For shears and shifts that equals bilinear
    interpolation; for rotations it differs slightly. If a map works along both axes, the second
    pass mirrors the result of the first one beyond the left and right borders.

    A rectangle is warped inside a square, which its mirror images fill.

    Args:
      images: uint8 [batch, channels, height, width].
      matrices: float32 [batch, 2, 3], map places in the result to places in the image: (x, y, 1) to
        (x, y), in pixels, with the middle of the first pixel at (0.5, 0.5).
      turns: whether maps may rotate by more than 45 degrees, which costs another pass. Two opposite
        shears near 1 do so as well, and are wrong without it: 0.9 % of RandAugment's images at
        magnitude 1, none of 20,000 at 0.5.

    Returns:
      uint8 [batch, channels, height, width].
    """
    height, width = images.shape[2:]
    if height != width:
        return _warp_in_square(images, matrices, turns=turns)
    if turns:  # such images are transposed, because the first pass must not squeeze an axis
        turned = jnp.abs(matrices[:, 1, 0]) > jnp.abs(matrices[:, 0, 0])
        matrices = jnp.where(turned[:, None, None], matrices[:, ::-1], matrices)
        turned = turned[:, None, None, None]
        images = jnp.where(turned, jnp.swapaxes(images, 2, 3), images)
    (xx, xy, x0), (yx, yy, y0) = (matrices[:, row].T for row in (0, 1))
    xx = jnp.where(jnp.abs(xx) < 0.25, jnp.where(xx < 0, -0.25, 0.25), xx)
    slope = yx / xx
    # (Row of the result, column of the image) -> row of the image; then the same for columns.
    rows = _positions(jnp.stack([yy - slope * xy, slope, y0 - slope * x0]), images.shape[2])
    cols = _positions(jnp.stack([xx, xy, x0]), images.shape[2])
    groups = _in_groups(images, rows, cols, axis=1)
    warped = lax.platform_dependent(*groups, tpu=warp_by_matmul, default=warp_by_gather)
    return _ungrouped(warped, images.shape[1])


def _warp_in_square(images: Array, matrices: Array, *, turns: bool) -> Array:
    height, width = images.shape[2:]
    size = max(height, width)
    top, left = (size - height) // 2, (size - width) // 2
    sides = ((0, 0), (0, 0), (top, size - height - top), (left, size - width - left))
    square = jnp.pad(images, sides, mode="symmetric")
    # A place p of the square is p - (left, top) in the image, before and after the map.
    moved = matrices.at[:, :, 2].add(
        jnp.asarray([left, top]) - left * matrices[:, :, 0] - top * matrices[:, :, 1]
    )
    warped = warp(square, moved, turns=turns)
    return warped[:, :, top : top + height, left : left + width]


def _positions(coefficients: Array, size: int) -> Array:
    """Returns the source of pixel i of line j along its line: a i + b j + c, between middles.

    Args:
      coefficients: float32 [3, batch]: a, b and c.
      size: the number of lines, and of pixels in a line.

    Returns:
      int32 [batch, lines, size], in 1/256 pixel, mirrored into 0 ... 256 (size - 1).
    """
    a, b, c = coefficients * 2**_FRACTION_BITS
    # Sums in fixed point are exact.
    start = jnp.round((a + b - 2**_FRACTION_BITS) / 2 + c).astype(jnp.int32)[:, None, None]
    a, b = (jnp.round(x).astype(jnp.int32)[:, None, None] for x in (a, b))
    places = start + b * jnp.arange(size)[:, None] + a * jnp.arange(size)
    half = _ONE // 2
    places = (places >> (_FRACTION_BITS - 8)) + half  # from the border
    period = 2 * size * _ONE
    places = places % period
    return jnp.clip(jnp.minimum(places, period - places) - half, 0, (size - 1) * _ONE)


def warp_by_gather(images: Array, rows: Array, cols: Array) -> Array:
    """Looks up both neighbours of each place, first along the columns, then along the rows."""
    packed = _pack(images, axis=1)
    batch, size, _ = packed.shape
    start = jnp.arange(batch, dtype=jnp.int32)[:, None, None] * size**2
    line = jnp.arange(size, dtype=jnp.int32)

    def pass_along(packed: Array, places: Array, index: Callable[[Array], Array]) -> Array:
        places = lax.optimization_barrier(places)
        look, first, weight = packed.reshape(-1).at, places >> 8, places & (_ONE - 1)
        return _weigh(
            (look[index(place)].get(mode="promise_in_bounds"), share)
            for place, share in (
                (first, _ONE - weight),
                (jnp.minimum(first + 1, size - 1), weight),
            )
        )

    rows = jnp.swapaxes(rows, 1, 2)  # lines are columns here
    packed = pass_along(packed, rows, lambda row: start + row * size + line)
    packed = pass_along(packed, cols, lambda col: start + line[:, None] * size + col)
    return _unpack(packed, axis=1)


def warp_by_matmul(images: Array, rows: Array, cols: Array) -> Array:
    """Does the same with one matrix for each line; weights fall linearly with distance."""

    def matrices(places: Array) -> Array:
        distance = jnp.abs(jnp.arange(images.shape[2]) * _ONE - places[..., None])
        return jnp.maximum(_ONE - distance, 0)

    columns = row_major(jnp.transpose(images, (0, 3, 1, 2)))  # [batch, column, 3, row]
    columns = row_major(_matmul("bjiw,bjcw->bjci", matrices(rows), columns))
    lines = row_major(jnp.swapaxes(columns, 1, 3))
    lines = row_major(_matmul("bjiw,bjcw->bjci", matrices(cols), lines))
    return row_major(jnp.swapaxes(lines, 1, 2))
