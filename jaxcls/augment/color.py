"""What colours become: operations on the 256 levels of a channel, and blends of whole pixels.

A photometric operation on 8-bit images is a table of 256 levels. So a run of them is computed on
the levels alone ([batch, 3, 256], as it were an image that holds every level once, which dm-pix can
work on), with statistics of the image taken from its histogram; the image is looked up once.

Levels and counts are float32 holding whole numbers, levels in 0..255. Images are planar: uint8
[batch, 3, height, width].
"""

import functools
from collections.abc import Callable

import dm_pix as pix
import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxcls.augment.geometry import row_major

NUM_LEVELS = 256


# --- Tables --------------------------------------------------------------------------------------


def identity_levels(batch: int) -> Array:
    """The table that changes nothing, [batch, 3, 256]."""
    return jnp.broadcast_to(jnp.arange(NUM_LEVELS, dtype=jnp.float32), (batch, 3, NUM_LEVELS))


def autocontrast(levels: Array, counts: Array) -> Array:
    """Stretches each channel so that its darkest pixel becomes 0 and its brightest 255 (PIL)."""
    present = counts > 0
    low = jnp.min(jnp.where(present, levels, NUM_LEVELS), axis=2, keepdims=True)
    high = jnp.max(jnp.where(present, levels, -1), axis=2, keepdims=True)
    scale = 255 / jnp.maximum(high - low, 1)
    return jnp.where(high > low, _whole((levels - low) * scale), levels)


def equalize(levels: Array, counts: Array) -> Array:
    """Flattens each channel's histogram (PIL's integer arithmetic)."""
    counts = count_levels(levels, counts)
    filled = counts > 0
    every = jnp.arange(NUM_LEVELS)
    brightest = jnp.max(jnp.where(filled, every, -1), axis=2, keepdims=True)
    last = jnp.sum(jnp.where(every == brightest, counts, 0), axis=2, keepdims=True)
    step = jnp.floor((jnp.sum(counts, axis=2, keepdims=True) - last) / 255)
    below = jnp.cumsum(counts, axis=2) - counts
    table = jnp.floor((below + jnp.floor(step / 2)) / jnp.maximum(step, 1))
    table = jnp.where(step > 0, jnp.minimum(table, 255), identity_levels(len(levels)))
    return look_up_levels(levels, table)


def solarize(levels: Array, addition: Array, threshold: Array) -> Array:
    """Adds to what is below a threshold, then inverts what is at or above it (KerasCV).

    `addition` and `threshold` are [batch], in levels; a threshold of 256 inverts nothing.
    """
    addition, threshold = addition[:, None, None], threshold[:, None, None]
    added = jnp.where(levels < threshold, levels + addition, levels)
    added = jnp.clip(_whole(added), 0, 255)
    return _whole(255 * jnp.asarray(pix.solarize(added / 255, threshold / 255)))


def brightness(levels: Array, delta: Array) -> Array:
    """Adds `delta` [batch], in levels."""
    change = jax.vmap(pix.adjust_brightness)
    return _clip(255 * jnp.asarray(change(levels / 255, delta / 255)))


def contrast(levels: Array, counts: Array, factor: Array) -> Array:
    """Scales the distance from each channel's mean by `factor` [batch].

    (dm-pix takes the mean of what it is given, which here are the levels and not the image.)
    """
    total = jnp.sum(counts, axis=2, keepdims=True)
    mean = jnp.sum(levels * counts, axis=2, keepdims=True) / total
    return _clip(mean + (levels - mean) * factor[:, None, None])


def posterize(levels: Array, bits: Array) -> Array:
    """Keeps the highest `bits` [batch] of the eight, at least one."""
    step = 2 ** (8 - jnp.clip(jnp.round(bits), 1, 8))[:, None, None]
    return jnp.floor(levels / step) * step


def invert(levels: Array) -> Array:
    """Negative."""
    return _whole(255 * jnp.asarray(pix.solarize(levels / 255, 0.0)))


def _whole(levels: Array) -> Array:
    return jnp.floor(levels + 0.5)


def _clip(levels: Array) -> Array:
    return jnp.clip(_whole(levels), 0, 255)


# --- Between images and tables -------------------------------------------------------------------


def count_levels(levels: Array, counts: Array) -> Array:
    """The histogram after `levels` was looked up in images of histogram `counts`."""

    def by_scatter(levels: Array, counts: Array) -> Array:
        def one(levels: Array, counts: Array) -> Array:
            return jnp.zeros(NUM_LEVELS, counts.dtype).at[levels.astype(jnp.int32)].add(counts)

        return jax.vmap(jax.vmap(one))(levels, counts)

    def by_comparison(levels: Array, counts: Array) -> Array:
        same = levels[..., None] == jnp.arange(NUM_LEVELS, dtype=jnp.float32)
        return jnp.sum(jnp.where(same, counts[..., None], 0), axis=2)

    return lax.platform_dependent(levels, counts, tpu=by_comparison, default=by_scatter)


def look_up_levels(levels: Array, table: Array) -> Array:
    """`table` at each of `levels`, all [batch, 3, 256]."""

    def by_gather(levels: Array, table: Array) -> Array:
        return jnp.take_along_axis(table, levels.astype(jnp.int32), axis=2)

    def by_comparison(levels: Array, table: Array) -> Array:
        same = levels[..., None] == jnp.arange(NUM_LEVELS, dtype=jnp.float32)
        return jnp.sum(jnp.where(same, table[:, :, None], 0), axis=3)

    return lax.platform_dependent(levels, table, tpu=by_comparison, default=by_gather)


