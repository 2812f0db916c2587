import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from photos import keys_of, planar, varied
from scipy import stats

from jaxcls.augment import erase
from jaxcls.config.augment import Cutout, RandomErasing

BEGIN = jnp.float32(0)  # of the training
COUNT = 20_000
HEIGHT, WIDTH = 20, 30
LENGTHS = np.array([HEIGHT, WIDTH])


def edges(images: Array) -> np.ndarray:
    """Top, left, bottom, right of what is not black, [batch, 4]; checks that it is a rectangle."""
    covered = np.asarray(images)[:, 0] > 0
    ends = []
    for axis in (2, 1):
        line = covered.any(axis=axis)
        first, count = line.argmax(axis=1), line.sum(axis=1)
        ends.append((first, first + count))
    (top, bottom), (left, right) = ends
    np.testing.assert_array_equal(covered.sum(axis=(1, 2)), (bottom - top) * (right - left))
    return np.stack([top, left, bottom, right], axis=1)


BLACK = jnp.zeros((COUNT, 3, HEIGHT, WIDTH), jnp.uint8)
white = functools.partial(erase.paint, fill="constant", value=1.0)


def test_boxes_are_covered_exactly() -> None:
    boxes = np.array([[0, 0, 20, 30], [3, 4, 4, 9], [5, 5, 5, 5], [19, 29, 20, 30]])
    images = planar(varied(HEIGHT, WIDTH))[:4]
    actual = erase.paint(
        keys_of(0, 4), images, jnp.asarray(boxes, jnp.float32), fill="constant", value=0.4
    )
    expected = np.array(images)
    for image, (top, left, bottom, right) in zip(expected, boxes, strict=True):
        image[:, top:bottom, left:right] = 102
    np.testing.assert_array_equal(actual, expected)


def test_noise_is_of_every_level_and_another_in_each_image_and_channel() -> None:
    boxes = jnp.asarray([[0, 0, 64, 64]] * 4, jnp.float32)
    black = jnp.zeros((4, 3, 64, 64), jnp.uint8)
    noise = np.asarray(erase.paint(keys_of(0, 4), black, boxes, fill="noise", value=0.0))
    counts = np.bincount(noise.ravel(), minlength=256)
    assert stats.chisquare(counts).pvalue > 1e-3
    flat = noise.reshape(12, -1)
    correlations = np.corrcoef(flat) - np.eye(12)
    assert np.abs(correlations).max() < 0.08
    half = jnp.asarray([[0, 0, 64, 32]] * 4, jnp.float32)
    partly = np.asarray(erase.paint(keys_of(0, 4), black, half, fill="noise", value=0.0))
    np.testing.assert_array_equal(partly[..., :32], noise[..., :32])
    assert not partly[..., 32:].any()


@pytest.mark.parametrize("size", [0.5, 1.0])
def test_cutout_is_centred_anywhere_with_uniform_sides(size: float) -> None:
    cut = jax.jit(functools.partial(erase.cutout, Cutout(size=size, value=1.0)))
    boxes = edges(cut(keys_of(1, COUNT), BLACK, BEGIN))
    sides = boxes[:, 2:] - boxes[:, :2]
    assert (sides <= np.round(size * LENGTHS)).all()
    seen = sides.min(axis=1) > 0
    some = 1.0
    for axis, length in enumerate(LENGTHS):
        # Every centre and every side, both uniform, cut off at the border.
        whole = np.round(np.linspace(0, size * length, 4001))
        first = np.arange(length)[:, None] - np.floor(whole / 2)
        visible = np.minimum(first + whole, length) - np.maximum(first, 0)
        expected = visible[visible > 0]
        assert sides[seen, axis].mean() == pytest.approx(expected.mean(), rel=0.02)
        assert sides[seen, axis].std() == pytest.approx(expected.std(), rel=0.03)
        at_border = (boxes[seen, axis] == 0).mean()
        assert at_border == pytest.approx((first <= 0)[visible > 0].mean(), abs=0.012)
        some *= (visible > 0).mean()
    assert seen.mean() == pytest.approx(some, abs=0.006)


def test_cutout_of_no_size_covers_nothing() -> None:
    images = planar(varied(HEIGHT, WIDTH))
    for fill in ("constant", "noise"):
        entry = Cutout(size=0.0, fill=fill, value=0.5)
        actual = erase.cutout(entry, keys_of(0, 8), images, BEGIN)
        np.testing.assert_array_equal(actual, images)


def erased(probability: float, area: tuple[float, float], aspect: tuple[float, float]):
    entry = RandomErasing(
        probability=probability, area=area, aspect=aspect, fill="constant", value=1.0
    )
    erasing = jax.jit(functools.partial(erase.random_erasing, entry))
    return edges(erasing(keys_of(2, COUNT), BLACK, BEGIN))


def test_erasing_has_its_rate_area_and_aspect() -> None:
    area, aspect = (0.1, 0.3), (0.5, 2.0)
    boxes = erased(0.3, area, aspect)
    sides = (boxes[:, 2:] - boxes[:, :2])[(boxes[:, 2:] > boxes[:, :2]).all(axis=1)]
    assert len(sides) / COUNT == pytest.approx(0.3, abs=0.01)
    shares = sides / LENGTHS
    areas, aspects = shares.prod(axis=1), shares[:, 1] / shares[:, 0]
    # Sides are whole pixels: half a pixel on each.
    slack = (1 + 0.5 / (LENGTHS * np.sqrt([area[0] / aspect[1], area[0] * aspect[0]]))).prod()
    assert areas.min() >= area[0] / slack
    assert areas.max() <= area[1] * slack
    assert areas.mean() == pytest.approx(0.2, rel=0.02)
    assert areas.std() == pytest.approx(0.2 / 12**0.5, rel=0.05)
    assert np.log(aspects).mean() == pytest.approx(0, abs=0.03)
    assert np.log(aspects).std() == pytest.approx(np.log(4) / 12**0.5, rel=0.05)


def test_erasing_lies_inside_the_image_at_uniform_places() -> None:
    boxes = erased(1.0, (0.02, 0.33), (0.3, 3.3))
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= LENGTHS).all()
    sides = boxes[:, 2:] - boxes[:, :2]
    assert (sides > 0).all()
    for axis, length in enumerate(LENGTHS):
        free = length - sides[:, axis]
        place = (boxes[:, axis] + 0.5) / (free + 1)
        assert place.mean() == pytest.approx(0.5, abs=0.01)
        assert (boxes[:, axis] == 0).mean() == pytest.approx((1 / (free + 1)).mean(), abs=0.01)
        assert (boxes[:, axis] == free).mean() == pytest.approx((1 / (free + 1)).mean(), abs=0.01)


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_erasing_nothing_or_everything(probability: float) -> None:
    boxes = erased(probability, (1.0, 1.0), (1.0, 1.0))
    np.testing.assert_array_equal(
        boxes[:, 2:] - boxes[:, :2], probability * np.tile(LENGTHS, (COUNT, 1))
    )
