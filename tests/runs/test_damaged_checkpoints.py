"""Damaged checkpoints are named, and never restored."""

import json
import logging
import random
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import tensorstore
from saved_states import (
    METADATA,
    READS_DAMAGED,
    assert_equal,
    data_file,
    flip_bit,
    make_state,
    save_steps,
    template_of,
    truncate,
)

from jaxcls.runs.checkpoint import CheckpointError, Checkpoints
from jaxcls.runs.checkpoint_record import checksum

pytestmark = READS_DAMAGED


def test_single_bit_flips_never_come_through(tmp_path: Path, caplog: Any) -> None:
    save_steps(tmp_path, 1, 2)
    states = {step: make_state(step) for step in (1, 2)}
    files = sorted(p for p in (tmp_path / "2").rglob("*") if p.is_file() and p.stat().st_size)
    rng = random.Random(0)
    num_detected = 0
    checkpoints = Checkpoints(tmp_path)
    for trial in range(60):
        file = data_file(tmp_path / "2") if trial % 3 == 0 else files[trial % len(files)]
        place, bit = rng.randrange(file.stat().st_size), rng.randrange(8)
        flip_bit(file, place, bit)
        caplog.clear()
        restored = checkpoints.restore(template_of(states[1]))
        assert_equal(restored.state, states[restored.step])
        assert restored.metadata == METADATA
        if restored.step == 1:
            num_detected += 1
            assert str(tmp_path / "2") in caplog.text
        flip_bit(file, place, bit)
    assert num_detected >= 30
    assert checkpoints.restore(template_of(states[1])).step == 2


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


DAMAGES = {
    "a flipped bit": (lambda f: flip_bit(data_file(f), 10_000), "damaged arrays: |cannot read"),
    "a truncated file": (truncate, "cannot read its arrays"),
    "a deleted file": (lambda f: data_file(f).unlink(), "cannot read its arrays"),
    "no metadata": (lambda f: (f / "_CHECKPOINT_METADATA").unlink(), "half-written"),
    "damaged metadata": (
        lambda f: flip_bit(f / "_CHECKPOINT_METADATA", 400),
        "_CHECKPOINT_METADATA",
    ),
    "an empty folder": (empty, "half-written"),
    "a deleted folder": (shutil.rmtree, "it is missing"),
    "a temporary name": (
        lambda f: f.rename(f.with_name("2.orbax-checkpoint-tmp")),
        "2.orbax-checkpoint-tmp is half-written",
    ),
    "another step's folder": (
        lambda f: (shutil.rmtree(f), shutil.copytree(f.parent / "1", f)),
        "contains step 1",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_and_the_next_good_one_used(
    tmp_path: Path, caplog: Any, damage: str
) -> None:
    save_steps(tmp_path, 1, 2)
    act, message = DAMAGES[damage]
    act(tmp_path / "2")
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(template_of(make_state()))
        assert restored.step == 1
        assert_equal(restored.state, make_state(1))
        assert str(tmp_path / "2") in caplog.text
        assert any(part in caplog.text for part in message.split("|"))
        with pytest.raises(CheckpointError, match=str(tmp_path / "2")):
            checkpoints.restore(template_of(make_state()), 2)
        checkpoints.save(2, make_state(2), metadata=METADATA)  # the run continues and gets there
        assert_equal(checkpoints.restore(template_of(make_state())).state, make_state(2))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2", "verified.json"]


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.pop("step"),
        lambda record: record.pop("metadata"),
        lambda record: record.update(metric="0.5"),
        lambda record: record.update(arrays=[1]),
        lambda record: record["arrays"].update(x=3),
        lambda record: record["arrays"].update(x={"shape": ["3"], "dtype": "f", "digest": ""}),
        lambda record: record.update(step="2"),
        None,
    ],
)
def test_a_record_that_somebody_made_with_its_checksum_is_damaged(
    tmp_path: Path, caplog: Any, change: Any
) -> None:
    save_steps(tmp_path, 1, 2, metric=0.5)
    file = tmp_path / "2" / "_CHECKPOINT_METADATA"
    content = json.loads(file.read_text())
    record = content["custom_metadata"]["record"]
    if change is None:
        record = [record]
    else:
        change(record)
    content["custom_metadata"] = {"record": record, "sha256": checksum(record)}
    file.write_text(json.dumps(content))
    with Checkpoints(tmp_path) as checkpoints:
        for which in ("latest", "best"):
            assert checkpoints.restore(template_of(make_state()), which).step == 1
            assert checkpoints.metadata(which) == METADATA
    assert "_CHECKPOINT_METADATA is not one that a training writes" in caplog.text


def test_a_damaged_index_does_no_harm(tmp_path: Path) -> None:
    save_steps(tmp_path, 1)
    (tmp_path / "verified.json").write_text('{"steps": [')
    assert Checkpoints(tmp_path).restore(template_of(make_state())).step == 1


def test_half_written_steps_are_not_listed(tmp_path: Path, caplog: Any) -> None:
    (tmp_path / "5").mkdir()
    (tmp_path / "6.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.steps() == []
    assert str(tmp_path / "5") in caplog.text
    assert str(tmp_path / "6.orbax-checkpoint-tmp") in caplog.text
    with pytest.raises(
        CheckpointError, match=r"no good checkpoint in .*5 cannot be used: it is half"
    ):
        checkpoints.restore(template_of(make_state()))


def test_damage_everywhere_is_one_error(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, 2)
    for step in ("1", "2"):
        truncate(tmp_path / step)
    with pytest.raises(CheckpointError, match=r"no good checkpoint in .*2 cannot be.*1 cannot be"):
        Checkpoints(tmp_path).restore(template_of(make_state()))


def test_an_array_that_claims_more_than_any_memory_is_damaged(tmp_path: Path) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"a": jnp.arange(6.0).reshape(2, 3)}, metadata={})
    files = {"driver": "ocdbt", "base": f"file://{tmp_path}/1/state/"}
    store = tensorstore.KvStore.open(files).result()
    content = json.loads(store.read("a/zarr.json").result().value)
    store.write("a/zarr.json", json.dumps(content | {"shape": [2**40, 2**20]})).result()
    # Without a sharding, as for an evaluation.
    template = {"a": jax.ShapeDtypeStruct((2, 3), jnp.float32)}
    said = r"array a has the shape \(1099511627776, 1048576\)"
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(CheckpointError, match=said):
        checkpoints.restore(template)


def test_what_asyncio_logs_of_a_read_that_failed_is_not_shown(caplog: Any) -> None:
    for text in ("ValueError('Error reading \"x/zarr.json\" in OCDBT database')", "of others"):
        logging.getLogger("asyncio").error("Task exception was never retrieved\nfuture: %s", text)
    assert [record.args for record in caplog.records] == [("of others",)]
