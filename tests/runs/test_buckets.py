"""Runs in a bucket, against a server of our own that speaks the API."""

import dataclasses
import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import google.auth.exceptions
import jax
import numpy as np
import pytest
from gcs_server import Store, serve
from gcsfs.retry import HttpError
from orbax.checkpoint._src.serialization.tensorstore_utils import build_kvstore_tspec

from jaxcls.commands.cli import main
from jaxcls.config import CheckpointConfig, Config, DataConfig
from jaxcls.data.content import read_content
from jaxcls.data.digits import prepared_digits
from jaxcls.data.sources import open_source
from jaxcls.distributed.compile_cache import CheckedPrograms
from jaxcls.distributed.mesh import make_mesh
from jaxcls.inference.classifier import ImageClassifier
from jaxcls.runs import claim
from jaxcls.runs.checkpoint import CheckpointError, Checkpoints
from jaxcls.runs.claim import Claim
from jaxcls.runs.directory import RunError, RunLostError, checkpoint_dir
from jaxcls.system import paths
from jaxcls.system.errors import UserError, mistake_behind
from jaxcls.system.paths import run_path
from jaxcls.system.whole_files import create_whole
from jaxcls.training.loop import Outcome, train

CHECKPOINTS = "runs/a/checkpoints"


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    """A bucket, and one that may not be touched; both are found in the environment."""
    store = Store("bucket", forbidden=("closed",))
    with pytest.MonkeyPatch.context() as patch, serve(store) as address:
        patch.setenv("STORAGE_EMULATOR_HOST", address)  # gcsfs
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", address)
        patch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", address)  # ArrayRecord
        patch.setenv("GCE_METADATA_ROOT", "localhost:1")  # nobody there, so nobody waits
        patch.setenv("NO_GCE_CHECK", "true")
        run_path("gs://bucket/run")  # what it sets comes before the import of gcsfs
        import gcsfs

        gcsfs.GCSFileSystem.clear_instance_cache()
        yield store
        gcsfs.GCSFileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def run(store: Store, tiny_config: Config) -> str:
    """A run in the bucket."""
    train(tiny_config, "gs://bucket/runs/a", mesh=make_mesh(jax.devices()[:1]))
    return "gs://bucket/runs/a"


def names(store: Store) -> set[str]:
    return {name.removeprefix("runs/a/").split("/")[0] for name in store.buckets["bucket"]}


@pytest.mark.slow
def test_a_run_leaves_in_a_bucket_what_it_leaves_on_disk(
    store: Store, run: str, tiny_run: tuple[Path, Outcome]
) -> None:
    there = {name.split(".")[0] for name in names(store)}
    assert there == {path.name.split(".")[0] for path in tiny_run[0].iterdir()}
    text = store.buckets["bucket"]["runs/a/metrics.csv"][0].decode()
    steps = [int(line.split(",")[0]) for line in text.splitlines()[1:]]
    assert steps == sorted(steps)
    assert (steps[0], steps[-1]) == (1, 12)
    log = store.buckets["bucket"]["runs/a/log.txt"][0].decode()
    assert "training: tiny" in log
    with Checkpoints(checkpoint_dir(run_path(run))) as checkpoints:
        assert checkpoints.steps() == [8, 12]


