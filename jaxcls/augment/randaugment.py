"""RandAugment, TrivialAugment and AugMix, from one table of operations.

Each image draws a few layers, each one operation with a strength. Applying layers one by one costs
a pass over the images for each; two shortcuts avoid that:

- All geometric operations of an image are combined into one warp, which comes first, so each image
  is interpolated once.
- The photometric operations follow in the order drawn. Tables of 256 levels are combined into one
  table, until a blend of whole pixels (Color, Sharpness) ends the run. If a run has both blends,
  Color comes first; the order matters only for clipping.

The operations behave as in KerasCV's RandAugment, or as in torchvision if KerasCV does not have
them. With m the magnitude, N a normal of mean m and standard deviation s clipped to [0, 1], and U
uniform:

    Solarize             adds 110 N below the threshold 255 (1 - m), then inverts at or above it
    Color                blends N of grey
    Contrast             factor 1 + U(-m, m) about each channel's mean
    Brightness           adds 255 U(-m, m)
    ShearX, ShearY       N pixels a pixel, either way, about the top left
    TranslateX, Y        U(-m, m) of the width or height
    Posterize            keeps 8 - 4 N bits
    Rotate               30 N degrees, either way, about the middle
    Sharpness            factor 1 + U(-m, m)

At m = 0 and s = 0 none of these changes an image. So Solarize inverts nothing if m is 0, or if its
threshold is clipped to 255. This differs from KerasCV and its guide, where a strength of 0 turns
white to black (as in timm before pytorch-image-models#178). AutoContrast, Equalize and Invert have
no strength.

A new operation of RandAugment is a line in `TABLES`, `KEPT` or `MAPS`, and its name in
`config.augment.OpName`; and in `config.augment.NEED_RGB` if it does not treat each channel alone.
"""

import functools
import math
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxcls.augment import color, draws
from jaxcls.augment.geometry import warp
from jaxcls.config import progressive
from jaxcls.config.augment import AugMix, RandAugment, TrivialAugment


class Draw(NamedTuple):
    """The random part of one layer of each image; all float32 [batch]."""

    magnitude: Array
    std: Array
    first: Array  # normal
    second: Array  # normal
    uniform: Array  # in [-1, 1)
    sign: Array  # -1 or 1

    def clipped(self) -> Array:
        """Returns N: a normal clipped to [0, 1]."""
        return jnp.clip(self.magnitude + self.std * self.first, 0, 1)

    def symmetric(self) -> Array:
        """Returns U(-m, m)."""
        return self.magnitude * self.uniform


class Layers(NamedTuple):
    """The layers of every image.

    Attributes:
      choice: int32 [batch, layers], the index of the operation; the number of operations for none.
      draws: the random parts, with [batch, layers] arrays.
    """

    choice: Array
    draws: Draw


# --- The operations ------------------------------------------------------------------------------


def _solarize(levels: Array, counts: Array, draw: Draw) -> Array:
    del counts
    addition = 110 * draw.clipped()
    share = jnp.clip(1 - draw.magnitude + draw.std * draw.second, 0, 1)
    inverts = (share < 1) & (draw.magnitude > 0)
    threshold = jnp.where(inverts, 255 * share, color.NUM_LEVELS)
    return color.solarize(levels, addition, threshold)


# (levels, the image's histogram, draw) -> levels, all [batch, …].
TABLES: dict[str, Callable[[Array, Array, Draw], Array]] = {
    "AutoContrast": lambda levels, counts, draw: color.autocontrast(levels, counts),
    "Equalize": lambda levels, counts, draw: color.equalize(levels, counts),
    "Solarize": _solarize,
    "Contrast": lambda levels, counts, draw: color.contrast(levels, counts, 1 + draw.symmetric()),
    "Brightness": lambda levels, counts, draw: color.brightness(levels, 255 * draw.symmetric()),
    "Posterize": lambda levels, counts, draw: color.posterize(levels, 8 - 4 * draw.clipped()),
    "Invert": lambda levels, counts, draw: color.invert(levels),
}
NEED_COUNTS = ("AutoContrast", "Equalize", "Contrast")

