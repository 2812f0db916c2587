"""Checkpoints: what is saved comes back bit for bit, or is named and passed over."""

import dataclasses
import json
import logging
import resource
import signal
import threading
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec
from saved_states import (
    DTYPES,
    METADATA,
    READS_DAMAGED,
    assert_equal,
    make_state,
    mesh,
    needs_8_devices,
    random_array,
    save_steps,
    template_of,
    truncate,
)

from jaxcls.runs import checkpoint, orbax_files
from jaxcls.runs.checkpoint import CheckpointError, Checkpoints

pytestmark = READS_DAMAGED


# What is saved comes back.


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_come_back_bit_for_bit(tmp_path: Path, dtype: str) -> None:
    state = {
        "array": jnp.asarray(random_array(dtype, (3, 5, 7))),
        "scalar": jnp.asarray(random_array(dtype, ())),
        "empty": jnp.zeros((0, 4), dtype),
    }
    assert str(state["array"].dtype) == dtype
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, state, metadata={})
        assert_equal(checkpoints.restore(template_of(state)).state, state)


def test_any_tree_comes_back_with_its_metadata(tmp_path: Path) -> None:
    state = make_state(7)  # a dataclass, dicts, NamedTuples, an EmptyState and a None
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(7, state, metadata=METADATA)
        restored = checkpoints.restore(jax.eval_shape(lambda: state))
        assert restored.step == 7
        assert restored.metadata == METADATA == checkpoints.metadata()
        assert_equal(restored.state, state)


def test_arrays_may_be_donated_right_after_save(tmp_path: Path) -> None:
    state = {"x": jnp.arange(1_000_000, dtype=jnp.float32), "y": jnp.ones((300, 300))}
    true = jax.tree.map(np.array, state)
    overwrite = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 1, s), donate_argnums=0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, state, metadata={})
        replaced = jax.block_until_ready(overwrite(state))  # in place, where that is safe
        checkpoints.wait()
        assert_equal(checkpoints.restore(replaced).state, true)


