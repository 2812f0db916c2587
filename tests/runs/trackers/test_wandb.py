"""Weights & Biases offline, and its failures."""

import dataclasses
import io
import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import wandb
from reporting import CONFIG, EVAL, TRAIN
from wandb.proto import wandb_internal_pb2

from jaxcls.runs.reporter import Reporter, read_metrics
from jaxcls.system.errors import UserError


def test_metrics_go_to_weights_and_biases_under_one_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = dataclasses.replace(CONFIG, wandb_project="digits")

    def reporter(start_step: int) -> Reporter:
        return Reporter(
            tmp_path,
            config=config,
            num_steps=100,
            steps_per_epoch=8.0,
            start_step=start_step,
            stream=io.StringIO(),
        )

    with reporter(0) as first:
        first.log(2, TRAIN)
        first.evaluated(4, EVAL)
        first.show(0, "first_batch", np.zeros((1, 4, 4, 3), np.uint8))
    time.sleep(1)  # its library names folders by the second
    with reporter(4) as second:
        second.log(6, TRAIN | {"loss": 0.25})
    files = sorted((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    ids, history = set(), []
    for file in files:
        for record in wandb_records(file):
            if record.HasField("run"):
                ids.add(record.run.run_id)
            if record.HasField("history"):
                items = record.history.item
                history.append({i.key or i.nested_key[0]: i.value_json for i in items})
    assert ids == {(tmp_path / "wandb_id.txt").read_text()}
    rows = [{"step": row["step"], **row} for row in history]
    assert [(row["step"], row.get("train/loss")) for row in rows if "train/loss" in row] == [
        ("2", "1.25"),
        ("6", "0.25"),
    ]
    assert any(row.get("eval/top1") == "0.875" for row in rows)
    assert any("first_batch" in row for row in rows)


def wandb_records(file: Path) -> Iterator[Any]:
    """What its library would send, from its file: a log of LevelDB's format behind 7 bytes."""
    content = file.read_bytes()
    assert len(content) < 2**15, "more than one block"
    place = 7
    while place < len(content):  # checksum, length, kind, record
        _, length, kind = struct.unpack_from("<IHB", content, place)
        assert kind == 1, "whole records"
        place += 7
        yield cast(Any, wandb_internal_pb2).Record.FromString(content[place : place + length])
        place += length


def test_weights_and_biases_that_refuses_is_reported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise wandb.Error("api_key not configured (no-tty)")

    monkeypatch.setattr(wandb, "init", refuse)
    monkeypatch.setattr(wandb, "teardown", lambda **_: None)
    config = dataclasses.replace(CONFIG, wandb_project="digits")
    stream = io.StringIO()
    with Reporter(
        tmp_path, config=config, num_steps=9, steps_per_epoch=8.0, start_step=0, stream=stream
    ) as reporter:
        reporter.log(2, TRAIN)
        reporter.log(4, TRAIN)
    assert stream.getvalue().count("Weights & Biases has failed (api_key not configured") == 1
    assert len(read_metrics(tmp_path / "metrics.csv")) == 2


WANDB_DIES = """
import pathlib, sys, time
import psutil
from jaxcls.distributed.job import end_with
from jaxcls.config import Config
from jaxcls.runs.reporter import Reporter

metrics = {"loss": 1.0, "top1": 0.5, "images_per_second": 9.0}
config = Config(num_steps=9, wandb_project="digits")
with Reporter(
    pathlib.Path(sys.argv[1]), config=config, num_steps=9, steps_per_epoch=8.0, start_step=0
) as reporter:
    reporter.log(1, metrics)
    while reporter._trackers[1]._calls.qsize():
        time.sleep(0.05)
    (service,) = [one for one in psutil.Process().children() if "wandb" in one.name()]
    service.kill()
    for step in range(2, 10):
        reporter.log(step, metrics)
end_with(0)
"""


def test_weights_and_biases_whose_process_dies_is_reported_once(tmp_path: Path) -> None:
    # In a process of its own: the library's state is the whole process'.
    done = subprocess.run(
        [sys.executable, "-c", WANDB_DIES, str(tmp_path)],
        env={k: v for k, v in os.environ.items() if k != "WANDB_SERVICE"}
        | {"WANDB_MODE": "offline"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0
    assert done.stderr.count("Weights & Biases has failed") == 1
    assert len(read_metrics(tmp_path / "metrics.csv")) == 9


def test_weights_and_biases_without_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = dataclasses.replace(CONFIG, wandb_project="digits")
    with pytest.raises(UserError, match=r"wandb_project.*jaxcls\[wandb\]"):
        Reporter(tmp_path, config=config, num_steps=9, steps_per_epoch=8.0, start_step=0)
