"""A trained network with all that prediction needs."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcls.checkpoint import Checkpoints
from jaxcls.config import Config, DataConfig
from jaxcls.data.decode import decode_image
from jaxcls.data.images import evaluation_image
from jaxcls.data.sources import Source, open_source
from jaxcls.errors import UserError
from jaxcls.models.efficientnet import EfficientNet
from jaxcls.parallel import make_mesh, replicated
from jaxcls.results import Evaluation
from jaxcls.rundir import RunInfo, checkpoint_dir, require_run
from jaxcls.training.assemble import model_from_config
from jaxcls.training.evaluation import evaluate, make_eval_step, predict_logits
from jaxcls.training.predictions import (
    make_predict_step,
    predict_split,
    probabilities_of,
)
from jaxcls.training.state import Variables, eval_variables_template

type Step = int | Literal["latest", "best"]
type Images = np.ndarray | Sequence[np.ndarray] | Sequence[str | Path]


class Guess(NamedTuple):
    """A class for an image: its number, its name, and how probable it is."""

    id: int
    name: str
    probability: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageClassifier:
    """A network, its weights, and how images are brought to it.

    Attributes:
      config: of the training that made the weights.
      class_names: in the order of the probabilities.
      model: the network.
      variables: {"params", "batch_stats"}, the moving averages where the training kept some.
      step: of the checkpoint.
    """

    config: Config
    class_names: tuple[str, ...]
    model: EfficientNet
    variables: Variables
    step: int

    @classmethod
    def from_run(cls, run: str | Path, *, step: Step = "latest") -> "ImageClassifier":
        """Restores a run for prediction; needs nothing but its directory.

        Args:
          run: directory of the run.
          step: "latest", "best" (by top-1 during training) or a step's number.

        Raises:
          UserError: no such run, no good checkpoint, or no such step.
        """
        run = require_run(Path(run))
        with Checkpoints(checkpoint_dir(run)) as checkpoints:
            info = RunInfo.from_json(checkpoints.metadata(step))
            model = model_from_config(info.config, num_classes=len(info.class_names))
            template = eval_variables_template(
                model,
                image_size=info.config.data.image_size,
                use_ema=info.config.optimizer.ema_decay > 0,
            )
            restored = checkpoints.restore(template, step, subset=True)
        return cls(
            config=info.config,
            class_names=info.class_names,
            model=model,
            variables=restored.state.get("ema") or restored.state,
            step=restored.step,
        )

    def predict(self, images: Images, *, batch_size: int = 32) -> np.ndarray:
        """Probabilities of every class.

        Args:
          images: uint8 [N, height, width, 3], or a sequence of uint8 [height, width, 3] of any
            sizes, or of paths of image files.
          batch_size: images that go to the device at once.

        Returns:
          float32 [N, classes]; each row sums to 1, or with the sigmoid loss each entry stands for
          itself.

        Raises:
          UserError: an image cannot be read; the message names it.
        """
        if not len(images):
            return np.zeros((0, len(self.class_names)), np.float32)
        rows = []
        for start in range(0, len(images), batch_size):
            chunk = [self._prepare(image) for image in images[start : start + batch_size]]
            padding = [np.zeros_like(chunk[0])] * (
                batch_size - len(chunk)
            )  # one shape, one compile
            probabilities = self._probabilities(np.stack(chunk + padding))
            rows.append(np.asarray(probabilities)[: len(chunk)])
        return np.concatenate(rows)

    def evaluate(
        self, *, split: str | None = None, data_dir: str | None = None
    ) -> dict[str, float]:
        """Loss and accuracy over a split of the data that the network was trained on.

        Args:
          split: TFDS split syntax (None: `data.eval_split` of the config).
          data_dir: where the prepared data lies (None: `data.data_dir` of the config).

        Returns:
          loss (without label smoothing), top1 and top5 (shares), num_examples, and the step.

        Raises:
          UserError: the data cannot be read, or has other classes, or the loss is not finite.
        """
        source, data = self._open(split, data_dir)
        mesh = make_mesh()
        eval_step = make_eval_step(self.model, loss=self.config.loss.name, mesh=mesh)
        variables = jax.device_put(self.variables, replicated(mesh))
        metrics = evaluate(eval_step, variables, source, data, mesh=mesh)
        self._require_finite(metrics, source)
        return metrics | {"step": self.step}

    def examine(
        self, *, split: str | None = None, data_dir: str | None = None, top: int = 5
    ) -> Evaluation:
        """Evaluates a split, and keeps what the network says to each of its examples.

        Args:
          split: as for `evaluate`.
          data_dir: as for `evaluate`.
          top: classes to keep for each example.

        Returns:
          The metrics of `evaluate`, the predictions, and from them a table of the classes, the
          confusion matrix and a CSV file.

        Raises:
          UserError: as for `evaluate`.
        """
        source, data = self._open(split, data_dir)
        mesh = make_mesh()
        step = make_predict_step(self.model, loss=self.config.loss.name, mesh=mesh, top=top)
        variables = jax.device_put(self.variables, replicated(mesh))
        metrics, predictions = predict_split(step, variables, source, data, mesh=mesh)
        self._require_finite(metrics, source)
        return Evaluation(
            metrics=metrics | {"step": self.step},
            source=source,
            class_names=self.class_names,
            predictions=predictions,
        )

    def _open(self, split: str | None, data_dir: str | None) -> tuple[Source, DataConfig]:
        """The data to evaluate, which must have the network's classes."""
        data = self.config.data
        if data_dir is not None:
            data = dataclasses.replace(data, data_dir=data_dir)
        source = open_source(data, split or data.eval_split)
        if source.class_names != self.class_names:
            raise UserError(
                f"data.source: {data.source!r} has {source.num_classes} classes that are not the "
                f"{len(self.class_names)} classes of the run"
            )
        return source, data

    def _require_finite(self, metrics: Mapping[str, float], source: Source) -> None:
        if not math.isfinite(metrics["loss"]):
            raise UserError(
                f"the loss of step {self.step} on {source.name} is {metrics['loss']}: its weights "
                f"are of no use; evaluate another step (--step)"
            )

    def rank(self, probabilities: np.ndarray, *, top: int = 5) -> list[list[Guess]]:
        """The `top` best classes, best first, a list an image; equal ones by class number."""
        order = np.argsort(-probabilities, axis=-1, kind="stable")[:, :top]
        return [
            [Guess(int(index), self.class_names[index], float(row[index])) for index in best]
            for row, best in zip(probabilities, order, strict=True)
        ]

    def decode(self, probabilities: np.ndarray, *, top: int = 5) -> list[list[tuple[str, float]]]:
        """The `top` best class names with their probabilities, best first, a list an image."""
        return [
            [(guess.name, guess.probability) for guess in best]
            for best in self.rank(probabilities, top=top)
        ]

    def _prepare(self, image: np.ndarray | str | Path) -> np.ndarray:
        data = self.config.data
        if isinstance(image, str | Path):
            image = read_image(Path(image), background=data.background)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise UserError(
                f"images: expected uint8 [height, width, 3], got {image.dtype} {list(image.shape)}"
            )
        return evaluation_image(image, data)

    def _probabilities(self, images: np.ndarray) -> jax.Array:
        logits = _jitted_logits(self.model, self.variables, jnp.asarray(images))
        return probabilities_of(logits, loss=self.config.loss.name)


_jitted_logits = jax.jit(predict_logits, static_argnums=0)


def read_image(path: Path, *, background: str = "#ffffff") -> np.ndarray:
    """Reads an image file as uint8 [height, width, 3].

    Raises:
      UserError: there is no such file, or it cannot be decoded.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"image {str(path)!r} cannot be read: {error.strerror}") from error
    return decode_image(data, where=f"image {str(path)!r}", background=background)