def test_the_rows_before_a_checkpoint_are_there_before_it(
    store: Store, tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, seen = Checkpoints.save, []

    def look(checkpoints: Checkpoints, step: int, *arguments: Any, **options: Any) -> None:
        text = store.buckets["bucket"]["runs/rows/metrics.csv"][0].decode()
        seen.append((step, int(text.splitlines()[-1].split(",")[0])))
        save(checkpoints, step, *arguments, **options)

    monkeypatch.setattr(Checkpoints, "save", look)
    config = dataclasses.replace(
        tiny_config,
        num_steps=8,
        log_every_steps=2,
        eval_every_steps=8,
        checkpoint=CheckpointConfig(every_steps=4),
    )
    train(config, "gs://bucket/runs/rows", mesh=make_mesh(jax.devices()[:1]))
    assert seen == [(4, 4), (8, 8)]


@pytest.mark.long
@pytest.mark.usefixtures("store")
def test_a_stopped_run_resumes_there(tiny_config: Config, tiny_run: tuple[Path, Outcome]) -> None:
    mesh = make_mesh(jax.devices()[:1])
    half = dataclasses.replace(tiny_config, num_steps=8)
    train(half, "gs://bucket/runs/b", mesh=mesh)
    train(half, "gs://bucket/runs/b", mesh=mesh)  # it has ended, and nothing changes
    train(tiny_config, "gs://bucket/runs/b", mesh=mesh, allow_changes=True)
    log = run_path("gs://bucket/runs/b/log.txt").read_text()
    assert "training: tiny" in log
    assert "resuming after step 8" in log
    lines = run_path("gs://bucket/runs/b/metrics.csv").read_text().splitlines()
    steps = [int(line.split(",")[0]) for line in lines[1:]]
    assert steps == sorted(steps)
    assert steps[-1] == 12


@pytest.mark.slow
def test_it_is_evaluated_from_there_by_every_command(
    run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", run, "--split", "test[:50]", "--json"]) == 0
    assert '"num_examples": 50' in capsys.readouterr().out
    assert main(["show", "run", run, "-o", str(tmp_path / "run.png")]) == 0
    assert (tmp_path / "run.png").stat().st_size > 10_000
    assert ImageClassifier.load(run).step == 12


@pytest.mark.slow
def test_damage_is_noticed_and_the_step_before_is_used(store: Store, run: str) -> None:
    objects = store.buckets["bucket"]
    before = dict(objects)
    record = f"{CHECKPOINTS}/12/_CHECKPOINT_METADATA"
    store.put("bucket", record, objects[record][0].replace(b'"step"', b'"stop"', 1))
    try:
        assert ImageClassifier.from_run(run).step == 8
        # Without its marker a step was not written whole.
        objects.clear()
        objects.update(before)
        del objects[f"{CHECKPOINTS}/12/commit_success.txt"]
        with Checkpoints(checkpoint_dir(run_path(run))) as checkpoints:
            assert checkpoints.steps() == [8]
        assert ImageClassifier.from_run(run).step == 8
    finally:
        objects.clear()
        objects.update(before)


@pytest.mark.slow
def test_a_state_comes_back_bit_for_bit_and_old_steps_go(store: Store) -> None:
    state = {"kernel": jax.numpy.arange(1000.0), "step": jax.numpy.int32(3)}
    with Checkpoints(run_path("gs://bucket/state"), keep_latest=1) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state, metadata={"step": step})
        checkpoints.wait()
        assert checkpoints.steps() == [2]
        restored = checkpoints.restore(jax.eval_shape(lambda: state))
    assert restored.metadata == {"step": 2}
    jax.tree.map(np.testing.assert_array_equal, restored.state, state)
    assert not any(name.startswith("state/1/") for name in store.buckets["bucket"])


def test_a_damaged_step_is_set_aside_and_saved_again(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    state = {"kernel": jax.numpy.arange(1000.0)}
    objects = store.buckets["bucket"]
    with Checkpoints(run_path("gs://bucket/again")) as checkpoints:
        checkpoints.save(3, state, metadata={})
        checkpoints.wait()
        written = {name: data for name, (data, _) in objects.items() if "/3/state/d/" in name}
        for name, data in written.items():
            store.put("bucket", name, bytes(reversed(data)))
        checkpoints.save(3, state, metadata={})
        replaced = {name.replace("/3/", "/3.replaced/", 1) for name in written}
        assert replaced <= set(objects)
        checkpoints.wait()
        restored = checkpoints.restore(jax.eval_shape(lambda: state))
    assert "replacing checkpoint gs://bucket/again/3" in caplog.text
    np.testing.assert_array_equal(restored.state["kernel"], state["kernel"])
    assert not any(".replaced/" in name for name in objects)


# What gcsfs raises when a bucket does not answer; they have no common class.
SILENCE = (
    HttpError({"code": 503, "message": "the server is busy"}),
    aiohttp.ServerDisconnectedError("the server is gone"),
    google.auth.exceptions.RefreshError("the credentials are too old"),
    RuntimeError("the server said nothing"),
)


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("error", SILENCE, ids=lambda error: type(error).__name__)
def test_a_bucket_that_answers_no_more_is_said(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gcsfs

    async def request(self: gcsfs.GCSFileSystem, *args: Any, **kwargs: Any) -> Any:
        if next(requests) >= answered:
            raise error
        return await answer(self, *args, **kwargs)

    answer = gcsfs.GCSFileSystem._request
    monkeypatch.setattr(gcsfs.GCSFileSystem, "_request", request)
    state = {"kernel": jax.numpy.arange(10.0)}
    for answered in range(4):
        requests = itertools.count()
        with (
            pytest.raises(CheckpointError, match=f"gs://bucket/silent.*{error}"),
            Checkpoints(run_path("gs://bucket/silent")) as checkpoints,
        ):
            checkpoints.save(answered, state, metadata={})
    with pytest.raises(type(error)) as raised:
        run_path("gs://bucket/silent").exists()
    assert f"a request to a bucket failed ({error}" in str(mistake_behind(raised.value))


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("bucket", ["closed", "none"])
def test_a_bucket_that_cannot_be_used_is_named_before_the_first_step(
    tiny_config: Config, bucket: str
) -> None:
    workdir = f"gs://{bucket}/runs/a"
    with pytest.raises(RunError, match=f"run '{workdir}' cannot be (read|written)"):
        train(tiny_config, workdir)


def test_a_bucket_has_one_writer_a_run(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "LEASE_SECONDS", 1.0)
    monkeypatch.setattr(claim, "RENEW_SECONDS", 0.05)
    run = run_path("gs://bucket/claimed")

    def claims() -> dict[str, bytes]:
        objects = store.buckets["bucket"]
        return {
            name: data for name, (data, _) in objects.items() if name.startswith("claimed/writer")
        }

    noticed = threading.Event()
    with Claim(run, on_lost=noticed.set) as held:
        with pytest.raises(RunError, match=f"by process {os.getpid()} on"):
            Claim(run, on_lost=noticed.set).__enter__()
        assert list(claims()) == ["claimed/writer.1.json"]
    with Claim(run, on_lost=noticed.set) as held:
        assert list(claims()) == ["claimed/writer.2.json"]
        # From another machine, where this one gives no sign: it is suspended.
        silent = claims()["claimed/writer.2.json"].replace(b'"machine": "', b'"machine": "x')
        store.put("bucket", "claimed/writer.3.json", silent)
        assert noticed.wait(10)
        with pytest.raises(RunLostError, match=r"another training, .* has taken over run"):
            held.require()
    with Claim(run, on_lost=noticed.set) as held:
        assert held.message.startswith("takes over from process")
        assert list(claims()) == ["claimed/writer.4.json"]


def test_of_two_that_write_a_new_object_one_succeeds(store: Store) -> None:
    path = run_path("gs://bucket/new/object")
    assert create_whole(path, "first")
    assert not create_whole(path, "second")
    assert store.buckets["bucket"]["new/object"][0] == b"first"


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("place", ["closed", "none", "bucket"])
def test_a_run_that_cannot_be_read_is_named(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", f"gs://{place}/no-run"]) == 2
    assert f"run 'gs://{place}/no-run'" in capsys.readouterr().err


def test_s3_is_refused_with_the_reason() -> None:
    with pytest.raises(
        UserError, match=r"run 's3://bucket/run': Orbax .* takes s3:// for a folder"
    ):
        run_path("s3://bucket/run")
    # If the reason no longer holds, try again whether a run can lie there (launch/README.md).
    with pytest.raises(ValueError, match=r"should be absolute\. Got s3:/bucket/run"):
        build_kvstore_tspec("s3://bucket/run", "kernel")
    local = {"driver": "file", "path": "s3:/bucket/run/kernel"}
    assert build_kvstore_tspec("s3://bucket/run", "kernel", use_ocdbt=False) == local


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs the extra gcs"):
        run_path("gs://bucket/run")


def test_other_urls_are_refused() -> None:
    for text in ("https://host/run", "gs://"):
        with pytest.raises(UserError, match="expected a folder or gs://BUCKET/FOLDER"):
            run_path(text)


def test_a_folder_stays_a_folder(tmp_path: Path) -> None:
    assert run_path(os.fspath(tmp_path)) == tmp_path


def test_a_prepared_set_is_read_from_a_bucket(store: Store) -> None:
    prepared = Path(str(prepared_digits(None)))
    for file in prepared.iterdir():
        store.put("bucket", f"tfds/digits/{prepared.name}/{file.name}", file.read_bytes())
    data = DataConfig(source="tfds:digits", data_dir="gs://bucket/tfds")
    there = open_source(data, "train[:20]")
    here = open_source(DataConfig(source="digits"), "train[:20]")
    assert len(there) == 20
    assert there.class_names == here.class_names
    for index in (0, 7, 19):
        assert (there[index].image, there[index].label) == (here[index].image, here[index].label)
    contents = [read_content(source.stored_files()) for source in (there, here)]
    assert contents[0].digests == contents[1].digests


COMPILE = """
import jax
from jaxcls.distributed.compile_cache import keep_compiled
keep_compiled("gs://bucket/runs/x/")
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.monitoring.register_event_listener(lambda event, **_: print(event))
jax.jit(lambda x: x @ x)(jax.numpy.ones((9, 9)))
"""


def test_compiled_programs_of_a_run_are_beside_it(store: Store) -> None:
    environment = dict(os.environ)
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    outs = [
        subprocess.run(
            [sys.executable, "-c", COMPILE],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for _ in range(2)
    ]
    assert any(name.startswith("runs/x.compiled/") for name in store.buckets["bucket"])
    hit = "/jax/compilation_cache/cache_hits"
    assert hit not in outs[0]
    assert hit in outs[1]


def test_a_compiled_program_that_is_damaged_in_a_bucket_is_deleted(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    programs = CheckedPrograms("gs://bucket/runs/x.compiled", max_size=1)  # no limit applies there
    assert programs.get("key") is None
    programs.put("key", b"program")
    assert programs.get("key") == b"program"
    name = "runs/x.compiled/key-checked"
    store.put("bucket", name, b"damaged")
    assert programs.get("key") is None
    said = f"the compiled program gs://bucket/{name} is damaged; it is deleted, and compiled again"
    assert said in caplog.messages
    assert name not in store.buckets["bucket"]
    programs.put("key", b"program")
    assert programs.get("key") == b"program"
