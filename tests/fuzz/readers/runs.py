"""Readers of the files of a run, and good files of them."""

import csv
import functools
import hashlib
import json
import multiprocessing
import random
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mutations
from mutations import Damage, damage_bytes, damage_json, mostly

from jaxcls.system.errors import UserError
from readers.reader import MATRIX, Reader, assert_printable, json_bytes

_RECORD = "checkpoints/20/_CHECKPOINT_METADATA"


@functools.cache
def run_files() -> dict[str, bytes]:
    """The files of a run, as a training writes them."""
    from jaxcls.config import Config, DataConfig, ModelConfig
    from jaxcls.config.augment import Mix, RandAugment, RandomCropAndResize
    from jaxcls.pretrained.resolve import resolve
    from jaxcls.runs.directory import RunInfo

    config = resolve(
        Config(
            model=ModelConfig(name="efficientnetv2_b0"),
            data=DataConfig(source="digits", image_size=32, canvas_size=40),
            augment=(RandomCropAndResize(), RandAugment(), Mix()),
            num_steps=20,
        )
    )
    info = RunInfo(config=config, class_names=("cat", "dög"), data="100 examples").to_json()
    state = {"state": "failed", "num_steps": 20, "why": "the disk is full"}
    writer = {
        "host": "machine",
        "process": 2**22,
        "since": "2026-01-01 00:00:00+00:00",
        "ended": None,
        "renewed": 1.5,
        "machine": "machine 1 pid:[1]",
        "started": "17",
        "folder": 12,
        "token": "0123456789abcdef",
    }
    record = {
        "step": 20,
        "metric": 0.5,
        "metadata": info,
        "arrays": {"params/a": {"shape": [3, 2], "dtype": "float32", "digest": "0" * 16}},
    }
    checkpoint = {
        "item_handlers": "orbax.checkpoint._src.handlers",
        "metrics": {},
        "init_timestamp_nsecs": 1767225600000000000,
        "custom_metadata": {"record": record, "sha256": _checksum(record)},
    }
    return {
        "config.json": json_bytes(info),
        "state.json": json_bytes(state),
        "writer.1.json": json_bytes(writer),
        "metrics.csv": _metrics().encode(),
        _RECORD: json_bytes(checkpoint),
        "checkpoints/verified.json": json_bytes({"steps": [10, 20]}),
    }


def _run(
    name: str,
    damage: Damage,
    read: Callable[[Path], object],
    *,
    beside: Sequence[str] = (),
    errors: tuple[type[Exception], ...] = (UserError,),
) -> Reader:
    """A reader of one file of a run, which needs the files `beside` it."""
    files = {file: run_files()[file] for file in (name, *beside)}
    return Reader(samples=[files], damage={name: damage}, read=read, errors=errors)


def run_config() -> Reader:
    """config.json of a run."""
    from jaxcls.config import encode
    from jaxcls.runs.directory import changes_of, config_of_record, recorded_info

    def read(run: Path) -> None:
        info = recorded_info(run)
        assert info is not None
        encode(config_of_record(run / "config.json"))
        changes_of(run, info, allow_changes=False)
        _table(run)

    return _run("config.json", damage_json, read, beside=["state.json", "metrics.csv"])


def run_state() -> Reader:
    """state.json of a run."""
    from jaxcls.runs.run_state import recorded_state

    return _run("state.json", damage_json, recorded_state)


def run_writer() -> Reader:
    """writer.N.json of a run."""
    from jaxcls.runs.claim import last_writer, writer_status

    def read(run: Path) -> None:
        if writer := last_writer(run):
            str(writer)
            writer_status(writer, run)

    return _run("writer.1.json", damage_json, read)


def run_metrics() -> Reader:
    """metrics.csv of a run, read for a table or curves, and to append to it."""
    from jaxcls.inference.export import _evaluation
    from jaxcls.runs.reporter import _open_csv, metric_columns, read_metrics

    def read(run: Path) -> None:
        _evaluation(run, 20)
        try:
            metric_columns(read_metrics(run / "metrics.csv"))
        finally:
            _open_csv(run / "metrics.csv", 15, start_evaluated=True).close()

    return _run("metrics.csv", damage_bytes, read, errors=(UserError, ValueError, csv.Error))


