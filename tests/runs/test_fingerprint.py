"""The digests of arrays."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from saved_states import DTYPES, mesh, needs_8_devices, random_array

from jaxcls.runs.fingerprint import fingerprint, fingerprint_numpy


@needs_8_devices
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dtype", DTYPES)
def test_digests_do_not_depend_on_the_layout(dtype: str) -> None:
    array = random_array(dtype, (16, 3, 8))
    expected = fingerprint_numpy({"x": array})
    for spec in ((), ("a",), (None, None, "a"), ("a", None, "b"), ("b",), (("b", "a"),)):
        sharding = NamedSharding(mesh(4, 2), PartitionSpec(*spec))
        assert fingerprint({"x": jax.device_put(array, sharding)}) == expected


@needs_8_devices
def test_digests_of_arrays_over_many_chunks() -> None:
    array = random_array("float32", (512, 1024))
    expected = fingerprint_numpy({"x": array})
    for spec in (("a",), (None, "b"), ("b", "a")):
        sharding = NamedSharding(mesh(2, 4), PartitionSpec(*spec))
        assert fingerprint({"x": jax.device_put(array, sharding)}) == expected


def test_digests_tell_small_changes() -> None:
    def digest(words: np.ndarray) -> str:
        return fingerprint_numpy({"x": words})["x"]["digest"]

    words = np.random.default_rng(0).integers(0, 2**32, 70_000, np.uint32)
    seen = {digest(words)}
    changes = 1
    for place in (0, 1, 65_535, 65_536, 69_999):
        for bit in range(32):
            changed = words.copy()
            changed[place] ^= np.uint32(1 << bit)
            seen.add(digest(changed))
            changed[(place + 7) % words.size] ^= np.uint32(1 << bit)  # as two signs
            seen.add(digest(changed))
            changes += 2
    for i, j in ((0, 1), (3, 65_539), (65_536, 0)):
        changed = words.copy()
        changed[[i, j]] = changed[[j, i]]
        seen.add(digest(changed))
        changes += 1
    assert len(seen) == changes
