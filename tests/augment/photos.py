"""Real images for the tests of the augmentation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from PIL import Image
from sklearn.datasets import load_sample_image


@functools.cache
def photo(height: int, width: int, name: str = "china.jpg") -> np.ndarray:
    """uint8 [height, width, 3]."""
    image = Image.fromarray(load_sample_image(name))
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


@functools.cache
def varied(height: int, width: int) -> np.ndarray:
    """Photographs, and what operations may stumble over: uint8 [8, height, width, 3]."""
    china, flower = photo(height, width), photo(height, width, "flower.jpg")
    grey = np.repeat(china[..., :1], 3, axis=2)
    constant = np.full_like(china, (0, 128, 255))
    two_valued = np.where(china > 127, 200, 50).astype(np.uint8)
    black_and_white = np.where(flower > 60, 255, 0).astype(np.uint8)
    narrow = (100 + flower // 8).astype(np.uint8)
    noise = np.random.default_rng(0).integers(256, size=china.shape, dtype=np.uint8)
    return np.stack([china, flower, grey, constant, two_valued, black_and_white, narrow, noise])


def planar(images: np.ndarray) -> Array:
    """[batch, height, width, 3] to [batch, 3, height, width]."""
    return jnp.asarray(np.moveaxis(images, 3, 1))


def interleaved(images: Array) -> np.ndarray:
    """[batch, 3, height, width] to [batch, height, width, 3]."""
    return np.moveaxis(np.asarray(images), 1, 3)


def keys_of(seed: int, count: int) -> Array:
    return jax.random.split(jax.random.key(seed), count)


def apart(actual: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Levels between two uint8 images, a pixel and channel."""
    return np.abs(np.asarray(actual, np.int32) - np.asarray(expected, np.int32))
