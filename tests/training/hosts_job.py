"""What a process of a job computes, so that jobs of other shapes can be compared with it.

Run as `hosts_job.py JOB.json OUT PROCESS`, or through `measure` in a process alone.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxcls.config import Config, decode
from jaxcls.config.augment import CenterCrop, RandomFlip
from jaxcls.data.batches import train_batches
from jaxcls.data.device import globalize, process_rows
from jaxcls.data.sources import open_source
from jaxcls.distributed.job import JobOptions, join, leave
from jaxcls.distributed.mesh import make_mesh, replicated, split_by_example
from jaxcls.inference.classifier import ImageClassifier
from jaxcls.measure.benchmark import compile_augment
from jaxcls.models import registry
from jaxcls.models.efficientnet import BlockSpec, ModelSpec  # noqa: F401  the job's text names them
from jaxcls.runs.checkpoint import Checkpoints
from jaxcls.training.build import Training, build_training
from jaxcls.training.step import BATCH_FIELDS

STEPS = (0, 10)  # at which the state and the images are compared
FLOAT64_STEPS = 20


def measure(config: Config, mesh: Mesh, states: Path) -> dict[str, np.ndarray]:
    """Record numbers, images and steps of a training on a mesh, from the states saved there."""
    source = open_source(config.data, "train")
    training = build_training(config, num_classes=10, num_examples=len(source), mesh=mesh)
    augment, _ = compile_augment(training)
    found: dict[str, Any] = {}
    for step in STEPS:
        batch = batch_of(training, step)
        images, labels = augment(jax.random.key(step), inputs(batch))
        drawn = {f"ids/{step}": batch["index"], f"images/{step}": images, f"soft/{step}": labels}
        with Checkpoints(states) as checkpoints:
            state = checkpoints.restore(training.abstract_state(), step).state
        found |= fetch(drawn | named(f"restored/{step}", state), mesh)
    with jax.enable_x64(True):
        # The other augmentations were compared above; they take longest to compile.
        wide = dataclasses.replace(
            config, compute_dtype="float64", augment=(RandomFlip(), CenterCrop())
        )
        training = build_training(wide, num_classes=10, num_examples=len(source), mesh=mesh)
        state = training.init()
        for step in range(FLOAT64_STEPS):
            state, _ = training.steps[training.config.data.image_size](
                state, inputs(batch_of(training, step))
            )
        return found | fetch(named("float64", state), mesh)


def fetch(arrays: dict[str, jax.Array], mesh: Mesh) -> dict[str, np.ndarray]:
    """Global arrays, whole, in every process."""
    return jax.device_get(jax.jit(lambda tree: tree, out_shardings=replicated(mesh))(arrays))


def inputs(batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: batch[name] for name in BATCH_FIELDS}


def batch_of(training: Training, step: int) -> dict[str, jax.Array]:
    """The training's own batch at a step, as global arrays."""
    config, sharding = training.config, split_by_example(training.mesh)
    rows = process_rows(sharding, config.data.batch_size)
    source = open_source(config.data, "train")
    batches = train_batches(source, config.data, seed=config.seed, rows=rows, start=step)
    try:
        return globalize(next(batches), sharding)
    finally:
        batches.close()


def named(prefix: str, tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {f"{prefix}{jax.tree_util.keystr(path)}": leaf for path, leaf in leaves}


def main(arguments: Sequence[str]) -> None:
    job, out, process = json.loads(Path(arguments[0]).read_text()), Path(arguments[1]), arguments[2]
    count = job["num_processes"]
    join(
        JobOptions(coordinator=job["coordinator"], num_processes=count, process_id=int(process)),
        stops=True,
    )
    registry.SPECS["tiny"] = eval(job["spec"])
    config = decode(job["config"])
    devices = [jax.devices()[number] for number in job["devices"]]
    mesh = make_mesh(devices)
    assert list(mesh.devices.flat) == devices
    found = measure(config, mesh, Path(job["states"]))
    classifier = ImageClassifier.from_run(job["run"])
    report = {
        "metrics": classifier.evaluate(split="test[:100]"),
        "probabilities": classifier.predict([job["image"]]).tolist(),
    }
    training = build_training(config, num_classes=10, num_examples=1000, mesh=mesh)
    with Checkpoints(out / "checkpoints") as checkpoints:
        checkpoints.save(3, training.init(), metadata={})
    arrays: dict[str, Any] = {name.replace("/", "|"): x for name, x in found.items()}
    np.savez(out / f"{process}.npz", **arrays)
    (out / f"{process}.json").write_text(json.dumps(report))
    leave(0)


if __name__ == "__main__":
    main(sys.argv[1:])
