import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from photos import apart, interleaved, keys_of, photo, planar, varied
from PIL import Image
from scipy import ndimage

from jaxcls.augment import draws, geometry
from jaxcls.config.augment import RandomCropAndResize

CANVAS = 64
UPRIGHT = jnp.zeros((1, 2), bool)

resize = jax.jit(geometry.resize_windows, static_argnums=4)
warp = jax.jit(geometry.warp, static_argnames="turns")


def on_canvas(image: np.ndarray, fill: int = 0) -> tuple[Array, Array]:
    """A batch of one: canvas and size."""
    height, width, _ = image.shape
    canvas = np.full((1, CANVAS, CANVAS, 3), fill, np.uint8)
    canvas[0, :height, :width] = image
    return jnp.asarray(canvas), jnp.asarray([[height, width]], jnp.int32)


def window(*numbers: float) -> Array:
    return jnp.asarray([numbers], jnp.float32)


# --- Crop and resize -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
@pytest.mark.parametrize(
    ("shape", "box", "size"),
    [
        ((64, 64), (0, 0, 64, 64), 32),
        ((63, 47), (0, 0, 63, 47), 32),
        ((60, 61), (7.25, 3.5, 40.5, 51.75), 33),
        ((33, 61), (2.5, 10.25, 28.1, 30.3), 40),
        ((20, 31), (4.75, 9.5, 11.5, 8.25), 32),  # enlarged
        ((64, 64), (0, 0, 64, 20), 7),
        ((1, 64), (0, 5, 1, 50), 32),  # one pixel high
    ],
)
def test_resize_is_pillows(
    name: str, shape: tuple[int, int], box: tuple[float, float, float, float], size: int
) -> None:
    """Bilinear, antialiased where it shrinks, of the same box with its fractions of pixels."""
    image = photo(*shape, name)
    canvas, sizes = on_canvas(image)
    actual = interleaved(resize(canvas, sizes, window(*box), UPRIGHT, size))[0]
    top, left, height, width = box
    expected = np.asarray(
        Image.fromarray(image).resize(
            (size, size), Image.Resampling.BILINEAR, box=(left, top, left + width, top + height)
        )
    )
    # Pillow's filter stops at the box, ours at the image: where it is cut, the edge may differ.
    inner = tuple(
        slice(None) if cut == whole else slice(math.ceil(size / cut), -math.ceil(size / cut))
        for cut, whole in zip((height, width), shape, strict=True)
    )
    assert apart(actual[inner], expected[inner]).max() <= 1
    assert apart(actual, expected).mean() <= 0.3


def test_a_window_of_the_images_own_size_is_cut_out() -> None:
    image = photo(40, 50)
    canvas, sizes = on_canvas(image, fill=9)
    actual = interleaved(resize(canvas, sizes, window(5, 11, 32, 32), UPRIGHT, 32))[0]
    np.testing.assert_array_equal(actual, image[5:37, 11:43])


@pytest.mark.parametrize("vertical", [False, True])
@pytest.mark.parametrize("horizontal", [False, True])
def test_a_mirrored_window_is_the_window_mirrored(vertical: bool, horizontal: bool) -> None:
    canvas, sizes = on_canvas(photo(41, 53))
    box = window(3.3, 4.7, 30.2, 44.1)
    plain = interleaved(resize(canvas, sizes, box, UPRIGHT, 33))[0]
    mirrored = jnp.asarray([[vertical, horizontal]])
    actual = interleaved(resize(canvas, sizes, box, mirrored, 33))[0]
    expected = plain[:: -1 if vertical else 1, :: -1 if horizontal else 1]
    # Half a pixel's rounding may fall to the other side.
    assert apart(actual, expected).max() <= 1
    assert (actual == expected).mean() > 0.95
    assert (vertical or horizontal) == (apart(actual, plain).max() > 20)


