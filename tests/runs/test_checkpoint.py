"""Checkpoints: what is saved comes back bit for bit, or is named and passed over."""

import dataclasses
import gc
import json
import logging
import random
import resource
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tensorstore
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxcls.runs import checkpoint, step_folders
from jaxcls.runs.checkpoint import CheckpointError, Checkpoints
from jaxcls.runs.checkpoint_record import checksum
from jaxcls.runs.directory import RunLostError
from jaxcls.runs.fingerprint import fingerprint, fingerprint_numpy

METADATA = {"config": {"lr": 0.1, "sizes": [1, 2]}, "labels": ["cat", "dög"], "none": None}
DTYPES = ["float32", "bfloat16", "float16", "float64", "int8", "int32", "uint8", "uint32", "bool"]

# When Orbax fails to read one array it drops the reads in flight, which then complain one by one.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:coroutine '_read_array:RuntimeWarning"),
]

needs_8_devices = pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices")


@flax.struct.dataclass
class State:
    step: jax.Array
    params: Any
    opt_state: Any
    ema: Any = None


def make_state(seed: int = 0) -> State:
    keys = iter(jax.random.split(jax.random.key(seed), 8))
    params = {
        f"block{i}": {"kernel": jax.random.normal(next(keys), (3, 3, 8, 16)), "bias": jnp.ones(16)}
        for i in range(4)
    }
    opt_state = optax.adamw(1e-3).init(params)
    return State(step=jnp.int32(seed), params=params, opt_state=opt_state)


def template_of(state: Any) -> Any:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def assert_equal(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def save_steps(directory: Path, *steps: int, keep_latest: int = 2, **scores: float) -> None:
    with Checkpoints(directory, keep_latest=keep_latest) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_state(step), metadata=METADATA, **scores)


def data_file(folder: Path) -> Path:
    """The file with the arrays' values: the largest."""
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip_bit(file: Path, place: int, bit: int = 0) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1 << bit
    file.write_bytes(content)


def mesh(*shape: int) -> Mesh:
    return jax.make_mesh(
        shape,
        ("a", "b")[: len(shape)],
        axis_types=(jax.sharding.AxisType.Auto,) * len(shape),
        devices=jax.devices()[: int(np.prod(shape))],
    )