def _channels(images: Array) -> list[Array]:
    return [images[:, channel] for channel in range(3)]


def histograms(images: Array, needed: Array) -> Array:
    """Counts the levels of each channel.

    Args:
      images: uint8 [batch, 3, height, width].
      needed: bool [batch]; what is not needed may be computed or not.

    Returns:
      float32 [batch, 3, 256].
    """
    return lax.platform_dependent(
        images,
        needed,
        cpu=histograms_one_by_one,
        tpu=histograms_by_comparison,
        default=histograms_by_scatter,
    )


def histograms_one_by_one(images: Array, needed: Array) -> Array:
    """`histograms` for a CPU: image after image, and only those that are needed."""

    first = jnp.arange(3)[:, None, None] * NUM_LEVELS  # bin of each channel

    def count(image: Array) -> Array:
        bins = first + image
        zeros = jnp.zeros(3 * NUM_LEVELS, jnp.int32)
        return zeros.at[bins.reshape(-1)].add(1, mode="promise_in_bounds").reshape(3, NUM_LEVELS)

    def maybe(image: Array, needed: Array) -> Array:
        nothing = jnp.zeros((3, NUM_LEVELS), jnp.int32)
        return lax.cond(needed, count, lambda _: nothing, image)

    return lax.map(lambda args: maybe(*args), (images, needed)).astype(jnp.float32)


def histograms_by_scatter(images: Array, needed: Array) -> Array:
    """`histograms` by adding ones into bins."""
    del needed
    batch = len(images)
    bins = jnp.arange(batch * 3).reshape(batch, 3, 1, 1) * NUM_LEVELS + images
    zeros = jnp.zeros(batch * 3 * NUM_LEVELS, jnp.int32)
    counts = zeros.at[bins.reshape(-1)].add(1, mode="promise_in_bounds")
    return counts.reshape(batch, 3, NUM_LEVELS).astype(jnp.float32)


def histograms_by_comparison(images: Array, needed: Array) -> Array:
    """`histograms` without any scatter, which a TPU lacks: each level is compared and summed."""
    del needed
    every = jnp.arange(NUM_LEVELS, dtype=jnp.uint8)
    return jnp.stack(
        [
            jnp.sum((channel[..., None] == every).astype(jnp.float32), axis=(1, 2))
            for channel in _channels(images)
        ],
        axis=1,
    )


# --- Whole pixels --------------------------------------------------------------------------------


def recolor(images: Array, levels: Array, kept: Array | None) -> Array:
    """Sends every pixel through its image's and channel's table, then blends it with its grey.

    (Both in one, because a TPU then moves a third of the bytes. dm-pix's rgb_to_grayscale is a
    matrix product, which costs another 0.65 MB an image of 224 pixels, for three multiplications.)

    Args:
      images: uint8 [batch, 3, height, width].
      levels: float32 [batch, 3, 256].
      kept: float32 [batch], the share of each pixel's distance from its grey that stays; None if
        none is blended.

    Returns:
      uint8 [batch, 3, height, width].
    """
    return lax.platform_dependent(
        images,
        levels,
        kept,
        tpu=functools.partial(_recolor, look_up_by_comparison),
        default=functools.partial(_recolor, look_up_by_gather),
    )


def _recolor(
    look_up: Callable[[Array, Array], list[Array]],
    images: Array,
    levels: Array,
    kept: Array | None,
) -> Array:
    channels = look_up(images, levels)
    if kept is not None:
        red, green, blue = channels = [channel.astype(jnp.float32) for channel in channels]
        grey = 0.299 * red + 0.587 * green + 0.114 * blue
        kept = kept[:, None, None]
        channels = [_clip(grey + (channel - grey) * kept) for channel in channels]
    return row_major(jnp.stack([channel.astype(jnp.uint8) for channel in channels], axis=1))


def look_up_by_gather(images: Array, levels: Array) -> list[Array]:
    """Each channel [batch, height, width] after its table, read at each pixel."""
    start = jnp.arange(len(images), dtype=jnp.int32)[:, None, None] * NUM_LEVELS
    tables = lax.optimization_barrier(levels.astype(jnp.uint8))
    places = [start + images[:, channel] for channel in range(3)]
    return [
        tables[:, channel].reshape(-1).at[place].get(mode="promise_in_bounds")
        for channel, place in enumerate(places)
    ]


def look_up_by_comparison(images: Array, levels: Array) -> list[Array]:
    """The same without a gather: each pixel is compared with every level."""
    every = jnp.arange(NUM_LEVELS, dtype=jnp.uint8)
    tables = levels.astype(jnp.bfloat16)[:, :, None, None]  # exact up to 256
    return [
        jnp.sum(jnp.where(pixels[..., None] == every, tables[:, channel], 0), axis=-1)
        for channel, pixels in enumerate(_channels(images))
    ]


def sharpen(images: Array, factors: Array) -> Array:
    """Blends with a smoothed image: factor 0 is smooth, 1 the image, 2 sharp (PIL's Sharpness).

    Smoothed is 3x3 with weights 1, and 5 in the middle, over 13; the border keeps its pixels.
    """
    pixels = images.astype(jnp.float32)
    height, width = pixels.shape[2:]
    nine = [pixels[..., i : i + height - 2, j : j + width - 2] for i in range(3) for j in range(3)]
    inner = _whole((functools.reduce(jnp.add, nine) + 4 * nine[4]) / 13)
    smooth = pixels.at[..., 1:-1, 1:-1].set(inner)
    return _clip(smooth + (pixels - smooth) * factors[:, None, None, None]).astype(jnp.uint8)
