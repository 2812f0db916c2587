import functools
from typing import NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from photos import apart, interleaved, keys_of, photo, planar, varied
from PIL import Image, ImageOps
from scipy import ndimage, stats

from jaxcls.augment import color
from jaxcls.augment.randaugment import (
    KEPT,
    MAPS,
    TABLES,
    Draw,
    Layers,
    apply_layers,
    aug_mix,
    draw_layers,
    rand_augment,
    trivial_augment,
)
from jaxcls.config.augment import (
    GUIDE_OPS,
    NEED_RGB,
    TRIVIAL_OPS,
    AugMix,
    OpName,
    RandAugment,
    TrivialAugment,
)

OPS: tuple[OpName, ...] = get_args(OpName)
SIZE, BATCH, LAYERS = 24, 32, 3
COUNT = 20_000
BEGIN = jnp.float32(0)  # of the training

apply = jax.jit(apply_layers, static_argnums=1)
draw_many = jax.jit(draw_layers, static_argnums=(1, 2))


def test_every_operation_of_the_schema_is_in_the_table() -> None:
    assert sorted(OPS) == sorted([*TABLES, *KEPT, *MAPS])


# --- A simple reference: image after image, operation after operation -----------------------------


def one_matrix(name: str, size: int, strength: float, shift: float) -> np.ndarray:
    """From places in the result to places in the image, in pixels from the top left corner."""
    matrix = np.eye(3)
    if name == "ShearX":
        matrix[0, 1] = strength
    elif name == "ShearY":
        matrix[1, 0] = strength
    elif name == "TranslateX":
        matrix[0, 2] = shift * size
    elif name == "TranslateY":
        matrix[1, 2] = shift * size
    elif name == "Rotate":
        cos, sin = np.cos(np.radians(30 * strength)), np.sin(np.radians(30 * strength))
        there, back = np.eye(3), np.eye(3)
        there[:2, 2], back[:2, 2] = -size / 2, size / 2
        matrix = back @ [[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]] @ there
    return matrix


def warp_once(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    size = len(image)
    rows, cols = np.meshgrid(*[np.arange(size) + 0.5] * 2, indexing="ij")
    x, y = (line[0] * cols + line[1] * rows + line[2] - 0.5 for line in matrix[:2])
    channels = [
        ndimage.map_coordinates(image[..., channel].astype(float), [y, x], order=1, mode="reflect")
        for channel in range(3)
    ]
    return to_bytes(np.stack(channels, axis=-1))


def to_bytes(values: np.ndarray) -> np.ndarray:
    return np.clip(np.floor(values + 0.5), 0, 255).astype(np.uint8)


def recolor(name: str, image: np.ndarray, draw: dict[str, float]) -> np.ndarray:
    """One photometric operation on uint8 [size, size, 3].

    Rounded to the nearest level; Pillow truncates here and there, and what follows may amplify it.
    """
    values = image.astype(np.float64)
    magnitude, std = draw["magnitude"], draw["std"]
    strength = np.clip(magnitude + std * draw["first"], 0, 1)
    symmetric = magnitude * draw["uniform"]
    pillow = Image.fromarray(image)
    match name:
        case "AutoContrast":
            low, high = values.min(axis=(0, 1)), values.max(axis=(0, 1))
            stretched = (values - low) * 255 / np.maximum(high - low, 1)
            return to_bytes(np.where(high > low, stretched, values))
        case "Equalize":
            return np.asarray(ImageOps.equalize(pillow))
        case "Invert":
            return np.asarray(ImageOps.invert(pillow))
        case "Sharpness":
            kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]])[..., None] / 13
            smooth = values.copy()
            smooth[1:-1, 1:-1] = to_bytes(ndimage.correlate(values, kernel))[1:-1, 1:-1]
            return to_bytes(smooth + (values - smooth) * (1 + symmetric))
        case "Posterize":
            return np.asarray(ImageOps.posterize(pillow, int(np.round(8 - 4 * strength))))
        case "Solarize":
            share = np.clip(1 - magnitude + std * draw["second"], 0, 1)
            threshold = 255 * share if share < 1 and magnitude > 0 else 256
            added = np.where(values < threshold, values + 110 * strength, values)
            added = to_bytes(added).astype(np.float64)
            return to_bytes(np.where(added < threshold, added, 255 - added))
        case "Color":
            grey = values @ [0.299, 0.587, 0.114]
            return to_bytes(values + strength * (grey[..., None] - values))
        case "Contrast":
            mean = values.mean(axis=(0, 1))
            return to_bytes(mean + (values - mean) * (1 + symmetric))
        case "Brightness":
            return to_bytes(values + 255 * symmetric)
    raise ValueError(name)