@pytest.mark.parametrize(
    ("shape", "box"),
    [
        ((21, 34), (0, 0, 21, 34)),
        ((64, 30), (20.5, 3, 43.5, 27)),
        ((1, 1), (0, 0, 1, 1)),
        ((2, 64), (0.4, 1, 1.6, 63)),
    ],
)
def test_what_lies_beside_the_image_has_no_influence(
    shape: tuple[int, int], box: tuple[float, float, float, float]
) -> None:
    image = photo(*shape)
    results = [resize(*on_canvas(image, fill), window(*box), UPRIGHT, 16) for fill in (0, 127, 255)]
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


@pytest.mark.parametrize("shape", [(5, 9), (64, 64), (1, 40), (1, 1)])
def test_a_constant_image_stays_constant(shape: tuple[int, int]) -> None:
    color = np.array([0, 200, 255], np.uint8)
    canvas, sizes = on_canvas(np.broadcast_to(color, (*shape, 3)), fill=77)
    actual = interleaved(resize(canvas, sizes, window(0, 0, *shape), UPRIGHT, 12))
    np.testing.assert_array_equal(actual, np.broadcast_to(color, (1, 12, 12, 3)))


# --- Windows -------------------------------------------------------------------------------------

COUNT = 20_000
SIZES = np.tile([[40, 60], [64, 64], [61, 17], [5, 64]], (COUNT // 4, 1)).astype(np.int32)


@functools.cache
def random_windows(of_pixels: bool, area: tuple[float, float], aspect: tuple[float, float]):
    entry = RandomCropAndResize(
        area=area, aspect=aspect, aspect_of="pixels" if of_pixels else "image"
    )
    make = functools.partial(geometry.random_windows, entry, size=32)
    uniforms = draws.uniform(keys_of(3, COUNT), 4)
    return np.asarray(jax.jit(make)(uniforms, jnp.asarray(SIZES)))


@pytest.mark.parametrize("of_pixels", [False, True])
def test_random_windows_have_uniform_area_and_aspect(of_pixels: bool) -> None:
    """Small enough that none is cut off at the image's size, but for the thinnest images."""
    area, aspect = (0.1, 0.3), (0.5, 2.0)
    windows = random_windows(of_pixels, area, aspect)
    wide = np.repeat([[True, True, False, False]], COUNT // 4, axis=0).ravel()
    rows = windows[wide] if of_pixels else windows
    sizes = SIZES[wide] if of_pixels else SIZES
    areas = rows[:, 2] * rows[:, 3] / sizes.prod(axis=1)
    aspects = rows[:, 3] / rows[:, 2]
    if not of_pixels:
        aspects = aspects * sizes[:, 0] / sizes[:, 1]
    for values, (low, high) in ((areas, area), (aspects, aspect)):
        assert values.min() >= low * (1 - 1e-4)
        assert values.max() <= high * (1 + 1e-4)
        assert values.mean() == pytest.approx((low + high) / 2, abs=0.015 * (high - low))
        assert values.std() == pytest.approx((high - low) / 12**0.5, rel=0.02)
    assert abs(np.corrcoef(areas, aspects)[0, 1]) < 0.03


@pytest.mark.parametrize("of_pixels", [False, True])
def test_random_windows_lie_within_their_images_at_uniform_places(of_pixels: bool) -> None:
    windows = random_windows(of_pixels, (0.08, 1.0), (0.75, 4 / 3))
    assert (windows[:, :2] >= 0).all()
    assert (windows[:, :2] + windows[:, 2:] <= SIZES * (1 + 1e-6)).all()
    assert (windows[:, 2:] > 0).all()
    free = SIZES - windows[:, 2:]
    for axis in (0, 1):
        has_room = free[:, axis] > 0.5
        shares = windows[has_room, axis] / free[has_room, axis]
        assert shares.mean() == pytest.approx(0.5, abs=0.01)
        assert shares.std() == pytest.approx(12**-0.5, abs=0.01)
    assert (free == 0).any()  # some reached the border and were clipped
    if not of_pixels:
        clipped = (free == 0).any(axis=1).mean()
        generator = np.random.default_rng(0)
        area, aspect = generator.uniform(0.08, 1, 10**6), generator.uniform(0.75, 4 / 3, 10**6)
        expected = (np.maximum(area / aspect, area * aspect) >= 1).mean()
        assert clipped == pytest.approx(expected, abs=0.01)


def test_square_windows_keep_a_share_of_the_shorter_side() -> None:
    sizes = jnp.asarray([[40, 60], [64, 64], [61, 17]], jnp.int32)
    offsets = jnp.asarray([[0, 1], [0.5, 0.5], [1, 0]], jnp.float32)
    windows = geometry.shaped_windows(sizes, 24, 0.75, offsets)
    expected = [[0, 30, 30, 30], [8, 8, 48, 48], [61 - 12.75, 4.25 * 0, 12.75, 12.75]]
    np.testing.assert_allclose(windows, expected, rtol=1e-6)


def test_windows_of_a_rectangle_have_its_shape_and_touch_the_border() -> None:
    sizes = jnp.asarray([[40, 60], [64, 64], [61, 17], [10, 64]], jnp.int32)
    offsets = jnp.asarray([[0, 1], [0.5, 0.5], [1, 0], [0, 0]], jnp.float32)
    windows = np.asarray(geometry.shaped_windows(sizes, (16, 32), 1.0, offsets))
    lengths = [[30, 60], [32, 64], [8.5, 17], [10, 20]]
    np.testing.assert_allclose(windows[:, 2:], lengths, rtol=1e-6)
    np.testing.assert_allclose(windows[:, :2], offsets * (sizes - np.asarray(lengths)), rtol=1e-6)
    smaller = geometry.shaped_windows(sizes, (16, 32), 0.5, offsets)
    np.testing.assert_allclose(smaller[:, 2:], np.asarray(lengths) / 2, rtol=1e-6)


def test_random_windows_of_a_rectangle_are_not_stretched_at_aspect_1() -> None:
    entry = RandomCropAndResize(area=(0.1, 0.3), aspect=(1.0, 1.0), aspect_of="pixels")
    sizes = jnp.asarray([[40, 60], [64, 48]] * 50, jnp.int32)
    uniforms = draws.uniform(keys_of(1, 100), 4)
    windows = np.asarray(geometry.random_windows(entry, uniforms, sizes, (20, 30)))
    np.testing.assert_allclose(windows[:, 3] / windows[:, 2], 1.5, rtol=1e-5)
    shares = windows[:, 2] * windows[:, 3] / np.prod(np.asarray(sizes), axis=1)
    assert 0.1 <= shares.min() < 0.15
    assert 0.25 < shares.max() <= 0.3001


# --- Warps ---------------------------------------------------------------------------------------

WARP_SIZES = [32, 33]


def map_of(xx=1.0, xy=0.0, x0=0.0, yx=0.0, yy=1.0, y0=0.0) -> np.ndarray:
    return np.array([[xx, xy, x0], [yx, yy, y0]])


def rotation(degrees: float, size: int) -> np.ndarray:
    """About the middle of the image."""
    angle, middle = np.radians(degrees), size / 2
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, -sin], [sin, cos]])
    return np.concatenate([turn, (middle - turn @ [middle, middle])[:, None]], axis=1)


