import functools
from collections.abc import Callable
from typing import Any, get_args

import dm_pix
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import Array
from photos import varied

from jaxcls.augment.pipeline import make_augment
from jaxcls.config.augment import (
    NEED_RGB,
    Augmentation,
    AugMix,
    CenterCrop,
    Cutout,
    Mix,
    OpName,
    RandAugment,
    RandomCrop,
    RandomCropAndResize,
    RandomErasing,
    RandomFlip,
    TrivialAugment,
)
from jaxcls.config.sizes import ImageSize
from jaxcls.distributed.mesh import make_mesh, replicated, split_by_example

SIZE, CANVAS, BATCH, CLASSES = 14, 18, 16, 5
KEY = jax.random.key(7)
OPS: tuple[OpName, ...] = get_args(OpName)

GUIDE = (RandomFlip(), RandomCropAndResize(), RandAugment(magnitude=0.3), Mix())
EVERYTHING = (
    RandomFlip(vertical=0.5),
    RandomCropAndResize(area=(0.2, 1.0)),
    RandAugment(ops=OPS, num_ops=2),
    Cutout(fill="noise"),
    RandomErasing(probability=0.5),
    Mix(group_size=2),
)


@functools.cache
def compiled(*augment: Augmentation) -> Callable[..., tuple[Array, Array]]:
    return jax.jit(make_augment(augment, image_size=SIZE, crop_fraction=0.75))


def inputs() -> tuple[Array, Array, Array, Array]:
    """Photos of different sizes on canvases full of noise, soft labels, and positions."""
    generator = np.random.default_rng(0)
    canvases = generator.integers(256, size=(BATCH, CANVAS, CANVAS, 3), dtype=np.uint8)
    sizes = generator.integers(CANVAS // 2, CANVAS + 1, size=(BATCH, 2), dtype=np.int32)
    for index, (height, width) in enumerate(sizes):
        canvases[index, :height, :width] = varied(height, width)[index % 8]
    labels = generator.dirichlet(np.ones(CLASSES), BATCH).astype(np.float32)
    return jnp.asarray(canvases), jnp.asarray(sizes), jnp.asarray(labels), jnp.arange(BATCH)


def run(
    augment: tuple[Augmentation, ...],
    key: Array = KEY,
    progress: float = 0.0,
    batch: tuple[Array, ...] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    return jax.device_get(compiled(*augment)(key, jnp.float32(progress), *(batch or inputs())))


# --- What comes out ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "augment",
    [
        pytest.param(GUIDE, marks=pytest.mark.long, id="guide"),
        pytest.param(EVERYTHING, id="everything"),
    ],
)
def test_shapes_types_and_ranges(augment: tuple[Augmentation, ...]) -> None:
    images, labels = run(augment)
    assert (images.shape, images.dtype) == ((BATCH, SIZE, SIZE, 3), np.float32)
    assert (labels.shape, labels.dtype) == ((BATCH, CLASSES), np.float32)
    assert images.min() >= 0
    assert images.max() <= 1
    np.testing.assert_allclose(labels.sum(axis=1), 1, rtol=1e-6)


def test_labels_stay_without_a_mixer() -> None:
    np.testing.assert_array_equal(run((CenterCrop(),))[1], inputs()[2])


def test_each_image_and_each_step_draws_for_itself() -> None:
    canvases, sizes, labels, positions = inputs()
    same = jnp.broadcast_to(canvases[:1], canvases.shape), jnp.full_like(sizes, CANVAS)
    batch = (*same, labels, positions)
    images, _ = run(EVERYTHING, batch=batch)
    assert len({image.tobytes() for image in images}) == BATCH
    again, _ = run(EVERYTHING, batch=batch)
    np.testing.assert_array_equal(again, images)
    others, _ = run(EVERYTHING, key=jax.random.key(8), batch=batch)
    assert (others != images).any(axis=(1, 2, 3)).all()


def test_entries_of_one_kind_draw_apart() -> None:
    """A second Cutout with the first one's draws would cover the same boxes."""
    once, _ = run((CenterCrop(), Cutout()))
    twice, _ = run((CenterCrop(), Cutout(), Cutout()))
    assert (once == 0).mean() * 1.3 < (twice == 0).mean()


# --- The same everywhere -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "devices", [*(pytest.param(n, marks=pytest.mark.long) for n in (1, 2, 4)), 8]
)
def test_devices_change_no_bit_and_exchange_nothing(devices: int) -> None:
    mesh = make_mesh(jax.devices()[:devices])
    rows, same = split_by_example(mesh), replicated(mesh)
    augment = make_augment(EVERYTHING, image_size=SIZE, crop_fraction=0.75, mesh=mesh)
    arguments = (
        *jax.device_put((KEY, jnp.float32(0)), same),
        *(jax.device_put(array, rows) for array in inputs()),
    )
    program = jax.jit(augment).lower(*arguments).compile()
    images, labels = program(*arguments)
    assert len(images.sharding.device_set) == devices
    expected_images, expected_labels = run(EVERYTHING)
    np.testing.assert_array_equal(labels, expected_labels)
    np.testing.assert_array_equal(images, expected_images)
    text = str(program.as_text())
    assert "fusion" in text
    for collective in ("all-gather", "all-reduce", "all-to-all", "collective-", "reduce-scatter"):
        assert collective not in text