LayerDraws = list[tuple[str, dict[str, float]]]


def composed(layers: LayerDraws, size: int) -> np.ndarray:
    matrix = np.eye(3)
    for name, draw in layers:
        strength = np.clip(draw["magnitude"] + draw["std"] * draw["first"], 0, 1)
        shift = draw["magnitude"] * draw["uniform"]
        matrix = matrix @ one_matrix(name, size, draw["sign"] * strength, shift)
    return matrix


def reference_warp(image: np.ndarray, layers: LayerDraws) -> np.ndarray:
    """All geometric operations of an image as one bilinear interpolation."""
    matrix = composed(layers, len(image))
    return image if np.array_equal(matrix, np.eye(3)) else warp_once(image, matrix)


def reference_colors(image: np.ndarray, layers: LayerDraws) -> np.ndarray:
    """The photometric operations of an image, one after the other in drawn order."""
    for name, draw in layers:
        if name not in MAPS:
            image = recolor(name, image, draw)
    return image


class Compared(NamedTuple):
    """uint8 [images, size, size, 3] each, and what every image drew."""

    moved: np.ndarray  # by the geometric layers alone
    moved_expected: np.ndarray
    actual: np.ndarray
    expected: np.ndarray
    recolored: np.ndarray  # the reference's colours on what the shipped warp made
    drawn: list[LayerDraws]


