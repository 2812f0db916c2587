import jax
import jax.numpy as jnp
import numpy as np
import pytest
from photos import keys_of
from scipy import stats

from jaxcls.augment import draws

COUNT = 20_000
beta = jax.jit(draws.beta)


def test_an_images_key_follows_from_its_place_alone() -> None:
    root = jax.random.key(3)
    whole = jax.random.key_data(draws.image_keys(root, jnp.arange(64)))
    places = np.random.default_rng(0).permutation(64)
    some = jax.random.key_data(draws.image_keys(root, jnp.asarray(places[:10])))
    np.testing.assert_array_equal(some, whole[places[:10]])
    assert len(np.unique(np.asarray(whole), axis=0)) == 64


def test_keys_folded_with_other_numbers_are_others() -> None:
    keys = keys_of(0, 16)
    data = [np.asarray(jax.random.key_data(draws.fold_in(keys, number))) for number in range(4)]
    assert len(np.unique(np.concatenate(data), axis=0)) == 64


@pytest.mark.parametrize(
    ("draw", "distribution"), [(draws.uniform, stats.uniform), (draws.normal, stats.norm)]
)
def test_draws_follow_their_distribution(draw, distribution) -> None:
    drawn = np.asarray(draw(keys_of(1, COUNT), 2))
    assert drawn.shape == (COUNT, 2)
    assert drawn.dtype == np.float32
    for column in drawn.T:
        assert stats.kstest(column, distribution.cdf).pvalue > 1e-3
    assert abs(np.corrcoef(drawn.T)[0, 1]) < 0.03


@pytest.mark.parametrize("alpha", [0.2, 0.5, 1.0, 8.0])
def test_beta_follows_its_distribution_on_a_grid(alpha: float) -> None:
    drawn = np.asarray(beta(keys_of(2, COUNT), jnp.float32(alpha)))
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    np.testing.assert_array_equal(drawn * 4096, np.round(drawn * 4096))
    reference = stats.beta(alpha, alpha)
    assert drawn.mean() == pytest.approx(0.5, abs=0.012)
    assert drawn.std() == pytest.approx(reference.std(), rel=0.02)
    for quantile in (0.01, 0.1, 0.3, 0.7, 0.9, 0.99):
        # Half a grain of the grid to either side.
        bounds = reference.cdf(np.array([quantile - 1 / 8192, quantile + 1 / 8192]))
        share = (drawn <= quantile).mean()
        assert bounds[0] - 0.012 <= share <= bounds[1] + 0.012


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_beta_is_that_of_jax(alpha: float) -> None:
    keys = keys_of(5, 100)
    expected = jax.vmap(lambda key: jax.random.beta(key, alpha, alpha))(keys)
    np.testing.assert_allclose(beta(keys, jnp.float32(alpha)), expected, atol=0.51 / 4096)


def test_beta_of_zero_is_one() -> None:
    np.testing.assert_array_equal(beta(keys_of(4, 100), jnp.float32(0)), 1)