# Blends with another image (grey or smoothed): the factor for the distance from it. The factors of
# consecutive layers are multiplied.
KEPT: dict[str, Callable[[Draw], Array]] = {
    "Color": lambda draw: 1 - draw.clipped(),
    "Sharpness": lambda draw: 1 + draw.symmetric(),
}


def _matrix(
    xx: ArrayLike = 1.0,
    xy: ArrayLike = 0.0,
    x0: ArrayLike = 0.0,
    yx: ArrayLike = 0.0,
    yy: ArrayLike = 1.0,
    y0: ArrayLike = 0.0,
) -> Array:
    """Makes [batch, 3, 3] from scalars and [batch] arrays."""
    entries = jnp.broadcast_arrays(*map(jnp.asarray, (xx, xy, x0, yx, yy, y0, 0.0, 0.0, 1.0)))
    return jnp.stack(entries, axis=-1).reshape(*entries[0].shape, 3, 3)


def _rotation(draw: Draw, height: int, width: int) -> Array:
    angle = math.radians(30) * draw.sign * draw.clipped()
    cos, sin, x, y = jnp.cos(angle), jnp.sin(angle), width / 2, height / 2
    x0, y0 = x * (1 - cos + sin * (y / x)), y * (1 - cos - sin * (x / y))
    return _matrix(cos, -sin, x0, sin, cos, y0)


# (draw, height, width) -> the map from places in the result to places in the image, [batch, 3, 3].
MAPS: dict[str, Callable[[Draw, int, int], Array]] = {
    "ShearX": lambda draw, height, width: _matrix(xy=draw.sign * draw.clipped()),
    "ShearY": lambda draw, height, width: _matrix(yx=draw.sign * draw.clipped()),
    "TranslateX": lambda draw, height, width: _matrix(x0=width * draw.symmetric()),
    "TranslateY": lambda draw, height, width: _matrix(y0=height * draw.symmetric()),
    "Rotate": _rotation,
}


# --- Drawing and applying ------------------------------------------------------------------------


def draw_layers(
    keys: Array, num_choices: int, num_layers: int, *, magnitude: Array, std: Array, rate: Array
) -> Layers:
    """Draws operations uniformly with replacement.

    Args:
      keys: a random key for each image.
      num_choices: the number of operations to draw from.
      num_layers: the number of layers for each image.
      magnitude: float32 [] or [batch, layers], in [0, 1].
      std: the standard deviation of the strengths, with the same shape.
      rate: the probability that a layer applies an operation.
    """
    shape = (len(keys), num_layers)
    uniforms = draws.uniform(draws.fold_in(keys, 0), num_layers, 4)
    normals = draws.normal(draws.fold_in(keys, 1), num_layers, 2)
    choice = jnp.floor(uniforms[..., 0] * num_choices).astype(jnp.int32)
    choice = jnp.where(uniforms[..., 1] < rate, jnp.minimum(choice, num_choices - 1), num_choices)
    draw = Draw(
        magnitude=jnp.broadcast_to(magnitude, shape),
        std=jnp.broadcast_to(std, shape),
        first=normals[..., 0],
        second=normals[..., 1],
        uniform=2 * uniforms[..., 2] - 1,
        sign=jnp.where(uniforms[..., 3] < 0.5, -1.0, 1.0),
    )
    return Layers(choice, draw)


def apply_layers(images: Array, ops: Sequence[str], layers: Layers) -> Array:
    """Applies the layers: the warp first, then tables and blends in order.

    Args:
      images: uint8 [batch, channels, height, width].
      ops: the names of the operations.
      layers: indices into `ops`, and their draws.

    Returns:
      uint8 [batch, channels, height, width].
    """
    if any(name in MAPS for name in ops):
        move = functools.partial(warp, turns="Rotate" in ops)
        matrices = _compose_maps(ops, layers, *images.shape[2:])
        images = only_where(_drawn(ops, MAPS, layers), move, images, matrices)
    colours = [*TABLES, "Color"]
    for run in _runs(ops, layers):
        if any(name in colours for name in ops):
            levels = _compose_tables(images, ops, run)
            if "Color" in ops:
                change, arguments = color.recolor, (levels, _compose_kept("Color", ops, run))
            else:
                change, arguments = functools.partial(color.recolor, kept=None), (levels,)
            images = only_where(_drawn(ops, colours, run), change, images, *arguments)
        if "Sharpness" in ops:
            factors = _compose_kept("Sharpness", ops, run)
            images = only_where(_drawn(ops, ("Sharpness",), run), color.sharpen, images, factors)
    return images


