import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from photos import keys_of

from jaxcls.augment import mix

COUNT = 20_000
HEIGHT, WIDTH = 12, 16
SHAPE = (4, HEIGHT, WIDTH)  # of channels, too

cutmix_weights = jax.jit(mix.cutmix_weights, static_argnums=2)
blend = jax.jit(mix.blend, static_argnums=2)


def random_kept(seed: int, count: int) -> Array:
    """Shares on the grid that Beta draws lie on."""
    return jnp.asarray(np.random.default_rng(seed).integers(4097, size=count) / 4096, jnp.float32)


def test_the_labels_share_is_the_visible_area() -> None:
    """Exact in pixels; the division by the image's area rounds to the last bit or its neighbour."""
    pixels, visible = cutmix_weights(keys_of(0, COUNT), random_kept(0, COUNT), SHAPE)
    pixels = np.asarray(pixels)
    assert set(np.unique(pixels)) == {0.0, 1.0}
    assert (pixels == pixels[:, :1]).all()
    counted = pixels[:, 0].sum(axis=(1, 2))
    shares = np.asarray(visible, np.float64)
    np.testing.assert_allclose(shares, counted / (HEIGHT * WIDTH), rtol=2**-22, atol=0)
    np.testing.assert_array_equal(np.round(shares * HEIGHT * WIDTH), counted)
    assert len(np.unique(counted)) > 50


def test_boxes_have_the_area_they_should_and_are_cut_off_at_the_border() -> None:
    """Against every centre that a box of this size may have."""
    for kept in (0.25, 0.5, 0.9):
        shares = jnp.full(COUNT, kept, jnp.float32)
        _, visible = cutmix_weights(keys_of(1, COUNT), shares, SHAPE)
        expected = 1.0
        largest = 1.0
        for length in (HEIGHT, WIDTH):
            whole = np.round(np.sqrt(1 - kept) * length)
            first = np.arange(length) - np.floor(whole / 2)
            seen = np.minimum(first + whole, length) - np.maximum(first, 0)
            expected *= seen.mean() / length
            largest *= whole / length
        visible = np.asarray(visible)
        assert visible.mean() == pytest.approx(expected, rel=0.02)
        assert visible.max() == pytest.approx(largest)
        assert (visible < largest * 0.99).mean() > 0.2
        assert largest == pytest.approx(1 - kept, abs=0.05)


@pytest.mark.parametrize("kept", [0.0, 1.0])
def test_boxes_of_everything_and_of_nothing(kept: float) -> None:
    _, visible = cutmix_weights(keys_of(2, 200), jnp.full(200, kept), SHAPE)
    if kept:
        assert not np.asarray(visible).any()
    else:
        assert np.min(visible) > 0.25 * 0.8  # centred in a corner, a quarter is seen
        assert np.max(visible) == 1


@pytest.mark.parametrize("group_size", [2, 4, 12])
def test_partners_are_mirror_places_of_a_group(group_size: int) -> None:
    batch = 12
    labels = jnp.eye(batch)
    mixed = np.asarray(blend(labels, jnp.full((batch, 1), 0.25), group_size))
    place = np.arange(batch)
    partner = place // group_size * group_size + group_size - 1 - place % group_size
    np.testing.assert_array_equal(partner[partner], place)
    np.testing.assert_array_equal(mixed, 0.75 * np.eye(batch) + 0.25 * np.eye(batch)[partner])


def test_a_blend_takes_each_pixels_share() -> None:
    generator = np.random.default_rng(3)
    images = generator.integers(256, size=(4, 3, 5, 6), dtype=np.uint8)
    weights = generator.random((4, 3, 5, 6), np.float32)
    actual = blend(jnp.asarray(images), jnp.asarray(weights), 2)
    assert actual.dtype == jnp.float32
    own, others = images.astype(np.float64), images[[1, 0, 3, 2]].astype(np.float64)
    np.testing.assert_allclose(actual, own * (1 - weights) + others * weights, atol=1e-4)
    np.testing.assert_array_equal(blend(jnp.asarray(images), jnp.zeros((4, 1, 1, 1)), 2), own)
    np.testing.assert_array_equal(blend(jnp.asarray(images), jnp.ones((4, 1, 1, 1)), 2), others)


def test_mixup_gives_pixels_and_label_one_share() -> None:
    kept = random_kept(4, 50)
    pixels, labels = mix.mixup_weights(kept)
    np.testing.assert_array_equal(labels, 1 - kept)
    np.testing.assert_array_equal(jnp.squeeze(pixels, (1, 2, 3)), labels)
