"""Exact evaluation: every example counts once, whatever the batch size and the devices."""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from jaxcls.config import DataConfig
from jaxcls.data.batches import eval_batches
from jaxcls.data.device import process_rows, to_device
from jaxcls.data.sources import Source
from jaxcls.models.efficientnet import EfficientNet
from jaxcls.parallel import replicated, split_by_example
from jaxcls.training.losses import LOSSES, soft_labels
from jaxcls.training.metrics import count_hits
from jaxcls.training.state import Variables
from jaxcls.training.step import normalize

EvalStep = Callable[[Variables, Mapping[str, Array]], dict[str, Array]]


def make_eval_step(model: EfficientNet, *, loss: str, mesh: Mesh) -> EvalStep:
    """Makes the jitted `(variables, batch) -> sums` of loss, top1, top5 and num_examples.

    The batch is {"images": uint8 [batch, size, size, 3], "labels": int32 [batch], "mask": bool
    [batch]}; masked examples count for nothing. The loss is without label smoothing.
    """

    def eval_step(variables: Variables, batch: Mapping[str, Array]) -> dict[str, Array]:
        logits = predict_logits(model, variables, batch["images"])
        labels, mask = batch["labels"], batch["mask"]
        losses = LOSSES[loss](logits, soft_labels(labels, model.num_classes))
        return {
            "loss": jnp.sum(jnp.where(mask, losses, 0)),
            **count_hits(logits, labels, mask),
        }

    everywhere, split = replicated(mesh), split_by_example(mesh)
    names = ("images", "labels", "mask")
    jitted = jax.jit(
        eval_step,
        in_shardings=(everywhere, dict.fromkeys(names, split)),
        out_shardings=everywhere,
    )
    return lambda variables, batch: jitted(variables, {name: batch[name] for name in names})


def predict_logits(model: EfficientNet, variables: Variables, images: Array) -> Array:
    """Logits [batch, classes] of uint8 images [batch, size, size, 3], with moving statistics."""
    logits = model.apply(variables, normalize(images.astype(jnp.float32) / 255, model.spec))
    assert isinstance(logits, Array)
    return logits


def predict_features(model: EfficientNet, variables: Variables, images: Array) -> Array:
    """Pooled features [batch, features] of uint8 images [batch, size, size, 3]."""
    images = normalize(images.astype(jnp.float32) / 255, model.spec)
    features = model.apply(variables, images, features=True)
    assert isinstance(features, Array)
    return features


def evaluate(
    eval_step: EvalStep,
    variables: Variables,
    source: Source,
    data: DataConfig,
    *,
    mesh: Mesh,
) -> dict[str, float]:
    """Averages over all examples of a split.

    Every process calls this with its own share of the devices, and gets the same result.

    Returns:
      loss, top1 and top5 (shares), and num_examples, of which broken images (data.broken "skip")
      are no part.
    """
    sharding = split_by_example(mesh)
    batch_size = -(-data.batch_size // mesh.size) * mesh.size
    host_batches = eval_batches(
        source, data, batch_size=batch_size, rows=process_rows(sharding, batch_size)
    )
    totals: dict[str, float] = defaultdict(float)
    with contextlib.closing(to_device(host_batches, sharding, depth=data.prefetch)) as batches:
        for batch in batches:
            for name, value in jax.device_get(eval_step(variables, batch)).items():
                totals[name] += float(value)
    count = totals.pop("num_examples")
    assert count == len(source) or data.broken == "skip", "every example counts once"
    return {name: total / count for name, total in totals.items()} | {"num_examples": int(count)}
