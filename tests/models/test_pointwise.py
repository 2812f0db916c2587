import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcls.models.pointwise import _with_gradient_in_parts, num_parts


@pytest.mark.parametrize("parts", [1, 2, 9])
def test_the_gradient_in_parts_is_that_of_the_product(parts: int) -> None:
    draws = np.random.default_rng(0)
    x = jnp.asarray(draws.normal(size=(2, 3, 3, 5)), jnp.float32)
    kernel = jnp.asarray(draws.normal(size=(5, 7)), jnp.float32)
    weights = jnp.asarray(draws.normal(size=(2, 3, 3, 7)), jnp.float32)
    actual, expected = (
        jax.value_and_grad(lambda *of, f=f: jnp.sum(weights * f(*of)), argnums=(0, 1))(x, kernel)
        for f in (lambda x, kernel: _with_gradient_in_parts(x, kernel, parts), jnp.matmul)
    )
    jax.tree.map(lambda *of: np.testing.assert_allclose(*of, rtol=1e-5), actual, expected)


@pytest.mark.parametrize(
    ("pixels", "inputs", "outputs", "expected"),
    [
        (256 * 112 * 112, 32, 16, 128),  # one tile: as many parts as multiprocessors
        (256 * 14 * 14, 672, 112, 28),  # six tiles
        (256 * 7 * 7, 192, 1152, 14),  # eighteen tiles; in 8 parts, each would be padded
        (3 * 49, 16, 16, 49),  # nothing is a multiple of 64
    ],
)
def test_parts_are_whole_and_no_longer_than_the_compiler_needs(
    pixels: int, inputs: int, outputs: int, expected: int
) -> None:
    parts = num_parts(pixels, inputs, outputs)
    assert parts == expected
    assert pixels % parts == 0
