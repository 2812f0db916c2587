"""The network of a run at one step."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from saved_states import READS_DAMAGED

from jaxcls.models import registry
from jaxcls.models.efficientnet import ModelSpec
from jaxcls.runs.checkpoint_record import sealed
from jaxcls.runs.restore import read_run_info, restore_run
from jaxcls.system.errors import UserError
from jaxcls.training.loop import Outcome

pytestmark = READS_DAMAGED


@pytest.fixture
def run(tiny_run: tuple[Path, Outcome], tmp_path: Path) -> Path:
    """A run whose classes have got other names between its steps 8 and 12."""
    run = shutil.copytree(tiny_run[0], tmp_path / "run")
    file = run / "checkpoints" / "12" / "_CHECKPOINT_METADATA"
    content = json.loads(file.read_bytes())
    record = content["custom_metadata"]["record"]
    record["metadata"]["class_names"] = [f"new {number}" for number in range(10)]
    content["custom_metadata"] = sealed(record)
    file.write_text(json.dumps(content))
    return run


def test_the_config_is_that_of_the_step(run: Path) -> None:
    assert restore_run(run).info.class_names[0] == "new 0"
    assert restore_run(run, step=8).info == read_run_info(run, step=8)
    assert restore_run(run, step=8).info.class_names[0] == "0"


def test_after_a_fallback_the_config_is_that_of_the_good_step(run: Path) -> None:
    for file in (run / "checkpoints" / "12").rglob("d/*"):  # the values, but not the record
        file.write_bytes(b"")
    restored = restore_run(run)
    assert restored.step == 8
    assert restored.info.class_names[0] == "0"


@pytest.mark.parametrize("more", [-1, 1])
def test_a_network_with_other_layers_is_refused(
    tiny_run: tuple[Path, Outcome], monkeypatch: pytest.MonkeyPatch, more: int
) -> None:
    spec = registry.SPECS["tiny"]
    assert isinstance(spec, ModelSpec)
    *blocks, last = spec.blocks
    blocks.append(dataclasses.replace(last, repeats=last.repeats + more))
    monkeypatch.setitem(registry.SPECS, "tiny", dataclasses.replace(spec, blocks=tuple(blocks)))
    with pytest.raises(UserError, match=r"12 does not fit the network .*the network's code"):
        restore_run(tiny_run[0])
