import importlib.util

import pytest

from jaxcls.measure.topologies import CHIPS, chip_of, prepare_environment
from jaxcls.system.errors import UserError


def test_known_topologies_name_their_chip() -> None:
    assert chip_of("v5e:16x16") is CHIPS["v5e"]
    assert chip_of("v4:2x2x2") is CHIPS["v4"]


@pytest.mark.parametrize("topology", ["v5e", "v5e:3x3", "v9:2x2", ""])
def test_an_unknown_topology_lists_the_known(topology: str) -> None:
    with pytest.raises(UserError) as caught:
        chip_of(topology)
    assert repr(topology) in str(caught.value)
    for name, chip in CHIPS.items():
        assert f"{name}:{{{','.join(chip.shapes)}}}" in str(caught.value)


def test_a_missing_compiler_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="--extra tpu-compiler"):
        prepare_environment()