@needs_8_devices
def test_copies_on_several_devices_are_saved_without_compiling(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A slice of each shape for each device would hold up the training at its first save."""
    copies = NamedSharding(mesh(8), PartitionSpec())
    arrays = {f"{size}": jax.device_put(np.ones((size, 8)), copies) for size in (16, 24, 32)}
    with jax.log_compiles(), caplog.at_level("WARNING", "jax"):
        orbax_files.start_saving(str(tmp_path / "0"), arrays, {}).result()
    assert not [text for text in caplog.messages if "ompil" in text]
    kinds = dict.fromkeys(arrays, np.ndarray)
    loaded = orbax_files.load_arrays(epath.Path(tmp_path / "0"), kinds, np.ndarray)
    assert_equal(loaded, arrays)


@needs_8_devices
def test_restored_on_other_numbers_of_devices(tmp_path: Path) -> None:
    values = {"x": random_array("float32", (16, 24)), "y": random_array("bfloat16", (8, 3))}
    records = []
    state: Any = values
    for step, num_devices in enumerate((8, 1, 2)):
        sharding = NamedSharding(mesh(num_devices), PartitionSpec("a"))
        with Checkpoints(tmp_path, keep_latest=3) as checkpoints:
            if step == 0:
                state = jax.device_put(values, sharding)
            else:
                template = jax.tree.map(
                    lambda x, s=sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), values
                )
                state = checkpoints.restore(template).state
            assert all(x.sharding == sharding for x in state.values())
            assert_equal(state, values)
            checkpoints.save(step, state, metadata={})
        content = json.loads((tmp_path / str(step) / "_CHECKPOINT_METADATA").read_text())
        records.append(content["custom_metadata"]["record"]["arrays"])
    assert records[0] == records[1] == records[2]


# What does not fit.


def test_no_checkpoint(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "nowhere")
    assert checkpoints.steps() == []
    with pytest.raises(CheckpointError, match=f"there is no checkpoint in {tmp_path}/nowhere"):
        checkpoints.restore(make_state())
    save_steps(tmp_path, 1)
    with pytest.raises(
        CheckpointError, match=r"3 cannot be used: it is missing \(existing steps: 1"
    ):
        Checkpoints(tmp_path).restore(make_state(), 3)
    with pytest.raises(CheckpointError, match="no checkpoint with a metric"):
        Checkpoints(tmp_path).restore(make_state(), "best")


def test_optional_arrays_may_be_missing_on_either_side(tmp_path: Path) -> None:
    """Also where the newest step is damaged, and only it has the array."""
    without, count = make_state(1), jnp.int32(7)
    counted = dataclasses.replace(make_state(2), ema=count)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, without, metadata=METADATA)
        checkpoints.save(2, counted, metadata=METADATA)
    with Checkpoints(tmp_path) as checkpoints:
        for template, step, expected in [
            (counted, 2, counted),
            (counted, 1, dataclasses.replace(without, ema=jnp.int32(0))),
            (without, 2, dataclasses.replace(counted, ema=None)),
        ]:
            restored = checkpoints.restore(template_of(template), step, optional={"ema"})
            assert_equal(restored.state, expected)
        with pytest.raises(CheckpointError, match=r"ema: saved nothing, wanted int32\[\]"):
            checkpoints.restore(template_of(counted), 1)
        with pytest.raises(CheckpointError, match=r"ema: saved int32\[\], wanted nothing"):
            checkpoints.restore(template_of(without), 2, optional={"step"})
        truncate(tmp_path / "2")
        restored = checkpoints.restore(template_of(counted), optional={"ema"})
    assert (restored.step, int(restored.state.ema)) == (1, 0)


def test_another_model_is_named_and_not_taken_for_damage(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, 2)
    template = template_of(make_state())
    template.params["block1"]["bias"] = jax.ShapeDtypeStruct((32,), jnp.bfloat16)
    template.params["extra"] = jax.ShapeDtypeStruct((2,), jnp.float32)
    del template.params["block2"]["kernel"]
    with pytest.raises(CheckpointError) as error:
        Checkpoints(tmp_path).restore(template)
    for part in (
        str(tmp_path / "2"),
        "params/block1/bias: saved float32[16], wanted bfloat16[32]",
        "params/block2/kernel: saved float32[3, 3, 8, 16], wanted nothing",
        "params/extra: saved nothing, wanted float32[2]",
    ):
        assert part in str(error.value)


# What the machine and the caller can do wrong.


def test_a_failing_write_is_an_error_and_lists_nothing(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, keep_latest=1)
    state = {"x": jnp.asarray(random_array("float32", (1000, 1000)))}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    checkpoints = Checkpoints(tmp_path, keep_latest=1)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))  # as a disk that is full
        checkpoints.save(2, state, metadata={})
        with pytest.raises(CheckpointError, match=r"2 could not be written .*check the disk"):
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "verified.json"]
    checkpoints.save(2, state, metadata={})
    checkpoints.close()
    assert checkpoints.steps() == [2]


@pytest.mark.parametrize("name", ["run[1]", "[a]*?", "a b", "ü\n"])
def test_a_directory_may_have_any_name(tmp_path: Path, name: str, monkeypatch: Any) -> None:
    links = tmp_path / "links"
    links.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(links))
    save_steps(tmp_path / name, 1, 2, 3)
    with Checkpoints(tmp_path / name) as checkpoints:
        assert checkpoints.steps() == [2, 3]
        assert_equal(checkpoints.restore(template_of(make_state())).state, make_state(3))
    assert not [path for path in links.rglob("*") if path.is_symlink()]


def test_a_run_that_is_moved_away_is_not_made_anew(tmp_path: Path) -> None:
    run, moved = tmp_path / "run", tmp_path / "moved"
    run.mkdir()
    with Checkpoints(run / "checkpoints") as checkpoints:
        checkpoints.save(1, make_state(1), metadata=METADATA)
        checkpoints.wait()
        run.rename(moved)
        with pytest.raises(CheckpointError, match=f"cannot write checkpoints to {run}.*No such"):
            checkpoints.save(2, make_state(2), metadata=METADATA)
    assert not run.exists()
    assert Checkpoints(moved / "checkpoints").steps() == [1]


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=f"cannot write checkpoints to {tmp_path}/file/run"):
        Checkpoints(tmp_path / "file" / "run").save(1, make_state(), metadata={})


@pytest.mark.parametrize("metadata", [{"x": object()}, {"x": float("nan")}])
def test_metadata_must_be_json(tmp_path: Path, metadata: Any) -> None:
    with pytest.raises(CheckpointError, match="metadata and metric must be JSON"):
        Checkpoints(tmp_path).save(1, make_state(), metadata=metadata)
    with pytest.raises(CheckpointError, match="metadata and metric must be JSON"):
        Checkpoints(tmp_path).save(1, make_state(), metadata={}, metric=float("nan"))


def test_the_error_on_its_way_is_not_hidden(tmp_path: Path, monkeypatch: Any, caplog: Any) -> None:
    monkeypatch.setattr(Checkpoints, "_read_back", lambda *_: "a test's invention")
    caplog.set_level(logging.ERROR)

    def run() -> None:
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(1, make_state(), metadata={})
            raise KeyError("the first")

    with pytest.raises(KeyError, match="the first"):
        run()
    assert "a test's invention" in caplog.text


def test_a_save_that_fails_elsewhere_is_not_waited_for(tmp_path: Path, monkeypatch: Any) -> None:
    """As seen by a process whose own part of the save never ends."""
    hangs, announcements, elsewhere = threading.Event(), list[str](), list[str]()
    monkeypatch.setattr(checkpoint, "announced", lambda event: event in announcements)
    monkeypatch.setattr(checkpoint, "first_problem", lambda mine: mine or (elsewhere or [None])[0])
    with Checkpoints(tmp_path) as checkpoints:
        with monkeypatch.context() as patched:
            patched.setattr(Checkpoints, "_finish", lambda *_: hangs.wait(60) and None)
            checkpoints.save(1, make_state(), metadata={})
            assert checkpoints._pending is not None
            announcements.append(checkpoints._pending.failure)
        elsewhere.append("the disk of process 1 is full")
        with pytest.raises(CheckpointError, match=elsewhere[0]):
            checkpoints.wait()
        elsewhere.clear()
        checkpoints.save(2, make_state(2), metadata={})
        assert checkpoints.wait() == 2  # although the first one still hangs
    hangs.set()


def test_a_process_without_an_array_of_its_own_reads_one_too(
    tmp_path: Path, monkeypatch: Any
) -> None:
    """Orbax reads in all processes together, and would wait for one that does not read."""
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"x": jnp.arange(3)}, metadata={})
        checkpoints.wait()
        record, read = checkpoints._folders.read_record(1), []

        def note(folder: Any, template: Any, kind: Any) -> Any:
            read.append(list(template))
            return dict.fromkeys(template, np.arange(3, dtype=np.int32))

        monkeypatch.setattr(checkpoint, "load_arrays", note)
        monkeypatch.setattr(checkpoint.jax, "process_count", lambda: 2)
        for process in range(2):
            monkeypatch.setattr(checkpoint.jax, "process_index", lambda process=process: process)
            assert checkpoints._read_back(1, record) is None
    assert read == [["x"], ["x"]]


def test_a_bucket_that_fails_after_a_write_is_one_error(tmp_path: Path, monkeypatch: Any) -> None:
    with Checkpoints(tmp_path) as checkpoints:

        def fail(*_: Any) -> bool:
            raise RuntimeError("503 Service Unavailable")

        def read_back(*_: Any) -> str:
            monkeypatch.setattr(type(checkpoints.directory), "exists", fail)
            return "503"

        monkeypatch.setattr(Checkpoints, "_read_back", read_back)
        checkpoints.save(1, make_state(), metadata={})
        with pytest.raises(CheckpointError, match="1 is damaged: 503"):
            checkpoints.wait()
        monkeypatch.undo()