def _drawn(ops: Sequence[str], kind: Collection[str], layers: Layers) -> Array:
    """Returns whether each image has an operation of this kind, bool [batch]."""
    return jnp.any(_is_of(ops, kind, layers), axis=1)


def _is_of(ops: Sequence[str], kind: Collection[str], layers: Layers) -> Array:
    """Returns which layers have an operation of this kind, bool [batch, layers]; no gather."""
    members = [layers.choice == index for index, name in enumerate(ops) if name in kind]
    return functools.reduce(jnp.logical_or, members, jnp.zeros(layers.choice.shape, bool))


def only_where(
    needed: Array, change: Callable[..., Array], images: Array, *arguments: Array
) -> Array:
    """Computes `change(images, *arguments)`, which does not change images that are not `needed`.

    A CPU computes one image at a time and skips these; with RandAugment they are the majority.
    """

    def one_by_one(needed: Array, images: Array, *arguments: Array) -> Array:
        def maybe(needed: Array, *one: Array) -> Array:
            alone = [array[None] for array in one]
            return lax.cond(needed, lambda: change(*alone)[0], lambda: one[0])

        return lax.map(lambda row: maybe(*row), (needed, images, *arguments))

    return lax.platform_dependent(
        needed,
        images,
        *arguments,
        cpu=one_by_one,
        default=lambda needed, *batch: change(*batch),
    )


def _compose_maps(ops: Sequence[str], layers: Layers, height: int, width: int) -> Array:
    total = jnp.broadcast_to(_matrix(), (len(layers.choice), 3, 3))
    for choice, draw in _each(layers):
        step = _select(
            ops, MAPS, choice, lambda name, draw=draw: MAPS[name](draw, height, width), _matrix()
        )
        total = _multiply(total, step)
    return total[:, :2]


def _multiply(first: Array, second: Array) -> Array:
    """Multiplies small matrices without a TPU's matrix unit, which would round to bfloat16."""
    return jnp.sum(first[:, :, :, None] * second[:, None], axis=2)


