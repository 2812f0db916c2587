from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from photos import apart, interleaved, planar, varied
from PIL import Image, ImageEnhance, ImageOps

from jaxcls.augment import color

SHAPES = [(33, 24), (20, 20), (1, 40)]
BATCH = len(varied(*SHAPES[0]))
ALL = jnp.ones(BATCH, bool)
IDENTITY = color.identity_levels(BATCH)

histograms = jax.jit(color.histograms)
recolor = jax.jit(color.recolor)
TABLES = {
    name: jax.jit(getattr(color, name))
    for name in ("autocontrast", "equalize", "contrast", "solarize", "brightness", "posterize")
}


def full(value: float) -> Array:
    return jnp.full(BATCH, value, jnp.float32)


def apply(name: str, images: np.ndarray, *strengths: float) -> np.ndarray:
    """An operation on the levels, then the look-up, of uint8 [batch, height, width, 3]."""
    pixels = planar(images)
    counts = [histograms(pixels, ALL)] if name in ("autocontrast", "equalize", "contrast") else []
    levels = TABLES[name](IDENTITY, *counts, *map(full, strengths))
    return interleaved(recolor(pixels, levels, full(1)))


def each(images: np.ndarray, change: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(change(Image.fromarray(image))) for image in images])


def rounded(values: np.ndarray) -> np.ndarray:
    return np.clip(np.floor(values + 0.5), 0, 255).astype(np.uint8)


# --- References ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_autocontrast_is_pillows(shape: tuple[int, int]) -> None:
    images = varied(*shape)
    actual = apply("autocontrast", images)
    assert apart(actual, each(images, ImageOps.autocontrast)).max() <= 1
    assert apart(actual, images)[1].max() > 5


@pytest.mark.parametrize("shape", SHAPES)
def test_equalize_is_pillows_to_the_level(shape: tuple[int, int]) -> None:
    images = varied(*shape)
    np.testing.assert_array_equal(apply("equalize", images), each(images, ImageOps.equalize))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("threshold", [0, 1, 100, 128, 255, 256])
def test_solarize_without_addition_is_pillows(shape: tuple[int, int], threshold: int) -> None:
    images = varied(*shape)
    expected = each(images, lambda image: ImageOps.solarize(image, threshold))
    np.testing.assert_array_equal(apply("solarize", images, 0, threshold), expected)


@pytest.mark.parametrize("bits", range(1, 9))
def test_posterize_is_pillows(bits: int) -> None:
    images = varied(*SHAPES[0])
    expected = each(images, lambda image: ImageOps.posterize(image, bits))
    np.testing.assert_array_equal(apply("posterize", images, bits), expected)


def test_posterize_keeps_between_one_bit_and_eight() -> None:
    images = varied(*SHAPES[0])
    np.testing.assert_array_equal(apply("posterize", images, 12), images)
    np.testing.assert_array_equal(apply("posterize", images, -3), images & 128)


def test_invert_is_pillows() -> None:
    images = varied(*SHAPES[0])
    actual = interleaved(recolor(planar(images), color.invert(IDENTITY), full(1)))
    np.testing.assert_array_equal(actual, each(images, ImageOps.invert))


@pytest.mark.parametrize("shape", [*SHAPES, (40, 1), (2, 9)])
@pytest.mark.parametrize("factor", [0.0, 0.4, 1.0, 1.7])
def test_sharpness_is_pillows(shape: tuple[int, int], factor: float) -> None:
    images = varied(*shape)
    actual = interleaved(jax.jit(color.sharpen)(planar(images), full(factor)))
    expected = each(images, lambda image: ImageEnhance.Sharpness(image).enhance(factor))
    assert apart(actual, expected).max() <= 1


@pytest.mark.parametrize("delta", [-300, -77.5, -0.4, 0, 12.25, 255])
def test_brightness_adds(delta: float) -> None:
    images = varied(*SHAPES[0])
    expected = rounded(images.astype(np.float64) + delta)
    assert apart(apply("brightness", images, delta), expected).max() <= 1


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("factor", [0.0, 0.3, 1.0, 1.9])
def test_contrast_scales_the_distance_from_each_channels_mean(
    shape: tuple[int, int], factor: float
) -> None:
    images = varied(*shape)
    mean = images.mean(axis=(1, 2), keepdims=True)
    expected = rounded(mean + (images - mean) * factor)
    assert apart(apply("contrast", images, factor), expected).max() <= 1