def random_array(dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Random bits, so with NaNs of any payload, infinities and negative zeros."""
    if dtype == "bool":
        return np.random.default_rng(0).integers(0, 2, shape).astype(bool)
    content = np.random.default_rng(0).bytes(int(np.prod(shape)) * jnp.dtype(dtype).itemsize)
    return np.frombuffer(content, jnp.dtype(dtype)).reshape(shape)


@pytest.fixture(scope="module", autouse=True)
def quick_collection() -> Iterator[None]:
    """What tests of other files have left need not be looked through again and again."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def no_noise_in_later_tests() -> Iterator[None]:
    yield
    gc.collect()


@pytest.fixture
def x64() -> Iterator[None]:
    """For the whole process: `jax.enable_x64` does not reach Orbax's threads."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


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


# Digests.


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


# Damage is named and passed over.


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


def truncate(folder: Path) -> None:
    file = data_file(folder)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


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


# Which steps are kept.


def test_the_latest_and_the_best_are_kept(tmp_path: Path) -> None:
    metrics = {1: 0.5, 2: 0.9, 3: None, 4: 0.7, 5: 0.6}
    with Checkpoints(tmp_path, keep_latest=2, keep_best=1) as checkpoints:
        for step, metric in metrics.items():
            checkpoints.save(step, make_state(step), metadata={"step": step}, metric=metric)
            checkpoints.wait()
        assert checkpoints.steps() == [2, 4, 5]
        assert checkpoints.restore(make_state()).step == 5
        assert checkpoints.restore(make_state(), "best").step == 2
        assert checkpoints.metadata("best") == {"step": 2}
        truncate(tmp_path / "2")
        assert checkpoints.restore(make_state(), "best").step == 4
        flip_bit(tmp_path / "4" / "_CHECKPOINT_METADATA", 300)
        assert checkpoints.metadata("latest") == {"step": 5}
        truncate(tmp_path / "2")
        assert checkpoints.restore(make_state(), "best").step == 5
        checkpoints.save(6, make_state(6), metadata={}, metric=0.1)
        checkpoints.wait()
        assert checkpoints.steps() == [2, 4, 5, 6]  # 4 cannot be read, so it does not count


def test_a_deletion_that_is_cut_off_leaves_no_half_of_a_step(
    tmp_path: Path, monkeypatch: Any, caplog: Any
) -> None:
    class Killed(BaseException):
        pass

    def half_of(folder: Any) -> None:
        data_file(Path(folder)).unlink()
        raise Killed

    checkpoints = Checkpoints(tmp_path, keep_latest=1)
    for step in (1, 2):
        checkpoints.save(step, make_state(step), metadata=METADATA)
    with monkeypatch.context() as patched:
        patched.setattr(type(checkpoints.directory), "rmtree", half_of)
        with pytest.raises(Killed):
            checkpoints.wait()
    assert checkpoints.steps() == [2]
    save_steps(tmp_path, 3)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["2", "3"]
    assert not caplog.records


def test_what_is_left_of_a_step_is_swept_but_not_a_damaged_one(tmp_path: Path) -> None:
    save_steps(tmp_path, 2, 3)
    (tmp_path / "1").mkdir()  # as an older version of jaxcls left it
    (tmp_path / "1" / "state").mkdir()
    (tmp_path / "2" / "_CHECKPOINT_METADATA").unlink()  # of a step that is in the index
    save_steps(tmp_path, 4)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["2", "3", "4"]


def test_a_step_that_is_there_is_kept_if_good_and_the_same(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, 2)
    before = data_file(tmp_path / "2").stat().st_mtime_ns
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, make_state(2), metadata=METADATA)
        checkpoints.wait()
        assert data_file(tmp_path / "2").stat().st_mtime_ns == before
        checkpoints.save(2, make_state(9), metadata=METADATA)
        assert_equal(checkpoints.restore(make_state()).state, make_state(9))


def test_nothing_older_goes_before_the_newer_is_verified(
    tmp_path: Path, monkeypatch: Any, caplog: Any
) -> None:
    read_back = Checkpoints._read_back

    def damage_first(self: Checkpoints, step: int, record: Any) -> str | None:
        flip_bit(data_file(tmp_path / str(step)), 10_000)  # after the commit
        return read_back(self, step, record)

    save_steps(tmp_path, 1, keep_latest=1)
    with Checkpoints(tmp_path, keep_latest=1) as checkpoints:
        monkeypatch.setattr(Checkpoints, "_read_back", damage_first)
        checkpoints.save(2, make_state(2), metadata={})
        with pytest.raises(CheckpointError, match=r"2 is damaged: .*renamed to 2\.dam"):
            checkpoints.save(3, make_state(3), metadata={})
        monkeypatch.undo()
        assert checkpoints.steps() == [1]
        assert checkpoints.restore(make_state()).step == 1
        checkpoints.save(3, make_state(3), metadata={})
        checkpoints.wait()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["3", "verified.json"]


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
    assert not list(links.iterdir())


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


def test_a_score_is_added_without_writing_the_arrays_again(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, 2)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("d/*")}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.set_metric(1, 0.5)
        restored = checkpoints.restore(make_state(), "best")
        assert (restored.step, restored.metric) == (1, 0.5)
        with pytest.raises(CheckpointError, match="3 cannot be used: it is missing"):
            checkpoints.set_metric(3, 0.5)
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("d/*")}


@pytest.mark.parametrize("rest", [None, "half-written"])
def test_a_replacement_that_is_cut_off_loses_nothing(tmp_path: Path, rest: str | None) -> None:
    save_steps(tmp_path, 1, 2)
    (tmp_path / "2").rename(tmp_path / "2.replaced")
    if rest:
        (tmp_path / "2").mkdir()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.put_back_replaced()
        assert checkpoints.steps() == [1, 2]
        assert checkpoints.restore(make_state()).step == 2
        (tmp_path / "1.replaced").mkdir()  # 1 is there: it was replaced
        checkpoints.put_back_replaced()
        assert checkpoints.restore(make_state(), 1).step == 1


def test_a_start_sweeps_what_a_killed_training_left(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, 2)
    left = ("3.orbax-checkpoint-tmp", "0.pruned", "2.replaced")
    kept = ("1", "1.replaced", "2", "2.damaged", "mine.pruned", "verified.json")
    for name in (*left, "1.replaced", "2.damaged", "mine.pruned"):
        (tmp_path / name / "folder").mkdir(parents=True)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.delete_leftovers(checkpoints.restore(make_state()).step)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


def test_old_steps_are_deleted_although_the_index_cannot_be_written(
    tmp_path: Path, monkeypatch: Any, caplog: Any
) -> None:
    write_whole = step_folders.write_whole

    def write(path: Any, content: str) -> None:
        if (tmp_path / "1").exists():
            raise OSError(28, "no space before a step is deleted")
        write_whole(path, content)

    save_steps(tmp_path, 1, keep_latest=1)
    monkeypatch.setattr(step_folders, "write_whole", write)
    save_steps(tmp_path, 2, keep_latest=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "verified.json"]
    assert json.loads((tmp_path / "verified.json").read_text()) == {"steps": [2]}
    assert not caplog.records


def test_a_run_that_was_lost_is_not_tidied_up(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, keep_latest=1)

    def run() -> None:
        with Checkpoints(tmp_path, keep_latest=1) as checkpoints:
            checkpoints.save(2, make_state(2), metadata={})
            raise RunLostError("another training has taken over the run")

    with pytest.raises(RunLostError):
        run()
    assert (tmp_path / "1").is_dir()


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