@pytest.mark.parametrize("rows", [pytest.param(2, marks=pytest.mark.long), 8])
def test_a_part_of_the_batch_is_treated_as_in_the_whole(rows: int) -> None:
    """Micro-batches keep their examples' positions; not a bit changes."""
    images, labels = run(EVERYTHING)
    for start in range(0, BATCH, rows) if rows == 8 else (0, 6, 14):
        part = slice(start, start + rows)
        some = run(EVERYTHING, batch=tuple(array[part] for array in inputs()))
        np.testing.assert_array_equal(some[0], images[part])
        np.testing.assert_array_equal(some[1], labels[part])


def test_a_position_decides_and_not_the_row() -> None:
    augment = EVERYTHING[:-1]
    images, _ = run(augment)
    order = np.random.default_rng(1).permutation(BATCH)
    shuffled, _ = run(augment, batch=tuple(array[order] for array in inputs()))
    np.testing.assert_array_equal(shuffled, images[order])


@pytest.mark.parametrize("platform", ["tpu", "default"])
def test_the_forms_of_other_platforms_change_no_bit(
    platform: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here on a CPU. What "default" is runs on a GPU."""
    expected = run(EVERYTHING)
    taken = []

    def choose(*arguments: Any, default: Callable | None = None, **forms: Callable) -> Any:
        form = forms.get(platform, default)
        assert form is not None
        taken.append(form)
        return form(*arguments)

    monkeypatch.setattr(jax.lax, "platform_dependent", choose)
    augment = make_augment(EVERYTHING, image_size=SIZE, crop_fraction=0.75)
    images, labels = jax.jit(augment)(KEY, jnp.float32(0), *inputs())
    assert len(taken) > 4
    np.testing.assert_array_equal(images, expected[0])
    np.testing.assert_array_equal(labels, expected[1])


# --- Other numbers of channels -------------------------------------------------------------------

ANY_CHANNELS = (
    RandomFlip(vertical=0.5),
    RandomCropAndResize(area=(0.2, 1.0)),
    AugMix(ops=tuple(op for op in OPS if op not in NEED_RGB), width=1, depth=1),
    Cutout(),
    RandomErasing(probability=0.5, fill="constant", value=0.5),
    Mix(group_size=2),
)


@pytest.mark.parametrize(
    ("channels", "size"),
    [
        (6, (SIZE, SIZE + 4)),
        *(pytest.param(n, SIZE, marks=pytest.mark.long) for n in (1, 2, 4)),
    ],
)
def test_each_channel_is_treated_as_in_an_image_of_three(channels: int, size: ImageSize) -> None:
    """Red, green and blue again and again, or a part of them: every channel as in the RGB image."""
    augment = jax.jit(make_augment(ANY_CHANNELS, image_size=size, crop_fraction=0.75))
    canvases, *others = inputs()
    expected, labels = augment(KEY, jnp.float32(0), canvases, *others)
    among = np.arange(channels) % 3
    images, same = augment(KEY, jnp.float32(0), canvases[..., among], *others)
    np.testing.assert_array_equal(images, np.asarray(expected)[..., among])
    np.testing.assert_array_equal(same, labels)
    assert not np.array_equal(images[0], images[1])


@pytest.mark.long
@pytest.mark.parametrize("platform", ["tpu", "default"])
def test_the_forms_of_other_platforms_change_no_bit_of_five_channels(
    platform: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def choose(*arguments: Any, default: Callable | None = None, **forms: Callable) -> Any:
        return (forms.get(platform) or default or forms["cpu"])(*arguments)

    canvases, *others = inputs()
    batch = canvases[..., np.arange(5) % 3], *others
    expected = run(ANY_CHANNELS, batch=batch)
    monkeypatch.setattr(jax.lax, "platform_dependent", choose)
    augment = make_augment(ANY_CHANNELS, image_size=SIZE, crop_fraction=0.75)
    images, _ = jax.jit(augment)(KEY, jnp.float32(0), *batch)
    np.testing.assert_array_equal(images, expected[0])


def test_noise_is_another_in_each_of_six_channels() -> None:
    canvases, *others = inputs()
    whole = (CenterCrop(), RandomErasing(probability=1.0, area=(1.0, 1.0), aspect=(1.0, 1.0)))
    images, _ = run(whole, batch=(canvases[..., np.arange(6) % 3], *others))
    assert abs(np.corrcoef(images.reshape(-1, 6).T) - np.eye(6)).max() < 0.1


# --- Ragged input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "resize",
    [
        CenterCrop(),
        RandomCrop(),
        RandomCropAndResize(area=(0.05, 1.0)),
        RandomCropAndResize(area=(0.05, 1.0), aspect=(0.5, 2.0), aspect_of="pixels"),
    ],
    ids=str,
)
def test_poison_beside_the_images_has_no_influence(resize: Augmentation) -> None:
    _, _, labels, positions = inputs()
    sizes = np.random.default_rng(2).integers(1, CANVAS + 1, (BATCH, 2)).astype(np.int32)
    sizes[:4] = [[1, 1], [1, CANVAS], [CANVAS, 1], [CANVAS, CANVAS]]
    results = []
    for poison in (0, 127, 255):
        canvases = np.full((BATCH, CANVAS, CANVAS, 3), poison, np.uint8)
        for index, (height, width) in enumerate(sizes):
            canvases[index, :height, :width] = 50 + varied(height, width)[index % 8] // 4
        batch = (jnp.asarray(canvases), jnp.asarray(sizes), labels, positions)
        results.append(run((resize,), batch=batch)[0])
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])
    levels = results[0] * 255
    assert levels.min() >= 50 - 1e-3
    assert levels.max() <= 50 + 255 // 4 + 1e-3


# --- Flips ---------------------------------------------------------------------------------------


def flips(*augment: Augmentation, count: int = 20_000) -> np.ndarray:
    """Whether each of many images is mirrored: top to bottom, left to right."""
    corner = jnp.zeros((2, 2, 3), jnp.uint8).at[0, 0].set(255)
    program = jax.jit(make_augment(augment, image_size=2, crop_fraction=1.0))
    images, _ = program(
        KEY,
        jnp.float32(0),
        jnp.broadcast_to(corner, (count, 2, 2, 3)),
        jnp.full((count, 2), 2, jnp.int32),
        jnp.ones((count, 1)),
        jnp.arange(count),
    )
    lit = np.asarray(images)[..., 0] > 0.5
    assert (lit.sum(axis=(1, 2)) == 1).all()
    return np.stack([lit[:, 1].any(axis=1), lit[:, :, 1].any(axis=1)], axis=1)


def test_flips_have_their_rates_and_are_independent() -> None:
    mirrored = flips(RandomFlip(horizontal=0.5, vertical=0.2), CenterCrop())
    assert mirrored[:, 0].mean() == pytest.approx(0.2, abs=0.01)
    assert mirrored[:, 1].mean() == pytest.approx(0.5, abs=0.012)
    assert abs(np.corrcoef(mirrored.T)[0, 1]) < 0.03


def test_a_flip_may_stand_before_or_after_the_resize_or_on_both_sides() -> None:
    assert flips(CenterCrop(), RandomFlip(horizontal=1.0), count=10)[:, 1].all()
    assert flips(RandomFlip(horizontal=1.0), CenterCrop(), count=10)[:, 1].all()
    both = flips(RandomFlip(horizontal=1.0), CenterCrop(), RandomFlip(horizontal=1.0), count=10)
    assert not both.any()


def test_nothing_is_mirrored_without_a_flip() -> None:
    assert not flips(CenterCrop(), count=100).any()


# --- Mixing --------------------------------------------------------------------------------------


def mixed(mix: Mix, steps: int = 1, size: int = 8, batch: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Black images of one label, each with a white partner of another: [steps, batch, …]."""
    white = jnp.arange(batch) % mix.group_size >= mix.group_size // 2
    canvases = jnp.broadcast_to(white[:, None, None, None], (batch, size, size, 3))
    augment = make_augment((CenterCrop(), mix), image_size=size, crop_fraction=1.0)

    def step(number: Array) -> tuple[Array, Array]:
        return augment(
            jax.random.fold_in(KEY, number),
            jnp.float32(0),
            canvases.astype(jnp.uint8) * 255,
            jnp.full((batch, 2), size, jnp.int32),
            jax.nn.one_hot(white.astype(jnp.int32), 2),
            jnp.arange(batch),
        )

    return jax.device_get(jax.jit(jax.vmap(step))(jnp.arange(steps)))


@pytest.mark.parametrize("group_size", [2, 4])
def test_cutmix_weighs_labels_by_the_visible_area(group_size: int) -> None:
    images, labels = mixed(Mix(cutmix=1.0, mixup=0.0, group_size=group_size), steps=500)
    assert set(np.unique(images)) == {0.0, 1.0}
    counted = images[..., 0].sum(axis=(2, 3))
    np.testing.assert_array_equal(labels[..., 1], counted / 64)  # a power of 2: not a bit rounds
    np.testing.assert_array_equal(labels.sum(axis=-1), 1)
    assert len(np.unique(counted)) > 30


def test_mixup_gives_pixels_and_labels_one_share() -> None:
    images, labels = mixed(Mix(cutmix=0.0, mixup=1.0), steps=500)
    np.testing.assert_array_equal(labels.sum(axis=-1), 1)
    expected = np.broadcast_to(labels[..., None, None, 1:], images.shape)
    np.testing.assert_allclose(images, expected, atol=1e-7)
    assert len(np.unique(labels)) > 100
    assert labels[:, 0, 0].mean() == pytest.approx(0.5, abs=0.07)


def test_a_batch_gets_one_mixer_at_its_probability() -> None:
    """Shares are never 0 or 1 at so high an alpha: mixed pixels are grey, cut ones are not."""
    steps = 20_000
    mix = Mix(cutmix=0.3, cutmix_alpha=50.0, mixup=0.5, mixup_alpha=50.0)
    images, labels = mixed(mix, steps=steps, size=4)
    grey = (images[..., 0] > 0) & (images[..., 0] < 1)
    mixing = grey.all(axis=(2, 3))
    np.testing.assert_array_equal(mixing, grey.any(axis=(2, 3)))
    changed = (labels > 0).all(axis=-1)
    cutting = changed & ~mixing
    for kind in (mixing, cutting):
        assert (kind == kind[:, :1]).all()
    assert mixing[:, 0].mean() == pytest.approx(0.5, abs=0.012)
    assert cutting[:, 0].mean() == pytest.approx(0.3, abs=0.012)
    # Within a batch, each image has a share of its own.
    assert (labels[mixing[:, 0], 0, 0] != labels[mixing[:, 0], 2, 0]).mean() > 0.9


def test_a_share_of_alpha_zero_mixes_nothing() -> None:
    for mix in (Mix(cutmix=1.0, mixup=0.0, cutmix_alpha=0.0), Mix(cutmix=0.0, mixup=0.0)):
        images, labels = mixed(mix, steps=3)
        assert set(np.unique(labels)) == {0.0, 1.0}
        assert (images.mean(axis=(2, 3, 4)) == labels[..., 1]).all()


@pytest.mark.parametrize("group_size", [2, 4, 8])
def test_labels_come_from_within_the_group(group_size: int) -> None:
    mix = Mix(cutmix=0.0, mixup=1.0, mixup_alpha=50.0, group_size=group_size)
    canvases, sizes, _, positions = inputs()
    _, labels = run((CenterCrop(), mix), batch=(canvases, sizes, jnp.eye(BATCH), positions))
    place = np.arange(BATCH)
    partner = place // group_size * group_size + group_size - 1 - place % group_size
    expected = np.eye(BATCH, dtype=bool) | np.eye(BATCH, dtype=bool)[partner]
    np.testing.assert_array_equal(labels > 0, expected)


# --- Stages --------------------------------------------------------------------------------------


def test_stages_equal_their_constants_and_compile_once() -> None:
    def staged(*values: float) -> tuple[Augmentation, ...]:
        (first, *more) = values
        strength: Any = values if more else first
        return (
            CenterCrop(),
            RandAugment(magnitude=strength, magnitude_std=strength, ops=("Brightness", "ShearX")),
            Cutout(size=strength),
            RandomErasing(probability=strength),
            Mix(cutmix_alpha=strength, mixup_alpha=strength),
        )

    values, traces = (0.1, 0.4, 0.8), 0
    augment = make_augment(staged(*values), image_size=SIZE, crop_fraction=0.75)

    def counted(*arguments: Any) -> tuple[Array, Array]:
        nonlocal traces
        traces += 1
        return augment(*arguments)

    program = jax.jit(counted)
    for stage, value in enumerate(values):
        constant = run(staged(value))
        for progress in (stage / 3 + 0.01, (stage + 1) / 3 - 0.01):
            images, labels = program(KEY, jnp.float32(progress), *inputs())
            np.testing.assert_array_equal(images, constant[0])
            np.testing.assert_array_equal(labels, constant[1])
    assert traces == 1
    first, last = (program(KEY, jnp.float32(progress), *inputs())[0] for progress in (0, 1))
    assert not np.array_equal(first, last)


# --- Properties ----------------------------------------------------------------------------------

LISTS: dict[str, tuple[Augmentation, ...]] = {
    "everything": EVERYTHING,
    "trivial": (RandomCrop(), TrivialAugment(), RandomErasing(fill="constant", value=0.5)),
    "augmix": (CenterCrop(), AugMix(width=2, depth=2), Cutout(value=1.0)),
}


@pytest.mark.parametrize(
    "augment",
    [
        pytest.param(augment, marks=pytest.mark.long if name == "augmix" else (), id=name)
        for name, augment in LISTS.items()
    ],
)
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, CANVAS), st.integers(1, CANVAS)),
    low=st.integers(0, 255),
    high=st.integers(0, 255),
)
def test_no_nan_and_nothing_outside_the_range(
    augment: tuple[Augmentation, ...], seed: int, shape: tuple[int, int], low: int, high: int
) -> None:
    canvases, _, labels, positions = inputs()
    pixels = np.asarray(canvases)
    pixels = (min(low, high) + pixels * (abs(high - low) / 255)).astype(np.uint8)
    batch = (jnp.asarray(pixels), jnp.asarray([shape] * BATCH, jnp.int32), labels, positions)
    images, mixed_labels = run(augment, key=jax.random.key(seed), batch=batch)
    assert images.shape == (BATCH, SIZE, SIZE, 3)
    assert ((images >= 0) & (images <= 1)).all()  # false for NaN
    np.testing.assert_allclose(mixed_labels.sum(axis=1), 1, rtol=1e-6)