def bilinear(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """SciPy's linear interpolation, mirrored at the borders, of uint8 [height, width, 3]."""
    rows, cols = np.meshgrid(*(np.arange(side) + 0.5 for side in image.shape[:2]), indexing="ij")
    x, y = (line[0] * cols + line[1] * rows + line[2] - 0.5 for line in matrix)
    channels = [
        ndimage.map_coordinates(image[..., channel].astype(float), [y, x], order=1, mode="reflect")
        for channel in range(3)
    ]
    return np.floor(np.stack(channels, axis=-1) + 0.5).astype(np.uint8)


def warped(images: np.ndarray, matrix: np.ndarray, *, turns: bool) -> np.ndarray:
    matrices = jnp.asarray(np.broadcast_to(matrix, (len(images), 2, 3)), jnp.float32)
    return interleaved(warp(planar(images), matrices, turns=turns))


@pytest.mark.parametrize("turns", [False, True])
@pytest.mark.parametrize("size", WARP_SIZES)
@pytest.mark.parametrize(
    "matrix",
    [
        map_of(xy=0.3),
        map_of(xy=-0.97),
        map_of(yx=0.55),
        map_of(yx=-0.2),
        map_of(x0=7.4),
        map_of(x0=-12.25, y0=3.7),
        map_of(y0=-30.0),
        map_of(x0=90.5),  # far beyond the border: mirrored more than once
        map_of(xy=0.4, x0=-3.3, y0=5.2),
    ],
    ids=str,
)
def test_a_shear_or_shift_is_scipys(matrix: np.ndarray, size: int, turns: bool) -> None:
    """Everywhere, the borders included."""
    images = varied(size, size)
    expected = np.stack([bilinear(image, matrix) for image in images])
    actual = warped(images, matrix, turns=turns)
    assert apart(actual, expected).max() <= 1
    assert apart(actual, expected).mean() <= 0.15
    assert apart(actual, images)[:2].mean() > 5


@pytest.mark.parametrize("turns", [False, True])
@pytest.mark.parametrize("shape", [(24, 40), (41, 20)])
@pytest.mark.parametrize(
    "matrix",
    [map_of(xy=0.2), map_of(yx=-0.2), map_of(x0=7.4), map_of(y0=-6.25), map_of(xy=-0.2, y0=3)],
    ids=str,
)
def test_a_shear_or_shift_of_a_rectangle_is_scipys(
    matrix: np.ndarray, shape: tuple[int, int], turns: bool
) -> None:
    images = varied(*shape)
    expected = np.stack([bilinear(image, matrix) for image in images])
    actual = warped(images, matrix, turns=turns)
    assert actual.shape == images.shape
    assert apart(actual, expected).max() <= 1
    assert apart(actual, expected).mean() <= 0.15


@pytest.mark.parametrize("degrees", [-30, 17])
def test_a_rotation_of_a_rectangle_is_scipys(degrees: float) -> None:
    images = np.stack([photo(96, 160), photo(96, 160, "flower.jpg")])
    angle, middle = np.radians(degrees), np.asarray([80, 48])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = np.concatenate([turn, (middle - turn @ middle)[:, None]], axis=1)
    expected = np.stack([bilinear(image, matrix) for image in images])
    error = apart(warped(images, matrix, turns=True), expected)[:, 16:-16, 16:-16]
    assert error.mean() <= 1


@pytest.mark.parametrize("size", WARP_SIZES)
@pytest.mark.parametrize("degrees", [-30, -11, 3, 30, 45, 90, 135, 180])
def test_a_rotation_is_scipys_but_for_the_order_of_interpolation(degrees: float, size: int) -> None:
    """The error grows with the angle and with detail, of which a photo so small has the most."""
    images = varied(size, size)[:3]
    matrix = rotation(degrees, size)
    expected = np.stack([bilinear(image, matrix) for image in images])
    actual = warped(images, matrix, turns=True)
    margin = size // 6
    inner = (slice(None), slice(margin, -margin), slice(margin, -margin))
    error = apart(actual[inner], expected[inner])
    assert error.mean() <= (0.5 if abs(degrees) < 15 else 1.5 if abs(degrees) <= 30 else 3)
    if degrees % 90 == 0:
        assert error.max() == 0


@pytest.mark.parametrize("degrees", [-30, -17, 8, 30])
def test_a_rotation_of_a_photo_of_128_pixels_is_scipys(degrees: float) -> None:
    """Mean error at most one level of 255."""
    images = np.stack([photo(128, 128), photo(128, 128, "flower.jpg")])
    matrix = rotation(degrees, 128)
    expected = np.stack([bilinear(image, matrix) for image in images])
    error = apart(warped(images, matrix, turns=True), expected)[:, 16:-16, 16:-16]
    assert error.mean() <= 1


@pytest.mark.parametrize("turns", [False, True])
def test_the_identity_changes_nothing(turns: bool) -> None:
    images = varied(33, 33)
    np.testing.assert_array_equal(warped(images, map_of(), turns=turns), images)


def random_maps(count: int, size: int) -> np.ndarray:
    """Products of shears, shifts and turns, also such as squeeze an image to a line."""
    generator = np.random.default_rng(5)
    maps = [map_of(xx=0, xy=1, yx=1, yy=0), map_of(xx=0, yy=0), map_of(xx=1e-3, xy=1, yx=1, yy=1)]
    while len(maps) < count:
        total = np.eye(3)
        for _ in range(3):
            kind = generator.integers(4)
            amount = generator.uniform(-1, 1)
            step = [
                map_of(xy=amount),
                map_of(yx=amount),
                map_of(x0=amount * size, y0=-amount * size / 3),
                rotation(30 * amount, size),
            ][kind]
            total = total @ np.concatenate([step, [[0, 0, 1]]])
        maps.append(total[:2])
    return np.stack(maps)


@pytest.mark.parametrize("turns", [False, True])
@pytest.mark.parametrize("size", WARP_SIZES)
def test_any_map_keeps_a_constant_and_makes_no_new_extremes(size: int, turns: bool) -> None:
    matrices = jnp.asarray(random_maps(8, size), jnp.float32)
    constant = np.full((8, size, size, 3), (0, 131, 255), np.uint8)
    actual = interleaved(warp(planar(constant), matrices, turns=turns))
    np.testing.assert_array_equal(actual, constant)
    narrow = np.clip(varied(size, size), 40, 200)
    actual = interleaved(warp(planar(narrow), matrices, turns=turns))
    assert actual.min() >= 40
    assert actual.max() <= 200


# --- Forms for platforms -------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "size"), [((40, 37), 32), ((40, 37), 9), ((24, 24), 33)])
def test_both_forms_of_resize_are_equal(shape: tuple[int, int], size: int) -> None:
    canvases = jnp.asarray(varied(*shape))
    generator = np.random.default_rng(1)
    sizes = jnp.asarray(generator.integers(1, np.add(shape, 1), (8, 2)), jnp.int32)
    entry = RandomCropAndResize(area=(0.1, 1.0), aspect=(0.5, 2.0))
    windows = geometry.random_windows(entry, draws.uniform(keys_of(1, 8), 4), sizes, 32)
    mirrored = jnp.asarray(generator.integers(2, size=(8, 2)), bool)
    taps = [
        geometry._resize_taps(
            windows[:, axis],
            windows[:, axis + 2],
            sizes[:, axis],
            mirrored[:, axis],
            size=size,
            extent=shape[axis],
        )
        for axis in (0, 1)
    ]
    forms = geometry.resize_by_gather, geometry.resize_by_matmul
    gathered, multiplied = (jax.jit(form)(canvases, *taps) for form in forms)
    np.testing.assert_array_equal(gathered, multiplied)
    assert np.ptp(np.asarray(gathered)[-1]) > 50


@pytest.mark.parametrize("size", WARP_SIZES)
def test_both_forms_of_a_warp_are_equal(size: int) -> None:
    images = planar(varied(size, size))
    generator = np.random.default_rng(2)
    rows, cols = (
        jnp.asarray(generator.integers(256 * (size - 1) + 1, size=(8, size, size)), jnp.int32)
        for _ in range(2)
    )
    forms = geometry.warp_by_gather, geometry.warp_by_matmul
    gathered, multiplied = (jax.jit(form)(images, rows, cols) for form in forms)
    np.testing.assert_array_equal(gathered, multiplied)
