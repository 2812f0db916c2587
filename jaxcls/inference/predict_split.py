"""Predicts each example of a split, in the same pass as its metrics."""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jaxcls.config import DataConfig
from jaxcls.data.sources import Source
from jaxcls.distributed.mesh import batch_spec, replicated, split_by_example
from jaxcls.models.interface import Network, Variables
from jaxcls.training.evaluation import (
    Tally,
    eval_results,
    map_batches,
    predict_logits,
    probabilities_of,
    require_complete,
)

Results = dict[str, Array]
Rows = dict[str, Array]
PredictStep = Callable[[Variables, Mapping[str, Array]], tuple[Results, Rows]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predictions:
    """The best predictions for each example of a split, in the split's order.

    Broken images that were skipped have no row.

    Attributes:
      index: record numbers in the source, int32 [examples].
      labels: the correct classes, as the network's numbers, int32 [examples].
      classes: the best classes, best first, int32 [examples, top]; ties by class number.
      probabilities: the probabilities of these classes, float32 [examples, top].
    """

    index: np.ndarray
    labels: np.ndarray
    classes: np.ndarray
    probabilities: np.ndarray

    @property
    def predicted(self) -> np.ndarray:
        """The best class of each example, int32 [examples]."""
        return self.classes[:, 0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiLabelPredictions:
    """The probabilities for each example of a split whose images have several labels.

    Attributes:
      index: record numbers in the source, int32 [examples].
      labels: which of the network's classes each example has, bool [examples, classes].
      probabilities: float32 [examples, classes].
    """

    index: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray


def make_predict_step(model: Network, *, loss: str, mesh: Mesh, top: int = 5) -> PredictStep:
    """Makes the jitted `(variables, batch) -> (results, rows)`.

    The results are those of `make_eval_step`. The rows are index and mask of the whole batch, on
    every device, and the other attributes of `Predictions`; of images with several labels they are
    in the results. Devices exchange only the `top` best classes of images with one label, because
    with many classes all probabilities would be gigabytes.
    """
    top = min(top, model.num_classes)
    names = ("images", "labels", "mask", "index")

    def best(logits: Array) -> tuple[Array, Array]:
        ranked = jnp.where(jnp.isnan(logits), -jnp.inf, logits)  # NaN last, as in `eval_sums`
        _, classes = jax.lax.top_k(ranked, top)
        probabilities = probabilities_of(logits, loss=loss).astype(jnp.float32)
        return classes, jnp.take_along_axis(probabilities, classes, axis=-1)

    rows_of_each_device = batch_spec(mesh)
    best_on_each_device = jax.shard_map(
        best, mesh=mesh, in_specs=rows_of_each_device, out_specs=rows_of_each_device
    )

    def predict_step(variables: Variables, batch: Mapping[str, Array]) -> tuple[Results, Rows]:
        logits = predict_logits(model, variables, batch["images"])
        labels, mask = batch["labels"], batch["mask"]
        rows = {"index": batch["index"], "mask": mask}
        if labels.ndim == 1:
            classes, probabilities = best_on_each_device(logits)
            rows |= {"labels": labels, "classes": classes, "probabilities": probabilities}
        return eval_results(logits, labels, mask, loss=loss), rows

    everywhere = replicated(mesh)
    jitted = jax.jit(
        predict_step,
        in_shardings=(everywhere, dict.fromkeys(names, split_by_example(mesh))),
        out_shardings=everywhere,
    )
    return lambda variables, batch: jitted(variables, {name: batch[name] for name in names})


def predict_split(
    predict_step: PredictStep,
    variables: Variables,
    source: Source,
    data: DataConfig,
    *,
    mesh: Mesh,
    class_map: Sequence[int] | None = None,
) -> tuple[dict[str, float], Predictions | MultiLabelPredictions]:
    """Predicts every example of a split once, and computes the metrics in the same pass.

    All processes call this together, and get the same result.

    Args:
      predict_step: the result of `make_predict_step`.
      variables: the network's variables, on every device.
      source: the split.
      data: the preprocessing.
      mesh: the devices.
      class_map: the network's number for each class of the source (None: they are the same).

    Returns:
      The metrics of `evaluate_split`, and the predictions.
    """
    tally, parts = Tally(), defaultdict(list)
    for results, rows in map_batches(
        predict_step, variables, source, data, mesh=mesh, class_map=class_map
    ):
        tally.add(results)
        mask = np.asarray(rows.pop("mask"))
        for name, values in rows.items():
            parts[name].append(np.asarray(values)[mask])
    metrics = require_complete(tally.metrics(), source, data)
    columns = {name: np.concatenate(values) for name, values in parts.items()}
    if "classes" in columns:
        return metrics, Predictions(**columns)
    return metrics, MultiLabelPredictions(**columns, **tally.rows())