@settings(max_examples=25, deadline=None)
@given(strength=st.floats(0, 1, width=32), alpha=st.floats(0, 100, width=32))
def test_any_strength_keeps_the_range(strength: float, alpha: float) -> None:
    """The strengths are arguments of one compiled function."""
    images, labels = strong(KEY, jnp.float32(strength), jnp.float32(alpha), *inputs())
    assert ((images >= 0) & (images <= 1)).all()
    np.testing.assert_allclose(np.sum(labels, axis=1), 1, rtol=1e-6)


@jax.jit
def strong(key: Array, strength: Any, alpha: Any, *batch: Array) -> tuple[Array, Array]:
    """The augmentation with traced numbers where a config has constants."""
    augment = (
        CenterCrop(),
        RandAugment(ops=OPS, num_ops=2, magnitude=strength, magnitude_std=strength),
        Cutout(size=strength),
        RandomErasing(probability=strength),
        Mix(cutmix_alpha=alpha, mixup_alpha=alpha),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxcls.config.progressive.at_progress", lambda value, progress: value)
        apply = make_augment(augment, image_size=SIZE, crop_fraction=0.75)
        return apply(key, jnp.float32(0), *batch)


# --- dm-pix --------------------------------------------------------------------------------------


def test_functions_of_dm_pix_on_the_shipped_path(monkeypatch: pytest.MonkeyPatch) -> None:
    called = set()

    def spy(name: str, function: Callable) -> Callable:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            called.add(name)
            return function(*arguments, **options)

        return wrapped

    for name, function in vars(dm_pix).items():
        if callable(function):
            monkeypatch.setattr(dm_pix, name, spy(name, function))
    augment = make_augment(
        (CenterCrop(), RandAugment(ops=OPS)), image_size=SIZE, crop_fraction=0.75
    )
    jax.eval_shape(augment, KEY, jnp.float32(0), *inputs())
    assert called == {"solarize", "adjust_brightness"}


def test_strengths_of_zero_change_nothing() -> None:
    """Of any entry that has one, and of images full of 0 and 255; where stages begin at 0 too."""
    ops: tuple[OpName, ...] = ("Solarize", "Color", "Contrast", "Brightness", "Sharpness")
    nothing = compiled(
        RandomFlip(horizontal=0.0),
        CenterCrop(),
        RandAugment(ops=ops, num_ops=1, magnitude=(0.0, 0.5), magnitude_std=0.0, rate=1.0),
        AugMix(ops=("Solarize", "Posterize"), magnitude=0.0, magnitude_std=0.0, width=2, depth=1),
        Cutout(size=(0.0, 0.5), value=0.5),
        RandomErasing(probability=0.0),
        Mix(cutmix_alpha=0.0, mixup_alpha=0.0),
    )
    canvases, sizes, labels, positions = inputs()
    canvases = jnp.where(canvases > 127, 255, 0).astype(jnp.uint8).at[::2].set(255)
    arguments = (KEY, jnp.float32(0), canvases, sizes, labels, positions)
    images, mixed = nothing(*arguments)
    expected, _ = compiled(CenterCrop())(*arguments)
    np.testing.assert_array_equal(images, expected)
    np.testing.assert_allclose(mixed, labels, atol=1e-6)