def data_digests() -> Reader:
    """data_sha256.txt of a run, with a digest that fits what is damaged."""
    from jaxcls.runs.data_digests import (
        DIGESTS_FILE,
        describe_changes,
        digest_of_all,
        record_digests,
        recorded_digests,
    )

    digests = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("a", "b\n", "ö\\n")}

    def damage(rng: random.Random, data: bytes) -> bytes:
        header, _, lines = data.partition(b"\n")
        lines = damage_bytes(rng, lines)
        return header[:-64] + hashlib.sha256(lines).hexdigest().encode() + b"\n" + lines

    def read(run: Path) -> None:
        found = recorded_digests(run)
        assert found is not None
        digest_of_all(found)
        assert_printable(*describe_changes(digests, found))

    with tempfile.TemporaryDirectory() as folder:
        record_digests(Path(folder), digests)
        sample = {DIGESTS_FILE: Path(folder, DIGESTS_FILE).read_bytes()}
    return Reader(samples=[sample], damage={DIGESTS_FILE: mostly(damage)}, read=read)


def checkpoint_index() -> Reader:
    """verified.json of a run's checkpoints."""
    from jaxcls.runs.restore import read_run_info

    return _run("checkpoints/verified.json", damage_json, read_run_info, beside=[_RECORD])


def checkpoint_record() -> Reader:
    """The record of a checkpoint, also with a checksum that fits what is damaged."""
    from jaxcls.runs.restore import read_run_info

    def damage(rng: random.Random, data: bytes) -> bytes:
        whole = json.loads(data)
        content = whole["custom_metadata"]
        try:
            record = json.loads(mutations.dump_json(rng, content["record"]))
            whole["custom_metadata"] = {"record": record, "sha256": _checksum(record)}
        except (ValueError, RecursionError):
            return damage_json(rng, data)
        return json_bytes(whole)

    def read(run: Path) -> None:
        try:
            assert_printable(*read_run_info(run).class_names)
        finally:
            read_run_info(run, step="best")

    return _run(_RECORD, mostly(damage, damage_json), read)


def checkpoint_arrays() -> Reader:
    """The arrays of a checkpoint, whose files have checksums that fit what is damaged."""
    import jax

    from jaxcls.runs.checkpoint import Checkpoints

    template = {name: jax.ShapeDtypeStruct(MATRIX.shape, "float32") for name in ("a", "b")}

    def read(run: Path) -> None:
        with Checkpoints(run / "checkpoints") as checkpoints:
            checkpoints.restore(template)

    with multiprocessing.get_context("spawn").Pool(1) as pool:
        samples = pool.apply(_save_checkpoints)
    damage: dict[str, Damage] = {}
    for name in {name for files in samples for name in files}:
        if "ocdbt" in name or "/d/" in name:
            damage[name] = mostly(mutations.damage_checked)
        elif name.endswith(("_METADATA", "_sharding", "process_0")):
            damage[name] = damage_json
    return Reader(samples=samples, damage=damage, read=read, gigabytes=8)


def _save_checkpoints() -> list[dict[str, bytes]]:
    """A checkpoint, and the same one without compression of the shapes and values."""
    import jax.numpy as jnp
    import tensorstore

    from jaxcls.runs.checkpoint import Checkpoints

    def store(folder: Path, **options: Any) -> tensorstore.KvStore:
        place = {"driver": "ocdbt", "base": f"file://{folder}/"}
        return tensorstore.KvStore.open(place | options).result()

    def files(run: Path) -> dict[str, bytes]:
        paths = [path for path in sorted(run.rglob("*")) if path.is_file()]
        return {str(path.relative_to(run)): path.read_bytes() for path in paths}

    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        state = run / "checkpoints" / "20" / "state"
        with Checkpoints(run / "checkpoints") as checkpoints:
            checkpoints.save(20, {"a": jnp.asarray(MATRIX), "b": jnp.asarray(MATRIX)}, metadata={})
        saved, packed = files(run), store(state)
        content = {key: packed.read(key).result().value for key in packed.list().result()}
        shutil.rmtree(state / "d")
        (state / "manifest.ocdbt").unlink()
        plain = store(state, config={"compression": None})
        for key, value in content.items():
            plain.write(key, value).result()
        return [saved, files(run)]


def _table(run: Path) -> None:
    from jaxcls.commands.runs import _describe, summarize
    from jaxcls.config.diff import differences

    summaries = [summarize(run, name="a"), summarize(run, name="b")]
    assert_printable(_describe(summaries, differences([each.config for each in summaries])))


def _checksum(record: Any) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _metrics() -> str:
    from jaxcls.runs.reporter import COLUMNS

    rows = [",".join(COLUMNS)]
    for step in (10, 20):
        values = [str(step), "0.5", *("0.25" for _ in COLUMNS[2:])]
        rows.append(",".join(values))
    return "\n".join(rows) + "\n"


READERS: dict[str, Callable[[], Reader]] = {
    "config.json": run_config,
    "state.json": run_state,
    "writer.json": run_writer,
    "metrics.csv": run_metrics,
    "data_sha256.txt": data_digests,
    "verified.json": checkpoint_index,
    "checkpoint": checkpoint_record,
    "checkpoint-arrays": checkpoint_arrays,
}
