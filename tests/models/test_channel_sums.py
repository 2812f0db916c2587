"""The kernel of NVIDIA GPUs, step by step on a CPU, against the same sums by the compiler."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from jaxcls.distributed.mesh import make_mesh
from jaxcls.models.channel_sums import sum_by_compiler, sum_by_kernel


def terms(x: Array, grad: Array, mean: Array, scale: Array) -> tuple[Array, ...]:
    """No term of a pixel is 0, so that a pixel outside of the images would be noticed."""
    normed = (x - mean) * scale
    return jnp.cos(normed), grad * normed, grad + 1


@pytest.mark.parametrize(
    ("devices", "shape", "groups", "rows"),
    [
        (1, (4, 5, 3, 24), 1, 1),  # fewer channels than a tile
        (1, (2, 40, 40, 130), 2, 2),  # an example in pieces, and two tiles of channels
        (1, (64, 3, 3, 8), 4, 4),  # units of one example, in groups
        # Units of two examples, in groups.
        pytest.param(1, (128, 2, 1, 1152), 4, None, marks=pytest.mark.long),
        (1, (6, 2, 2, 16), 6, 3),  # a sum of each example, vectors of two
        # A group on all devices.
        pytest.param(8, (16, 3, 3, 16), 1, 1, marks=pytest.mark.long),
        (8, (16, 3, 3, 16), 4, 4),  # groups on two devices each
        (8, (32, 3, 3, 16), 32, 16),  # groups within a device
    ],
)
def test_the_kernel_equals_the_compiler(
    devices: int, shape: tuple[int, ...], groups: int, rows: int | None
) -> None:
    mesh = make_mesh(jax.devices()[:devices])
    draws = np.random.default_rng(0)
    images = [jnp.asarray(draws.normal(size=shape), jnp.bfloat16) for _ in range(2)]
    # With a vector for each example, a unit has one; the second is of all channels.
    sizes = ((rows, shape[-1]), (shape[0], 1)) if rows else ((1, shape[-1]), (1, 1))
    vectors = [jnp.asarray(draws.normal(size=size), jnp.float32) for size in sizes]

    @jax.jit
    def by_kernel(*operands: Array) -> tuple[Array, ...]:
        return sum_by_kernel(
            terms,
            operands[:2],
            operands[2:],
            groups=groups,
            mesh=mesh.abstract_mesh,
            interpret=True,
        )

    with jax.set_mesh(mesh):
        sums = by_kernel(*images, *vectors)
    expected = sum_by_compiler(terms, images, vectors, groups=groups)
    assert [of.shape for of in sums] == [(groups, shape[-1])] * 3
    for actual, wanted in zip(sums, expected, strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=1e-4)
