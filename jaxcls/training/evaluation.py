"""Exact evaluation: every example counts once, whatever the batch size and the devices."""

import contextlib
import functools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jaxcls.config import Config, DataConfig
from jaxcls.data.batches import HostBatches, eval_batches
from jaxcls.data.device import process_rows, require_patience, to_device
from jaxcls.data.sources import Source
from jaxcls.distributed.mesh import replicated, split_by_example
from jaxcls.models.interface import Network, Variables
from jaxcls.models.normalize import normalize
from jaxcls.training.accuracy import count_hits
from jaxcls.training.build import Training
from jaxcls.training.losses import LOSSES, one_hot_labels
from jaxcls.training.meter import require_finite
from jaxcls.training.state import TrainState

EvalStep = Callable[[Variables, Mapping[str, Array]], dict[str, Array]]


def make_eval_step(model: Network, *, loss: str, mesh: Mesh) -> EvalStep:
    """Makes the jitted `(variables, batch) -> sums` of loss, top1, top5 and num_examples.

    The batch is {"images": uint8 [batch, size, size, 3], "labels": int32 [batch], "mask": bool
    [batch]}; examples whose mask is False are left out. The loss is without label smoothing. The
    variables may be replicated or sharded.
    """

    everywhere, split = replicated(mesh), split_by_example(mesh)

    def eval_step(variables: Variables, batch: Mapping[str, Array]) -> dict[str, Array]:
        variables = jax.lax.with_sharding_constraint(variables, everywhere)
        logits = predict_logits(model, variables, batch["images"])
        return eval_sums(logits, batch["labels"], batch["mask"], loss=loss)

    names = ("images", "labels", "mask")
    jitted = jax.jit(
        eval_step,
        in_shardings=(None, dict.fromkeys(names, split)),
        out_shardings=everywhere,
    )
    return lambda variables, batch: jitted(variables, {name: batch[name] for name in names})


def eval_sums(logits: Array, labels: Array, mask: Array, *, loss: str) -> dict[str, Array]:
    """Sums of loss, top1, top5 and num_examples over the unmasked examples of a batch.

    Args:
      logits: [batch, classes].
      labels: class numbers, int [batch].
      mask: bool [batch].
      loss: the loss of the config (`loss.name`).
    """
    losses = LOSSES[loss](logits, one_hot_labels(labels, logits.shape[-1]))
    return {"loss": jnp.sum(jnp.where(mask, losses, 0)), **count_hits(logits, labels, mask)}


def predict_logits(model: Network, variables: Variables, images: Array) -> Array:
    """Logits [batch, classes] of uint8 images [batch, size, size, 3], with moving statistics."""
    logits = model.apply(variables, normalize(images.astype(jnp.float32) / 255, model.spec))
    assert isinstance(logits, Array)
    return logits


def predict_features(model: Network, variables: Variables, images: Array) -> Array:
    """Pooled features [batch, features] of uint8 images [batch, size, size, 3]."""
    images = normalize(images.astype(jnp.float32) / 255, model.spec)
    features = model.apply(variables, images, features=True)
    assert isinstance(features, Array)
    return features


def evaluate_split(
    eval_step: EvalStep,
    variables: Variables,
    source: Source,
    data: DataConfig,
    *,
    mesh: Mesh,
    class_map: Sequence[int] | None = None,
    on_wait: Callable[[float], None] | None = None,
) -> dict[str, float]:
    """Averages over all examples of a split.

    All processes call this together and get the same result.

    Args:
      eval_step: the compiled step (`make_eval_step`).
      variables: the network's variables on the mesh.
      source: the split.
      data: the preprocessing of its images, and the batch size.
      mesh: the devices.
      class_map: for each class of the source, the network's class (None: they are the same).
      on_wait: as for `map_batches`.

    Returns:
      loss, top1 and top5 (shares), and num_examples, which leaves out broken images (data.broken
      "skip").
    """
    batches = map_batches(
        eval_step, variables, source, data, mesh=mesh, class_map=class_map, on_wait=on_wait
    )
    return average(batches, source, data)


def make_evaluator(
    training: Training,
    source: Source,
    *,
    before_batch: Callable[[int], None],
    on_wait: Callable[[float], None],
) -> Callable[[int, TrainState], dict[str, float]]:
    """Makes `(step, state) -> metrics`: the evaluation of a training's state on a split.

    Where the state has moving averages, they are evaluated; the metrics of the parameters as the
    last step left them are then raw_loss, raw_top1 and raw_top5.

    Args:
      training: the training.
      source: the evaluation split.
      before_batch: called with the step before each batch; what it raises ends the evaluation.
      on_wait: as for `map_batches`.

    Raises:
      DivergedError: raised by the result if the loss is not finite.
    """
    config, mesh = training.config, training.mesh
    eval_step = make_eval_step(training.model, loss=config.loss.name, mesh=mesh)

    def evaluate(step: int, state: TrainState) -> dict[str, float]:
        def sums_of(variables: Variables, batch: Mapping[str, Array]) -> dict[str, Array]:
            before_batch(step)
            sums = eval_step(variables, batch)
            if state.ema is None:
                return sums
            raw = eval_step(state.variables, batch)
            return sums | {f"raw_{name}": raw[name] for name in ("loss", "top1", "top5")}

        metrics = evaluate_split(
            sums_of, state.eval_variables, source, config.data, mesh=mesh, on_wait=on_wait
        )
        require_finite(step, "evaluation loss", metrics["loss"])
        return metrics

    return evaluate


def map_batches[T](
    step: Callable[[Variables, Mapping[str, Array]], T],
    variables: Variables,
    source: Source,
    data: DataConfig,
    *,
    mesh: Mesh,
    class_map: Sequence[int] | None = None,
    on_wait: Callable[[float], None] | None = None,
) -> Iterator[T]:
    """Calls `step` with each batch of a split, in order; yields its results on the host.

    Args:
      step: from the variables and a batch (of `eval_batches`) to replicated arrays.
      variables: the network's variables, replicated.
      source: the split.
      data: the preprocessing of its images, and the batch size.
      mesh: the devices.
      class_map: for each class of the source, the network's class (None: they are the same).
      on_wait: as for `to_device` (None: a wait of ten minutes raises a DataError).
    """
    if on_wait is None:
        on_wait = functools.partial(require_patience, source, most=Config.stuck_after_seconds)
    sharding = split_by_example(mesh)
    batch_size = -(-data.batch_size // mesh.size) * mesh.size
    host_batches = eval_batches(
        source, data, batch_size=batch_size, rows=process_rows(sharding, batch_size)
    )
    if class_map is not None:
        host_batches = _relabelled(host_batches, np.asarray(class_map, np.int32))
    with to_device(host_batches, sharding, depth=data.prefetch, on_wait=on_wait) as batches:
        for batch in batches:
            yield jax.device_get(step(variables, batch))


def average(
    sums: Iterable[Mapping[str, Array]], source: Source, data: DataConfig
) -> dict[str, float]:
    """Averages the sums of all batches of a split, as `evaluate_split` returns them."""
    totals: dict[str, float] = defaultdict(float)
    for batch_sums in sums:
        for name, value in batch_sums.items():
            totals[name] += float(value)
    count = totals.pop("num_examples")
    assert count == len(source) or data.broken == "skip", "every example counts once"
    return {name: total / count for name, total in totals.items()} | {"num_examples": int(count)}


def _relabelled(batches: HostBatches, class_map: np.ndarray) -> HostBatches:
    with contextlib.closing(batches):
        for batch in batches:
            yield batch | {"labels": class_map[batch["labels"]]}