@functools.cache
def compare(ops: tuple[str, ...], batches: int) -> Compared:
    """Draws many layers and applies them to photographs, here and by the reference."""
    images = np.concatenate([varied(SIZE, SIZE)[:3]] * (BATCH // 3 + 1))[:BATCH]
    names = np.array([*ops, "None"])
    geometric = jnp.asarray([name in MAPS for name in names])
    rows = []
    for batch in range(batches):
        layers = draw_many(
            keys_of(batch, BATCH),
            len(ops),
            LAYERS,
            magnitude=jnp.float32([0.3, 0.6][batch % 2]),
            std=jnp.float32(0.15),
            rate=jnp.float32(10 / 11),
        )
        only_maps = layers._replace(
            choice=jnp.where(geometric[layers.choice], layers.choice, len(ops))
        )
        moved = interleaved(apply(planar(images), ops, only_maps))
        actual = interleaved(apply(planar(images), ops, layers))
        fields = {name: np.asarray(value) for name, value in layers.draws._asdict().items()}
        for row in range(BATCH):
            drawn = [
                (str(name), {field: float(value[row, layer]) for field, value in fields.items()})
                for layer, name in enumerate(names[np.asarray(layers.choice)[row]])
                if name != "None"
            ]
            warped = reference_warp(images[row], drawn)
            expected, recolored = (reference_colors(image, drawn) for image in (warped, moved[row]))
            rows.append((moved[row], warped, actual[row], expected, recolored, drawn))
    *arrays, drawn = zip(*rows, strict=True)
    return Compared(*map(np.stack, arrays), drawn=list(drawn))


@pytest.mark.parametrize(("ops", "batches"), [(OPS, 6), (GUIDE_OPS, 3)])
def test_colors_agree_with_the_reference(ops: tuple[str, ...], batches: int) -> None:
    """Tables compose exactly. Blends in a row part by their rounding, or where they clip."""
    found = compare(ops, batches)
    error = apart(found.actual, found.recolored)
    assert (error <= 1).mean() > 0.998
    alone = np.array([sum(name in KEPT for name, _ in drawn) <= 1 for drawn in found.drawn])
    assert 0.5 < alone.mean() < 1
    assert (error[alone] == 0).mean() > 0.999


@pytest.mark.parametrize(("ops", "batches"), [(OPS, 6), (GUIDE_OPS, 3)])
def test_warps_agree_with_the_reference(ops: tuple[str, ...], batches: int) -> None:
    """To a level for a shear or shift; others differ by the order of interpolation and mirroring.

    (What is mirrored beyond the borders is then the image after the first of two passes.)
    """
    found = compare(ops, batches)
    error = apart(found.moved, found.moved_expected)
    maps = [[name for name, _ in drawn if name in MAPS] for drawn in found.drawn]
    plain = np.array([len(names) == 1 and "Rotate" not in names for names in maps])
    assert plain.mean() > 0.2
    assert error[plain].max() <= 1
    middles = np.arange(SIZE) + 0.5
    places = np.stack([*np.meshgrid(middles, middles), np.ones((SIZE, SIZE))])
    sources = np.stack(
        [np.tensordot(composed(drawn, SIZE)[:2], places, 1) for drawn in found.drawn]
    )
    within = ((sources >= 0.5) & (sources <= SIZE - 0.5)).all(axis=1)
    each = np.array(
        [image[inner].mean() for image, inner in zip(error, within, strict=True) if inner.any()]
    )
    assert within.mean() > 0.5
    assert each.mean() < 0.5
    assert each.max() < 4


def test_all_operations_agree_with_the_reference() -> None:
    """A level that the warp rounded otherwise may be amplified by what follows."""
    found = compare(OPS, 6)
    assert (apart(found.actual, found.expected) <= 1).mean() > 0.93


# --- Strength 0 ----------------------------------------------------------------------------------

NO_STRENGTH: tuple[OpName, ...] = ("AutoContrast", "Equalize", "Invert")
WITH_STRENGTH: tuple[OpName, ...] = tuple(name for name in OPS if name not in NO_STRENGTH)
DRAWS = ("magnitude", "std", "first", "second", "uniform")
EXTREMES = [(-4.0, -1.0, -1.0), (4.0, 0.999, 1.0)]  # normals, uniform, sign


def without_strength(names: tuple[OpName, ...]) -> Layers:
    """One operation an image at magnitude 0 and deviation 0, each with both extremes of draws."""
    rows = [(OPS.index(name), *extreme) for name in names for extreme in EXTREMES]
    rows += [(len(OPS), 0.0, 0.0, 1.0)] * (BATCH - len(rows))
    chosen, normal, uniform, sign = np.array(rows, np.float32).T
    choice = np.full((BATCH, LAYERS), len(OPS), np.int32)
    choice[:, 1] = chosen
    zeros = jnp.zeros((BATCH, LAYERS))
    draws = Draw(zeros, zeros, *(zeros + one[:, None] for one in (normal, normal, uniform, sign)))
    return Layers(jnp.asarray(choice), draws)


@pytest.mark.parametrize("number", range(8))
def test_without_strength_an_operation_changes_nothing(number: int) -> None:
    """Of images full of 0 and 255 too. The three without a strength do what they always do."""
    images = np.repeat(varied(SIZE, SIZE)[number : number + 1], BATCH, axis=0)
    actual = interleaved(apply(planar(images), OPS, without_strength(WITH_STRENGTH)))
    np.testing.assert_array_equal(actual, images)
    actual = interleaved(apply(planar(images), OPS, without_strength(NO_STRENGTH)))
    for name, result in zip(NO_STRENGTH, actual[:: len(EXTREMES)], strict=False):
        assert apart(result, recolor(name, images[0], dict.fromkeys(DRAWS, 0.0))).max() <= 1


def test_the_operations_that_need_rgb_are_those_that_mix_channels() -> None:
    """The others give the same if red and blue change places before or after them."""
    full, none = jnp.ones((len(OPS), 1)), jnp.zeros((len(OPS), 1))
    draw = Draw(magnitude=0.7 * full, std=none, first=none, second=none, uniform=full, sign=full)
    layers = Layers(choice=jnp.arange(len(OPS))[:, None], draws=draw)
    images = planar(np.stack([photo(SIZE, SIZE)] * len(OPS)))
    changed = apply(images, OPS, layers)
    swapped = apply(images[:, ::-1], OPS, layers)[:, ::-1]
    mixing = {op for op, one, two in zip(OPS, changed, swapped, strict=True) if (one != two).any()}
    assert mixing == set(NEED_RGB)
    assert (np.asarray(changed) != np.asarray(images)).any(axis=(1, 2, 3)).all()


def test_without_strength_tables_are_the_identity() -> None:
    """So whatever looks them up."""
    levels = color.identity_levels(BATCH)
    counts = jnp.asarray(np.random.default_rng(0).integers(9, size=levels.shape), jnp.float32)
    for name in set(WITH_STRENGTH) & TABLES.keys():
        for row in range(2):
            draw = Draw(*(array[row::2][:, 1] for array in without_strength(WITH_STRENGTH).draws))
            table = TABLES[name](levels[row::2], counts[row::2], draw)
            np.testing.assert_array_equal(table, levels[row::2], err_msg=name)


def test_solarize_inverts_nothing_at_0_and_all_at_1() -> None:
    """At a magnitude of 0, or a threshold that is drawn at or above 255, white stays white."""
    cases = [(0.0, 0.0, 0.0), (0.0, 0.15, -3.0), (0.3, 0.15, 3.0), (0.3, 0.0, 0.0), (1.0, 0.0, 0.0)]
    magnitude, std, second = jnp.asarray(cases).T
    zeros = jnp.zeros(len(cases))
    levels = color.identity_levels(len(cases))
    draw = Draw(magnitude, std, -10 * jnp.ones(len(cases)), second, zeros, zeros + 1)
    tables = np.asarray(TABLES["Solarize"](levels, levels, draw))[:, 0]
    assert tables[:, 255].tolist() == [255, 255, 255, 0, 0]
    np.testing.assert_array_equal(tables[4], 255 - np.arange(256))


# --- Draws ---------------------------------------------------------------------------------------


@functools.cache
def many_layers(magnitude: float = 0.5, std: float = 0.15, rate: float = 10 / 11) -> Layers:
    return jax.device_get(
        draw_many(
            keys_of(7, COUNT),
            10,
            LAYERS,
            magnitude=jnp.float32(magnitude),
            std=jnp.float32(std),
            rate=jnp.float32(rate),
        )
    )


def test_operations_are_drawn_uniformly_and_left_out_at_their_rate() -> None:
    choice = many_layers().choice
    assert choice.shape == (COUNT, LAYERS)
    for layer in choice.T:
        counts = np.bincount(layer, minlength=11) / COUNT
        np.testing.assert_allclose(counts, 1 / 11, atol=0.008)  # 10 operations, and nothing
    pairs = np.bincount(choice[:, 0] * 11 + choice[:, 1], minlength=121) / COUNT
    np.testing.assert_allclose(pairs, 1 / 121, atol=0.003)  # with replacement, independently


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_the_rate_is_the_share_of_layers_that_do_anything(rate: float) -> None:
    choice = many_layers(rate=rate).choice
    assert (choice < 10).mean() == pytest.approx(rate, abs=0.006)


@pytest.mark.parametrize(("magnitude", "std"), [(0.5, 0.15), (0.1, 0.15), (0.9, 0.3), (0.4, 0.0)])
def test_strengths_are_normal_and_clipped(magnitude: float, std: float) -> None:
    draw = Draw(*map(jnp.asarray, many_layers(magnitude, std).draws))
    strengths = np.asarray(draw.clipped())
    assert strengths.min() >= 0
    assert strengths.max() <= 1
    exact = np.clip(magnitude + std * stats.norm.ppf((np.arange(10**5) + 0.5) / 10**5), 0, 1)
    assert strengths.mean() == pytest.approx(exact.mean(), abs=0.005)
    assert strengths.std() == pytest.approx(exact.std(), abs=0.005)
    for end in (0, 1):
        assert (strengths == end).mean() == pytest.approx((exact == end).mean(), abs=0.006)
    symmetric = np.asarray(draw.symmetric())
    assert np.abs(symmetric).max() <= magnitude
    assert symmetric.mean() == pytest.approx(0, abs=0.01 * magnitude)
    assert symmetric.std() == pytest.approx(magnitude / 3**0.5, rel=0.02)
    assert set(np.unique(draw.sign)) == {-1.0, 1.0}
    assert np.mean(draw.sign) == pytest.approx(0, abs=0.015)


def test_every_draw_is_independent_of_the_others() -> None:
    layers = many_layers()
    columns = [layers.choice.astype(float), *layers.draws[2:]]
    table = np.concatenate(columns, axis=1).T  # every draw of every layer
    correlations = np.corrcoef(table) - np.eye(len(table))
    assert np.abs(correlations).max() < 0.03


# --- Policies ------------------------------------------------------------------------------------

PHOTOS = planar(np.stack([photo(16, 16), photo(16, 16, "flower.jpg")] * 8))


def unchanged(images: Array) -> np.ndarray:
    return (np.asarray(images) == np.asarray(PHOTOS)).all(axis=(1, 2, 3))


def test_rand_augment_of_rate_zero_changes_nothing() -> None:
    entry = RandAugment(ops=OPS, num_ops=3, magnitude=0.5, magnitude_std=0.5, rate=0.0)
    images = rand_augment(entry, keys_of(0, 16), PHOTOS, BEGIN)
    assert unchanged(images).all()


def test_trivial_augment_does_one_thing_or_nothing() -> None:
    """Invert always changes a photo: it is drawn as often as doing nothing."""
    many = jnp.broadcast_to(PHOTOS[:1, :, :4, :4], (4000, 3, 4, 4))
    change = jax.jit(functools.partial(trivial_augment, TrivialAugment(ops=("Invert",))))
    result = np.asarray(change(keys_of(1, 4000), many, BEGIN))
    inverted = (result == 255 - np.asarray(many)).all(axis=(1, 2, 3))
    same = (result == np.asarray(many)).all(axis=(1, 2, 3))
    assert (inverted ^ same).all()
    assert inverted.mean() == pytest.approx(0.5, abs=0.03)


def test_trivial_augment_draws_its_strength_uniformly() -> None:
    """Of translations by U(-m, m), seen on a ramp: |shift| has density -log."""
    size = 64
    ramp = jnp.broadcast_to(jnp.arange(size, dtype=jnp.uint8) * 2, (2000, 3, 1, size))
    change = jax.jit(functools.partial(trivial_augment, TrivialAugment(ops=("TranslateX",))))
    middle = np.asarray(change(keys_of(2, 2000), ramp, BEGIN))[:, 0, 0, size // 2]
    shifts = np.abs(middle.astype(float) - size) / 2 / size
    moved = shifts[shifts > 0.02]
    small = (moved < 0.25).mean()
    # P(m u < x) = x (1 - log x); mirrored beyond a half, so only within it.
    below = lambda x: x * (1 - np.log(x))  # noqa: E731
    expected = (below(0.25) - below(0.02)) / (1 - below(0.02))
    assert small == pytest.approx(expected, abs=0.05)


def mixed(alpha: float, width: int = 3) -> np.ndarray:
    change = functools.partial(aug_mix, AugMix(ops=("Invert",), width=width, depth=1, alpha=alpha))
    black = jnp.zeros((COUNT, 1, 1, 1), jnp.uint8)
    images = jax.jit(change)(keys_of(3, COUNT), black, BEGIN)
    return np.asarray(images)[:, 0, 0, 0]


@pytest.mark.parametrize("alpha", [0.5, pytest.param(1.0, marks=pytest.mark.long)])
def test_aug_mix_has_weights_of_sum_one_and_a_beta_share(alpha: float) -> None:
    """Every chain turns black to white, so that the result is the mixture's share."""
    shares = mixed(alpha) / 255
    reference = stats.beta(alpha, alpha)
    assert shares.mean() == pytest.approx(0.5, abs=0.01)
    assert shares.std() == pytest.approx(reference.std(), abs=0.01)
    for quantile in (0.1, 0.25, 0.75, 0.9):
        assert (shares <= quantile).mean() == pytest.approx(reference.cdf(quantile), abs=0.02)


def test_aug_mix_draws_chains_of_every_length() -> None:
    """Chains of Invert: an even length changes nothing, an odd one turns black to white."""
    depth, count = 3, 4000
    change = functools.partial(aug_mix, AugMix(ops=("Invert",), width=1, depth=depth, alpha=1e4))
    black = jnp.zeros((count, 3, 1, 1), jnp.uint8)
    images = jax.jit(change)(keys_of(4, count), black, BEGIN)
    changed = np.asarray(images)[:, 0, 0, 0] > 0  # the share is next to a half
    assert changed.mean() == pytest.approx(2 / 3, abs=0.03)  # lengths 1 and 3


@pytest.mark.parametrize("ops", [GUIDE_OPS, TRIVIAL_OPS, ("Sharpness",), ("Rotate", "Color")])
def test_any_list_of_operations_applies(ops: tuple[OpName, ...]) -> None:
    layers = draw_many(
        keys_of(5, 16),
        len(ops),
        2,
        magnitude=jnp.float32(0.8),
        std=jnp.float32(0.1),
        rate=jnp.float32(1),
    )
    images = apply(PHOTOS, ops, layers)
    assert images.shape == PHOTOS.shape
    assert images.dtype == jnp.uint8
    assert unchanged(images).mean() < 0.5
