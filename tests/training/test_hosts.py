"""The same run in any number of processes."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import hosts_job
import jax
import numpy as np
import pytest
from ports import free_address
from xla_flags import xla_flags

from jaxcls.config import Config, encode
from jaxcls.config.augment import Mix, RandAugment, RandomCropAndResize, RandomFlip
from jaxcls.data.sources import open_source
from jaxcls.distributed.mesh import make_mesh
from jaxcls.inference.classifier import ImageClassifier
from jaxcls.models import registry
from jaxcls.runs.checkpoint import Checkpoints
from jaxcls.training.build import build_training
from jaxcls.training.loop import Outcome


@dataclasses.dataclass(frozen=True)
class Alone:
    """What one process has found, and what it left for the jobs."""

    config: Config
    folder: Path
    run: Path
    image: Path
    eight: dict[str, np.ndarray]


@pytest.fixture(scope="module")
def alone(
    tiny_config: Config,
    tiny_run: tuple[Path, Outcome],
    tmp_path_factory: pytest.TempPathFactory,
) -> Alone:
    folder = tmp_path_factory.mktemp("hosts")
    change = RandAugment(ops=("Equalize", "ShearX"), num_ops=1)
    augment = (RandomFlip(), RandomCropAndResize(), change, Mix(group_size=2))
    config = dataclasses.replace(tiny_config, augment=augment, num_steps=20)
    training = build_training(config, num_classes=10, num_examples=1000, mesh=make_mesh())
    state = training.init()
    with Checkpoints(folder / "states") as checkpoints:
        for step in hosts_job.STEPS:
            checkpoints.save(
                step, jax.tree.map(lambda x, by=step: x + x.dtype.type(by), state), metadata={}
            )
            checkpoints.wait()
    (folder / "image.png").write_bytes(open_source(config.data, "test")[0].image)
    eight = hosts_job.measure(config, make_mesh(), folder / "states")
    return Alone(config, folder, tiny_run[0], folder / "image.png", eight)


def run_job(alone: Alone, out: Path, *, processes: int, devices: list[int]) -> None:
    address = free_address()
    job = {
        "coordinator": address,
        "num_processes": processes,
        "spec": repr(registry.model_spec("tiny")),
        "config": encode(alone.config),
        "devices": devices,
        "states": str(alone.folder / "states"),
        "run": str(alone.run),
        "image": str(alone.image),
    }
    (out / "job.json").write_text(json.dumps(job))
    flags = xla_flags(devices=len(devices) // processes)
    command = [sys.executable, hosts_job.__file__, str(out / "job.json"), str(out)]
    started = [
        subprocess.Popen(
            [*command, str(process)],
            env={**os.environ, "XLA_FLAGS": flags},
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(processes)
    ]
    errors = [process.communicate(timeout=300)[1] for process in started]
    assert [process.returncode for process in started] == [0] * processes, errors


def require_equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        kind = name.split("/")[0]
        if kind in ("ids", "restored"):
            np.testing.assert_array_equal(found[name], values, err_msg=name)
        elif kind in ("images", "soft"):
            np.testing.assert_allclose(found[name], values, atol=1e-6, err_msg=name)
    ours, theirs = part(found, "float64"), part(expected, "float64")
    assert np.linalg.norm(ours - theirs) < 1e-8 * np.linalg.norm(theirs)


def part(found: dict[str, Any], prefix: str) -> np.ndarray:
    """All floating values of the entries whose names begin so, in one row."""
    chosen = [x for name, x in sorted(found.items()) if name.startswith(prefix)]
    assert chosen
    return np.concatenate([np.ravel(np.asarray(x, np.float64)) for x in chosen])


@pytest.mark.long  # of the step alone, test_step.py knows it
def test_one_device_equals_eight(alone: Alone) -> None:
    mesh = make_mesh(jax.devices()[:1])
    require_equal(hosts_job.measure(alone.config, mesh, alone.folder / "states"), alone.eight)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "devices"),
    [
        (2, [0, 4, 1, 5, 6, 2, 7, 3]),  # the rows of a process are scattered over the batch
        pytest.param(4, list(range(8)), marks=pytest.mark.long),
    ],
)
def test_a_job_equals_one_process(
    alone: Alone, tmp_path: Path, processes: int, devices: list[int]
) -> None:
    run_job(alone, tmp_path, processes=processes, devices=devices)
    classifier = ImageClassifier.from_run(alone.run)
    metrics = classifier.evaluate(split="test[:100]")
    for process in range(processes):
        with np.load(tmp_path / f"{process}.npz") as file:
            require_equal({name.replace("|", "/"): file[name] for name in file}, alone.eight)
        report = json.loads((tmp_path / f"{process}.json").read_text())
        assert report["metrics"] == pytest.approx(metrics, rel=1e-5)
        np.testing.assert_allclose(
            report["probabilities"], classifier.predict([str(alone.image)]), atol=1e-5
        )
    training = build_training(alone.config, num_classes=10, num_examples=1000, mesh=make_mesh())
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        restored = checkpoints.restore(training.abstract_state()).state
    jax.tree.map(np.testing.assert_array_equal, *jax.device_get((restored, training.init())))