def _runs(ops: Sequence[str], layers: Layers) -> list[Layers]:
    """Splits each image's layers into runs of tables that end in blends.

    A table after a blend starts a new run, so n layers have at most n // 2 + 1 runs.
    """
    num_layers, nothing = layers.choice.shape[1], len(ops)
    tables, blends = (_is_of(ops, kind, layers) for kind in (TABLES, KEPT))
    both = any(name in TABLES for name in ops) and any(name in KEPT for name in ops)
    number = jnp.zeros(len(layers.choice), jnp.int32)
    blended = jnp.zeros(len(layers.choice), bool)
    numbers = []
    for layer in range(num_layers):
        starts = tables[:, layer] & blended
        number = number + starts
        blended = (blended & ~starts) | blends[:, layer]
        numbers.append(number)
    run_of = jnp.stack(numbers, axis=1)
    return [
        layers._replace(choice=jnp.where(run_of == run, layers.choice, nothing))
        for run in range(num_layers // 2 + 1 if both else 1)
    ]


def _compose_tables(images: Array, ops: Sequence[str], run: Layers) -> Array:
    levels = color.identity_levels(*images.shape[:2])
    counts = levels
    if any(name in NEED_COUNTS for name in ops):
        counts = color.histograms(images, _drawn(ops, NEED_COUNTS, run))
    for choice, draw in _each(run):
        levels = _select(
            ops,
            TABLES,
            choice,
            lambda name, levels=levels, draw=draw: TABLES[name](levels, counts, draw),
            levels,
        )
    return levels


def _compose_kept(name: str, ops: Sequence[str], run: Layers) -> Array:
    kept = jnp.ones(len(run.choice))
    for choice, draw in _each(run):
        kept = kept * jnp.where(choice == list(ops).index(name), KEPT[name](draw), 1.0)
    return kept


def _each(layers: Layers) -> list[tuple[Array, Draw]]:
    """Returns choice [batch] and draw, with [batch] arrays, of each layer."""
    return [
        (layers.choice[:, layer], Draw(*(array[:, layer] for array in layers.draws)))
        for layer in range(layers.choice.shape[1])
    ]


def _select(
    ops: Sequence[str],
    kind: dict[str, Callable],
    choice: Array,
    compute: Callable[[str], Array],
    otherwise: Array,
) -> Array:
    """Returns `compute(name)` of each image's operation if it is of this kind, or `otherwise`."""
    result = otherwise
    for index, name in enumerate(ops):
        if name in kind:
            chosen = choice == index
            value = compute(name)
            result = jnp.where(chosen.reshape(-1, *[1] * (value.ndim - 1)), value, result)
    return result


# --- The policies --------------------------------------------------------------------------------


def rand_augment(entry: RandAugment, keys: Array, images: Array, progress: Array) -> Array:
    """RandAugment (Cubuk 2020) on uint8 [batch, channels, height, width], with `num_ops` layers."""
    layers = draw_layers(
        keys,
        len(entry.ops),
        entry.num_ops,
        magnitude=progressive.at_progress(entry.magnitude, progress),
        std=progressive.at_progress(entry.magnitude_std, progress),
        rate=jnp.asarray(entry.rate),
    )
    return apply_layers(images, entry.ops, layers)


def trivial_augment(entry: TrivialAugment, keys: Array, images: Array, progress: Array) -> Array:
    """TrivialAugment (Müller and Hutter 2021): one operation or none, at a uniform strength.

    Operations and strengths are those of the table at the top of this module.
    """
    del progress
    count = len(entry.ops)
    magnitude = draws.uniform(draws.fold_in(keys, 2), 1)
    rate = jnp.asarray(count / (count + 1))
    layers = draw_layers(keys, count, 1, magnitude=magnitude, std=jnp.zeros(()), rate=rate)
    return apply_layers(images, entry.ops, layers)


def aug_mix(entry: AugMix, keys: Array, images: Array, progress: Array) -> Array:
    """AugMix (Hendrycks 2020): the image blended with a mixture of chains of operations.

    Chains have 1 to `depth` layers. Their weights are Dirichlet(alpha), and the share of the
    mixture is Beta(alpha, alpha).
    """
    width, depth, alpha = entry.width, entry.depth, entry.alpha
    magnitude = progressive.at_progress(entry.magnitude, progress)
    std = progressive.at_progress(entry.magnitude_std, progress)
    weight_keys = draws.fold_in(keys, width)
    weights = jax.vmap(lambda key: jax.random.dirichlet(key, jnp.full(width, alpha)))(weight_keys)
    share = draws.beta(draws.fold_in(keys, width + 1), jnp.asarray(alpha))
    mixture = jnp.zeros(images.shape)
    for chain in range(width):
        chain_keys = draws.fold_in(keys, chain)
        layers = draw_layers(
            chain_keys, len(entry.ops), depth, magnitude=magnitude, std=std, rate=jnp.ones(())
        )
        length = 1 + jnp.floor(draws.uniform(draws.fold_in(chain_keys, 2), 1) * depth)
        choice = jnp.where(jnp.arange(depth) < length, layers.choice, len(entry.ops))
        changed = apply_layers(images, entry.ops, layers._replace(choice=choice))
        mixture = mixture + weights[:, chain, None, None, None] * changed
    kept = images.astype(jnp.float32)
    result = kept + share[:, None, None, None] * (mixture - kept)
    return jnp.clip(jnp.floor(result + 0.5), 0, 255).astype(jnp.uint8)
