"""Changes of colours: operations on the 256 levels of a channel, and blends of whole pixels.

A photometric operation on 8-bit images is a table of 256 levels. So several of them in a row are
applied to the table ([batch, channels, 256], like an image with every level once, to which dm-pix
can be applied), with the image's statistics from its histogram. Then the pixels are looked up once.

Levels and counts are float32 with whole numbers, levels in 0..255. Images are planar: uint8
[batch, channels, height, width]. Only the blend with grey needs red, green and blue.
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


def identity_levels(batch: int, channels: int = 3) -> Array:
    """Returns the table that changes nothing, [batch, channels, 256]."""
    every = jnp.arange(NUM_LEVELS, dtype=jnp.float32)
    return jnp.broadcast_to(every, (batch, channels, NUM_LEVELS))


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
    table = jnp.where(step > 0, jnp.minimum(table, 255), identity_levels(*levels.shape[:2]))
    return look_up_levels(levels, table)


def solarize(levels: Array, addition: Array, threshold: Array) -> Array:
    """Adds to levels below a threshold, then inverts those at or above it (KerasCV).

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

    (Not with dm-pix, because that would use the mean of the levels and not of the image.)
    """
    total = jnp.sum(counts, axis=2, keepdims=True)
    mean = jnp.sum(levels * counts, axis=2, keepdims=True) / total
    return _clip(mean + (levels - mean) * factor[:, None, None])


def posterize(levels: Array, bits: Array) -> Array:
    """Keeps the highest `bits` [batch] of the eight bits, at least one."""
    step = 2 ** (8 - jnp.clip(jnp.round(bits), 1, 8))[:, None, None]
    return jnp.floor(levels / step) * step


def invert(levels: Array) -> Array:
    """Inverts the levels."""
    return _whole(255 * jnp.asarray(pix.solarize(levels / 255, 0.0)))


def _whole(levels: Array) -> Array:
    return jnp.floor(levels + 0.5)


def _clip(levels: Array) -> Array:
    return jnp.clip(_whole(levels), 0, 255)


# --- Between images and tables -------------------------------------------------------------------


def count_levels(levels: Array, counts: Array) -> Array:
    """Returns the histogram of images after `levels`, from their histogram `counts`."""

    def by_scatter(levels: Array, counts: Array) -> Array:
        def one(levels: Array, counts: Array) -> Array:
            return jnp.zeros(NUM_LEVELS, counts.dtype).at[levels.astype(jnp.int32)].add(counts)

        return jax.vmap(jax.vmap(one))(levels, counts)

    def by_comparison(levels: Array, counts: Array) -> Array:
        same = levels[..., None] == jnp.arange(NUM_LEVELS, dtype=jnp.float32)
        return jnp.sum(jnp.where(same, counts[..., None], 0), axis=2)

    return lax.platform_dependent(levels, counts, tpu=by_comparison, default=by_scatter)


def look_up_levels(levels: Array, table: Array) -> Array:
    """Returns `table` at each of `levels`, all [batch, channels, 256]."""

    def by_gather(levels: Array, table: Array) -> Array:
        return jnp.take_along_axis(table, levels.astype(jnp.int32), axis=2)

    def by_comparison(levels: Array, table: Array) -> Array:
        same = levels[..., None] == jnp.arange(NUM_LEVELS, dtype=jnp.float32)
        return jnp.sum(jnp.where(same, table[:, :, None], 0), axis=3)

    return lax.platform_dependent(levels, table, tpu=by_comparison, default=by_gather)


def _channels(images: Array) -> list[Array]:
    return [images[:, channel] for channel in range(images.shape[1])]


def histograms(images: Array, needed: Array) -> Array:
    """Counts the levels of each channel.

    Args:
      images: uint8 [batch, channels, height, width].
      needed: bool [batch]; the histograms of other images may be wrong.

    Returns:
      float32 [batch, channels, 256].
    """
    return lax.platform_dependent(
        images,
        needed,
        cpu=histograms_one_by_one,
        tpu=histograms_by_comparison,
        default=histograms_by_scatter,
    )


def histograms_one_by_one(images: Array, needed: Array) -> Array:
    """Computes `histograms` on a CPU: one image at a time, and only if it is needed."""
    channels = images.shape[1]
    first = jnp.arange(channels)[:, None, None] * NUM_LEVELS  # bin of each channel

    def count(image: Array) -> Array:
        bins = first + image
        zeros = jnp.zeros(channels * NUM_LEVELS, jnp.int32)
        counts = zeros.at[bins.reshape(-1)].add(1, mode="promise_in_bounds")
        return counts.reshape(channels, NUM_LEVELS)

    def maybe(image: Array, needed: Array) -> Array:
        nothing = jnp.zeros((channels, NUM_LEVELS), jnp.int32)
        return lax.cond(needed, count, lambda _: nothing, image)

    return lax.map(lambda args: maybe(*args), (images, needed)).astype(jnp.float32)


def histograms_by_scatter(images: Array, needed: Array) -> Array:
    """Computes `histograms` by adding ones to bins."""
    del needed
    batch, channels = images.shape[:2]
    bins = jnp.arange(batch * channels).reshape(batch, channels, 1, 1) * NUM_LEVELS + images
    zeros = jnp.zeros(batch * channels * NUM_LEVELS, jnp.int32)
    counts = zeros.at[bins.reshape(-1)].add(1, mode="promise_in_bounds")
    return counts.reshape(batch, channels, NUM_LEVELS).astype(jnp.float32)


def histograms_by_comparison(images: Array, needed: Array) -> Array:
    """Computes `histograms` by comparing and summing, because scatter is slow on a TPU."""
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
    """Maps every pixel by its image's and channel's table, then blends it with its grey.

    (In one function, because a TPU then moves a third of the bytes. dm-pix's rgb_to_grayscale is a
    matrix product, which moves another 0.65 MB for each image of 224 pixels.)

    Args:
      images: uint8 [batch, channels, height, width].
      levels: float32 [batch, channels, 256], the tables.
      kept: float32 [batch], the factor for each pixel's distance from its grey, which needs red,
        green and blue; None for no blend.

    Returns:
      uint8 [batch, channels, height, width].
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
    """Looks up each pixel in its table; returns each channel, [batch, height, width]."""
    start = jnp.arange(len(images), dtype=jnp.int32)[:, None, None] * NUM_LEVELS
    tables = lax.optimization_barrier(levels.astype(jnp.uint8))
    places = [start + images[:, channel] for channel in range(images.shape[1])]
    return [
        tables[:, channel].reshape(-1).at[place].get(mode="promise_in_bounds")
        for channel, place in enumerate(places)
    ]


def look_up_by_comparison(images: Array, levels: Array) -> list[Array]:
    """Does the same without a gather, by comparing each pixel with every level."""
    every = jnp.arange(NUM_LEVELS, dtype=jnp.uint8)
    tables = levels.astype(jnp.bfloat16)[:, :, None, None]  # exact up to 256
    return [
        jnp.sum(jnp.where(pixels[..., None] == every, tables[:, channel], 0), axis=-1)
        for channel, pixels in enumerate(_channels(images))
    ]


def sharpen(images: Array, factors: Array) -> Array:
    """Blends with the smoothed image: factor 0 is smooth, 1 the image, 2 sharp (PIL's Sharpness).

    Smoothing averages 3x3 pixels with weight 1, and 5 for the middle; the border is not smoothed.
    """
    pixels = images.astype(jnp.float32)
    height, width = pixels.shape[2:]
    nine = [pixels[..., i : i + height - 2, j : j + width - 2] for i in range(3) for j in range(3)]
    inner = _whole((functools.reduce(jnp.add, nine) + 4 * nine[4]) / 13)
    smooth = pixels.at[..., 1:-1, 1:-1].set(inner)
    return _clip(smooth + (pixels - smooth) * factors[:, None, None, None]).astype(jnp.uint8)
