"""Exact evaluation: every example counts once, whatever the batch size and the devices."""

import contextlib
import functools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

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
from jaxcls.training.accuracy import count_hits, count_hits_of_classes
from jaxcls.training.build import Training
from jaxcls.training.losses import evaluation_loss, soft_labels
from jaxcls.training.meter import require_finite
from jaxcls.training.multi_label import multi_label_metrics
from jaxcls.training.state import TrainState

EvalStep = Callable[[Variables, Mapping[str, Array]], dict[str, Array]]


def make_eval_step(model: Network, *, loss: str, mesh: Mesh) -> EvalStep:
    """Makes the jitted `(variables, batch) -> results`, of which `Tally` makes metrics.

    The batch is {"images": uint8 [batch, height, width, channels], "labels": int32 [batch], or with
    several labels an image uint8 [batch, classes], "mask": bool [batch]}; examples whose mask is
    False are left out. The variables may be replicated or sharded.
    """

    everywhere, split = replicated(mesh), split_by_example(mesh)

    def eval_step(variables: Variables, batch: Mapping[str, Array]) -> dict[str, Array]:
        variables = jax.lax.with_sharding_constraint(variables, everywhere)
        logits = predict_logits(model, variables, batch["images"])
        return eval_results(logits, batch["labels"], batch["mask"], loss=loss)

    names = ("images", "labels", "mask")
    jitted = jax.jit(
        eval_step,
        in_shardings=(None, dict.fromkeys(names, split)),
        out_shardings=everywhere,
    )
    return lambda variables, batch: jitted(variables, {name: batch[name] for name in names})


def eval_results(logits: Array, labels: Array, mask: Array, *, loss: str) -> dict[str, Array]:
    """What `Tally` needs of the unmasked examples of a batch.

    Args:
      logits: [batch, classes].
      labels: class numbers, int [batch], or multi-hot, uint8 [batch, classes].
      mask: bool [batch].
      loss: the loss of the config (`loss.name`).

    Returns:
      Sums of loss, top1, top5 and num_examples, float32 scalars, and

      - of one label an image, `class_top1` and `class_examples`, float32 [classes];
      - of several, the rows themselves: probabilities [batch, classes], labels and mask.
    """
    wanted = soft_labels(labels, logits.shape[-1])
    losses = evaluation_loss(loss)(logits, wanted)
    sums = {"loss": jnp.sum(jnp.where(mask, losses, 0))}
    if labels.ndim == 1:
        classes = count_hits_of_classes(logits, labels, mask)
        return sums | count_hits(logits, labels, mask) | classes
    right, probabilities = wanted > 0, probabilities_of(logits, loss=loss)
    rows = {"probabilities": probabilities, "labels": right, "mask": mask}
    return sums | count_hits(logits, right, mask) | rows


class Tally:
    """Adds up the results of batches (`eval_results`), and makes metrics of them."""

    def __init__(self) -> None:
        self._sums: dict[str, np.ndarray | float] = defaultdict(float)
        self._rows: dict[str, list[np.ndarray]] = {"probabilities": [], "labels": []}

    def add(self, results: Mapping[str, Array]) -> None:
        """Adds the results of one batch."""
        arrays = {name: np.asarray(value) for name, value in results.items()}
        mask = arrays.pop("mask", None)
        for name, value in arrays.items():
            if name in self._rows:
                self._rows[name].append(value[mask])
            else:
                self._sums[name] += value.astype(np.float64)

    def rows(self) -> dict[str, np.ndarray]:
        """Probabilities and labels of all examples, which have several labels each."""
        return {name: np.concatenate(parts) for name, parts in self._rows.items()}

    def metrics(self) -> dict[str, float]:
        """The metrics of all batches, as `evaluate_split` returns them."""
        count = self._sums["num_examples"]
        metrics = {name: float(self._sums[name] / count) for name in ("loss", "top1", "top5")}
        if "class_examples" in self._sums:
            hits, examples = self._sums["class_top1"], np.asarray(self._sums["class_examples"])
            present = examples > 0
            shares = np.asarray(hits)[present] / examples[present]
            # Data may have no class that the network knows.
            metrics["balanced_top1"] = float(np.sum(shares) / max(np.sum(present), 1))
        else:
            metrics |= multi_label_metrics(**self.rows())
        return metrics | {"num_examples": int(count)}


def probabilities_of(logits: Array, *, loss: str) -> Array:
    """Returns probabilities [batch, classes]; rows sum to 1 if the loss is "softmax"."""
    return jax.nn.softmax(logits) if loss == "softmax" else jax.nn.sigmoid(logits)


def score(metrics: Mapping[str, float]) -> float:
    """The metric that tells which checkpoint is the best: top1, or with several labels map."""
    return metrics.get("map", metrics["top1"])


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
      loss, the plain cross-entropy without label smoothing, class weights or focal factors; top1
      and top5 (shares); num_examples, which leaves out broken images (data.broken "skip"); and

      - balanced_top1, the mean of each class' top1, over the classes with examples;
      - instead of it, with several labels an image, those of `multi_label_metrics`.
    """
    batches = map_batches(
        eval_step, variables, source, data, mesh=mesh, class_map=class_map, on_wait=on_wait
    )
    tally = Tally()
    for results in batches:
        tally.add(results)
    return require_complete(tally.metrics(), source, data)


def require_complete(
    metrics: dict[str, float], source: Source, data: DataConfig
) -> dict[str, float]:
    """Checks that metrics are of every example of a split; returns them."""
    complete = metrics["num_examples"] == len(source)
    assert complete or data.broken == "skip", "every example counts once"
    return metrics


def make_evaluator(
    training: Training,
    source: Source,
    *,
    before_batch: Callable[[int], None],
    on_wait: Callable[[float], None],
) -> Callable[[int, TrainState], dict[str, float]]:
    """Makes `(step, state) -> metrics`: the evaluation of a training's state on a split.

    Where the state has moving averages, they are evaluated; the metrics of the parameters as the
    last step left them are then raw_loss, raw_top1 and raw_top5, and with several labels raw_map.

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
        raw = Tally()

        def results_of(variables: Variables, batch: Mapping[str, Array]) -> dict[str, Array]:
            before_batch(step)
            if state.ema is not None:
                raw.add(jax.device_get(eval_step(state.variables, batch)))
            return eval_step(variables, batch)

        metrics = evaluate_split(
            results_of, state.eval_variables, source, config.data, mesh=mesh, on_wait=on_wait
        )
        require_finite(step, "evaluation loss", metrics["loss"])
        if state.ema is not None:
            metrics |= {
                f"raw_{name}": value
                for name, value in raw.metrics().items()
                if name in ("loss", "top1", "top5", "map")
            }
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


def _relabelled(batches: HostBatches, class_map: np.ndarray) -> HostBatches:
    """Gives labels the network's class numbers."""
    with contextlib.closing(batches):
        for batch in batches:
            labels = batch["labels"]
            if labels.ndim == 1:
                relabelled = class_map[labels]
            else:
                relabelled = np.zeros((len(labels), class_map.max() + 1), labels.dtype)
                relabelled[:, class_map] = labels
            yield batch | {"labels": relabelled}
