"""Fingerprints of a tree of arrays: names, shapes, dtypes, and a digest of each array's values.

A digest depends only on the values, not on sharding, devices or hosts. It is a sum over the array's
words (of 32 bits, or of the dtype if that is narrower), each multiplied by an odd 64-bit
pseudo-random weight of its position in the *global* array, modulo 2**64. With odd weights, damage
within one word always changes the sum; other damage is missed with a probability near 2**-32. The
host computes it, because that is faster: 86 MB in 1084 arrays on 2 CPU cores take 0.04 s, and a
jitted function 0.05 s after 4 to 19 s of compiling.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

_CHUNK = 1 << 16


def flatten(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by readable names such as `params/stem/conv/kernel`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    flat = {jax.tree_util.keystr(p, simple=True, separator="/") or "state": x for p, x in leaves}
    assert len(flat) == len(leaves), "two leaves of the tree have the same name"
    return flat


def fingerprint(arrays: Mapping[str, jax.Array]) -> dict[str, dict[str, Any]]:
    """Computes the shape, dtype and digest of each array, as JSON.

    All processes must call it with the same names. Each process sums over the shards of which it
    holds the first replica, and then adds the other processes' sums for arrays that they share.
    """
    shards = {
        name: [shard for shard in x.addressable_shards if shard.replica_id == 0]
        for name, x in arrays.items()
    }
    for some in shards.values():
        for shard in some:
            shard.data.copy_to_host_async()
    sums = np.array(
        [
            sum(_weighted_sum(np.asarray(s.data), arrays[name].shape, s.index) for s in some)
            % 2**64
            for name, some in shards.items()
        ],
        np.uint64,
    )
    if jax.process_count() > 1:  # as 32-bit words, because JAX has no 64-bit ones by default
        words = np.asarray(multihost_utils.process_allgather(sums.view(np.uint32)))
        total = np.ascontiguousarray(words).view(np.uint64).sum(axis=0, dtype=np.uint64)
        whole = [x.is_fully_addressable for x in arrays.values()]
        sums = np.where(whole, sums, total)
    return {
        name: _describe(x) | {"digest": f"{int(total):016x}"}
        for (name, x), total in zip(arrays.items(), sums, strict=True)
    }


def fingerprint_numpy(arrays: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Computes the same as `fingerprint` for arrays that this process holds completely."""
    sums = {name: _weighted_sum(x, x.shape, ()) % 2**64 for name, x in arrays.items()}
    return {name: _describe(x) | {"digest": f"{sums[name]:016x}"} for name, x in arrays.items()}


def name_mismatches(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    """Names the arrays whose shapes or dtypes differ from a fingerprint; None if all are equal."""

    def text(array: Mapping[str, Any] | None) -> str:
        return "nothing" if array is None else f"{array['dtype']}{array['shape']}"

    here = {name: _describe(x) for name, x in wanted.items()}
    return _shorten(
        [
            f"{name}: saved {text(saved.get(name))}, wanted {text(here.get(name))}"
            for name in {**saved, **here}
            if text(saved.get(name)) != text(here.get(name))
        ]
    )


def name_damaged(saved: Mapping[str, Any], found: Mapping[str, Any]) -> str | None:
    """Names the arrays whose fingerprints differ; None if all are equal."""
    return _shorten([name for name, array in found.items() if array != saved[name]])


def _describe(x: Any) -> dict[str, Any]:
    return {"shape": list(x.shape), "dtype": str(x.dtype)}


def _shorten(names: list[str]) -> str | None:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more if names else None


def _weighted_sum(block: np.ndarray, shape: tuple[int, ...], index: tuple[slice, ...]) -> int:
    """The part of a digest that comes from `block`, which is `array[index]`.

    Args:
      block: a part of the array.
      shape: the shape of the whole array.
      index: the position of the block in the array.
    """
    if not block.size:
        return 0
    word = {1: np.uint8, 2: np.uint16}.get(block.dtype.itemsize, np.uint32)
    words = np.ascontiguousarray(block).reshape(-1).view(word)
    if block.shape == shape:
        chunks = [words[i : i + _CHUNK] for i in range(0, words.size, _CHUNK)]
        return sum(
            int(np.dot(chunk.astype(np.uint64), _WEIGHTS[: chunk.size])) * int(weight)
            for chunk, weight in zip(chunks, _chunk_weights(len(chunks)), strict=True)
        )
    position = np.zeros((), np.int64)
    for size, span in zip(shape, index, strict=True):
        position = position[..., None] * size + np.arange(*span.indices(size))
    num_words = words.size // block.size
    position = position.reshape(-1, 1) * num_words + np.arange(num_words)
    chunk, offset = np.divmod(position.reshape(-1), _CHUNK)
    chunk_weights = _chunk_weights(math.prod(shape) * num_words // _CHUNK + 1)
    return int(np.dot(words.astype(np.uint64), _WEIGHTS[offset] * chunk_weights[chunk]))


def _pseudo_random(number: np.ndarray) -> np.ndarray:
    """splitmix64 of each number, made odd."""
    z = number * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z ^ (z >> np.uint64(31))) | np.uint64(1)


# The weight of a word is a product of two odd numbers: that of its chunk and that of its position
# in the chunk.
_WEIGHTS = _pseudo_random(np.arange(1, _CHUNK + 1, dtype=np.uint64))


def _chunk_weights(num: int) -> np.ndarray:
    return _pseudo_random(np.arange(1, num + 1, dtype=np.uint64) + np.uint64(1 << 40))