@pytest.mark.parametrize(("addition", "threshold"), [(0, 90.5), (60.3, 128), (110, 255), (110, 0)])
def test_solarize_adds_below_the_threshold_and_then_inverts_above(
    addition: float, threshold: float
) -> None:
    images = varied(*SHAPES[0]).astype(np.float64)
    added = rounded(np.where(images < threshold, images + addition, images)).astype(np.float64)
    expected = np.where(added < threshold, added, 255 - added)
    actual = apply("solarize", varied(*SHAPES[0]), addition, threshold)
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kept", [0.0, 0.35, 1.0])
def test_color_blends_with_grey(shape: tuple[int, int], kept: float) -> None:
    images = varied(*shape)
    actual = interleaved(recolor(planar(images), IDENTITY, full(kept)))
    grey = images.astype(np.float64) @ [0.299, 0.587, 0.114]
    expected = rounded(grey[..., None] + (images - grey[..., None]) * kept)
    assert apart(actual, expected).max() <= 1
    if kept == 0:
        expected = each(images, lambda image: image.convert("L").convert("RGB"))
        assert apart(actual, expected).max() <= 1
    if kept == 1:
        np.testing.assert_array_equal(actual, images)


# --- Composing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("after", ["equalize", "autocontrast", "contrast"])
def test_statistics_follow_from_the_histogram_after_earlier_operations(after: str) -> None:
    """The second operation sees the image that the first one made, though none was made."""
    images, strengths = varied(*SHAPES[0]), (1.6,) if after == "contrast" else ()
    first = apply("solarize", images, 80, 120)
    expected = apply(after, first, *strengths)
    levels = TABLES["solarize"](IDENTITY, full(80), full(120))
    levels = TABLES[after](levels, histograms(planar(images), ALL), *map(full, strengths))
    actual = interleaved(recolor(planar(images), levels, None))
    np.testing.assert_array_equal(actual, expected)


# --- Forms for platforms -------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_histograms_are_exact_in_every_form(shape: tuple[int, int]) -> None:
    images = varied(*shape)
    expected = [
        [np.bincount(image[..., channel].ravel(), minlength=256) for channel in range(3)]
        for image in images
    ]
    for form in (
        color.histograms_one_by_one,
        color.histograms_by_scatter,
        color.histograms_by_comparison,
    ):
        np.testing.assert_array_equal(jax.jit(form)(planar(images), ALL), expected)


def test_one_by_one_leaves_out_what_is_not_needed() -> None:
    images, needed = planar(varied(*SHAPES[0])), np.arange(BATCH) % 2 == 0
    counts = np.asarray(histograms(images, jnp.asarray(needed)))
    assert (counts.sum(axis=(1, 2)) == needed * 3 * SHAPES[0][0] * SHAPES[0][1]).all()


def random_levels(seed: int) -> Array:
    levels = np.random.default_rng(seed).integers(256, size=(BATCH, 3, 256))
    return jnp.asarray(levels, jnp.float32)


@pytest.mark.parametrize("shape", SHAPES)
def test_images_are_looked_up_exactly_in_every_form(shape: tuple[int, int]) -> None:
    images, levels = varied(*shape), random_levels(1)
    for form in (color.look_up_by_gather, color.look_up_by_comparison):
        channels: list[Any] = jax.jit(form)(planar(images), levels)
        for channel in range(3):
            tables = np.asarray(levels)[:, channel]
            expected = [
                table[image[..., channel]] for table, image in zip(tables, images, strict=True)
            ]
            np.testing.assert_array_equal(np.asarray(channels[channel], np.float32), expected)


def test_tables_are_looked_up_and_counted_exactly() -> None:
    levels, table = np.asarray(random_levels(2)), np.asarray(random_levels(3))
    looked_up = jax.jit(color.look_up_levels)(levels, table)
    expected = np.take_along_axis(table, levels.astype(int), axis=2)
    np.testing.assert_array_equal(looked_up, expected)
    counts = np.asarray(histograms(planar(varied(*SHAPES[0])), ALL))
    counted = np.asarray(jax.jit(color.count_levels)(levels, counts))
    for image in range(BATCH):
        for channel in range(3):
            where = levels[image, channel].astype(int)
            expected = np.bincount(where, counts[image, channel], minlength=256)
            np.testing.assert_array_equal(counted[image, channel], expected)
