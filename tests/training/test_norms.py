import jax.numpy as jnp
import numpy as np
import pytest

from jaxcls.training.norms import tree_norm


@pytest.mark.parametrize("together", [False, True])
def test_the_norm_is_that_of_all_elements(together: bool) -> None:
    draws = np.random.default_rng(0)
    arrays = [draws.normal(size=(n % 5 + 1, n % 3 + 1)) for n in range(150)]  # some kernels
    tree = {str(n): jnp.asarray(array, jnp.float32) for n, array in enumerate(arrays)}
    expected = np.sqrt(sum(np.sum(array**2) for array in arrays))
    np.testing.assert_allclose(tree_norm(tree, together=together), expected, rtol=1e-5)
