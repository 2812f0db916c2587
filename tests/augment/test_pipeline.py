import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from jaxcls.augment.pipeline import make_augment
from jaxcls.config import AugmentConfig
from jaxcls.parallel import make_mesh, replicated, split_by_example

SIZE, CANVAS, BATCH, CLASSES = 12, 16, 16, 4


def inputs() -> tuple[Array, Array, Array, Array]:
    generator = np.random.default_rng(0)
    canvases = generator.integers(256, size=(BATCH, CANVAS, CANVAS, 3), dtype=np.uint8)
    sizes = generator.integers(CANVAS // 2, CANVAS + 1, size=(BATCH, 2), dtype=np.int32)
    labels = jax.nn.one_hot(generator.integers(CLASSES, size=BATCH), CLASSES)
    return jnp.asarray(canvases), jnp.asarray(sizes), labels, jnp.arange(BATCH)


augment = jax.jit(make_augment(AugmentConfig(), image_size=SIZE, crop_fraction=0.75))
KEY = jax.random.key(7)


def test_shapes_and_ranges() -> None:
    images, labels = augment(KEY, *inputs())
    assert (images.shape, images.dtype) == ((BATCH, SIZE, SIZE, 3), jnp.float32)
    assert float(images.min()) >= 0
    assert float(images.max()) <= 1
    np.testing.assert_array_equal(labels, inputs()[2])


def test_each_image_and_each_step_draws_for_itself() -> None:
    canvases, sizes, labels, positions = inputs()
    same = jnp.broadcast_to(canvases[:1], canvases.shape), jnp.full_like(sizes, CANVAS)
    images, _ = augment(KEY, *same, labels, positions)
    assert len({image.tobytes() for image in np.asarray(images)}) > BATCH // 2
    others, _ = augment(jax.random.key(8), *same, labels, positions)
    assert not np.array_equal(images, others)


def test_an_image_depends_on_its_position_and_not_on_the_batch() -> None:
    whole, _ = augment(KEY, *inputs())
    order = jnp.asarray(np.random.default_rng(1).permutation(BATCH))
    shuffled, _ = augment(KEY, *(array[order] for array in inputs()))
    np.testing.assert_allclose(shuffled, whole[order], atol=1e-6)
    halves = [
        augment(KEY, *(array[start : start + BATCH // 2] for array in inputs()))[0]
        for start in (0, BATCH // 2)
    ]
    np.testing.assert_allclose(jnp.concatenate(halves), whole, atol=1e-6)


@pytest.mark.parametrize("devices", [2, 8])
def test_devices_change_nothing_and_exchange_nothing(devices: int) -> None:
    mesh = make_mesh(jax.devices()[:devices])
    rows = split_by_example(mesh)
    sharded = jax.jit(
        make_augment(AugmentConfig(), image_size=SIZE, crop_fraction=0.75),
        in_shardings=(replicated(mesh), rows, rows, rows, rows),
        out_shardings=rows,
    ).lower(KEY, *inputs())
    compiled = sharded.compile()
    whole, _ = augment(KEY, *inputs())
    arguments = [jax.device_put(array, rows) for array in inputs()]
    images, _ = compiled(jax.device_put(KEY, replicated(mesh)), *arguments)
    np.testing.assert_allclose(images, whole, atol=1e-6)
    for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert collective not in str(compiled.as_text())


def test_digits_are_not_mirrored() -> None:
    """A gradient from left to right stays one when flips are off."""
    upright = make_augment(AugmentConfig(flip=False), image_size=SIZE, crop_fraction=0.75)
    ramp = np.broadcast_to(np.arange(CANVAS, dtype=np.uint8)[:, None] * 10, (CANVAS, CANVAS, 3))
    _, sizes, labels, positions = inputs()
    canvases = jnp.asarray(np.broadcast_to(ramp, (BATCH, CANVAS, CANVAS, 3)))
    images, _ = upright(KEY, canvases, jnp.full_like(sizes, CANVAS), labels, positions)
    assert (np.diff(np.asarray(images), axis=2) > 0).all()
