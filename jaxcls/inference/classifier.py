"""Prediction and evaluation with a trained network: a run, a preset or a weights file."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcls.config import Config, DataConfig
from jaxcls.data.sources import Source, open_source
from jaxcls.distributed.mesh import copy_to_all, make_mesh
from jaxcls.inference.class_matching import describe_unknown_classes, match_classes
from jaxcls.inference.image_batches import Images, map_images
from jaxcls.inference.multi_label_report import MultiLabelEvaluation
from jaxcls.inference.open_weights import open_weights
from jaxcls.inference.predict_split import MultiLabelPredictions, make_predict_step, predict_split
from jaxcls.inference.report import Evaluation
from jaxcls.models.interface import Network, Variables
from jaxcls.pretrained.presets import preset
from jaxcls.pretrained.weights import kind_of_weights
from jaxcls.runs.restore import Step, restore_run
from jaxcls.system.errors import UserError
from jaxcls.training.evaluation import (
    evaluate_split,
    make_eval_step,
    predict_features,
    predict_logits,
    probabilities_of,
)


class Guess(NamedTuple):
    """A class for an image: its number, its name, and its probability."""

    id: int
    name: str
    probability: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageClassifier:
    """A network, its weights, and the preprocessing of its images.

    Attributes:
      config: the config of the training that made the weights; for a preset or a file, what is
        known of it.
      class_names: in the order of the probabilities; empty if the network has no classifier.
      model: the network.
      variables: {"params", "batch_stats"}; the moving averages if the training kept them.
      step: the step of the run's checkpoint; None for a preset or a file.
    """

    config: Config
    class_names: tuple[str, ...]
    model: Network
    variables: Variables
    step: int | None = None

    # --- Opening ---------------------------------------------------------------------------------

    @classmethod
    def load(
        cls,
        name: str | Path,
        *,
        step: Step = "latest",
        ema: bool = True,
        class_names: Sequence[str] | None = None,
    ) -> "ImageClassifier":
        """Opens a run, a preset or a weights file, whichever `name` is.

        Args:
          name: a run's directory, a preset's name, or the path of a weights file.
          step: as for `from_run`.
          ema: as for `from_file`.
          class_names: as for `from_file`; not for a run, which has its own.

        Raises:
          UserError: `name` is none of them, or cannot be used.
        """
        kind = kind_of_weights(str(name))
        if class_names is not None and kind == "run":
            raise UserError("class_names: a run already has its class names; leave the option out")
        if not ema and kind != "file":
            raise UserError(
                f"ema (--no-ema): applies only to a checkpoint file of another library, and "
                f"{str(name)!r} is a {kind}; leave the option out"
            )
        if kind == "run":
            return cls.from_run(name, step=step)
        if step != "latest":
            raise UserError(f"--step: only a run has steps, and {str(name)!r} is a {kind}")
        if kind == "preset":
            return cls.from_preset(str(name), class_names=class_names)
        return cls.from_file(name, ema=ema, class_names=class_names)

    @classmethod
    def from_run(cls, run: str | Path, *, step: Step = "latest") -> "ImageClassifier":
        """Restores a run for prediction; needs nothing but its directory.

        Args:
          run: the run's directory.
          step: "latest", "best" (by top-1 during training) or the number of a step.

        Raises:
          UserError: there is no such run or step, or no good checkpoint.
        """
        restored = restore_run(run, step=step)
        return cls(
            config=restored.info.config,
            class_names=restored.info.class_names,
            model=restored.model,
            variables=restored.variables,
            step=restored.step,
        )

    @classmethod
    def from_preset(
        cls,
        name: str,
        *,
        num_classes: int | None = None,
        allow_unused: Sequence[str] = (),
        class_names: Sequence[str] | None = None,
    ) -> "ImageClassifier":
        """Opens a published network, and downloads its weights if needed.

        Args:
          name: such as "efficientnetv2_b0_imagenet"; `jaxcls.pretrained.presets` lists them.
          num_classes: width of the classifier (None: the preset's). For another number than the
            preset's the classifier is new, and useless until it is trained.
          allow_unused: as for `from_file`.
          class_names: as for `from_file`.

        Raises:
          WeightsError: there is no such preset, or its weights cannot be fetched.
        """
        preset(name)
        return cls._open(
            name, num_classes=num_classes, allow_unused=allow_unused, class_names=class_names
        )

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        *,
        model: str | None = None,
        num_classes: int | None = None,
        allow_missing: Sequence[str] = (),
        allow_unused: Sequence[str] = (),
        ema: bool = True,
        class_names: Sequence[str] | None = None,
    ) -> "ImageClassifier":
        """Opens a network with the weights of a safetensors, Keras or PyTorch file.

        Args:
          path: the file.
          model: the network's name (None: the one that the file names, or that its tensors fit).
          num_classes: as for `from_preset`.
          allow_missing: regular expressions of variables ("block1a/project_conv/kernel") that may
            be missing in the file; they get random initial values.
          allow_unused: regular expressions of tensors (names in the file) that may stay unused,
            such as the layers of another library's head.
          ema: if the file is a checkpoint with both, take the moving averages of the weights
            instead of the weights.
          class_names: the names of the classes in order (None: those in the file, or ImageNet's if
            there are 1000 classes, or numbers).

        Raises:
          WeightsError: the file cannot be read, or does not fit the network.
          UserError: there are more or fewer class names than classes.
        """
        return cls._open(
            str(path),
            model_name=model,
            num_classes=num_classes,
            allow_missing=allow_missing,
            allow_unused=allow_unused,
            ema=ema,
            class_names=class_names,
        )

    @classmethod
    def _open(cls, name: str, **options) -> "ImageClassifier":
        config, class_names, model, variables = open_weights(name, **options)
        return cls(config=config, class_names=class_names, model=model, variables=variables)

    def with_max_pixels(self, max_pixels: int | None) -> "ImageClassifier":
        """Returns the same classifier with another limit for image files (`data.max_pixels`)."""
        data = dataclasses.replace(self.config.data, max_pixels=max_pixels)
        return dataclasses.replace(self, config=dataclasses.replace(self.config, data=data))

    # --- Predicting images -----------------------------------------------------------------------

    def predict(
        self, images: Images, *, batch_size: int = 32, broken: dict[int, str] | None = None
    ) -> np.ndarray:
        """Computes the probability of every class for each image.

        Args:
          images: uint8 [N, height, width, channels]; or a sequence of uint8 [height, width,
            channels] of any sizes, or of paths of image files. `config.data.channels` says how many
            there are; grey images may be [height, width], and [height, width, 1] for three
            channels. Other numbers than uint8 are mapped by `config.data.value_range`.
          batch_size: the largest number of images on the device at once.
          broken: a dict that gets the index and the error message of each file that cannot be read
            or decoded; its row is then NaN. None: such a file is an error.

        Returns:
          float32 [N, classes]. Each row sums to 1; with the sigmoid and the asymmetric loss each
          class has its own probability instead.

        Raises:
          UserError: an image file cannot be read (without `broken`), or the network has no
            classifier.
        """
        self._require_classifier()
        logits = map_images(
            images,
            lambda batch: _jitted_logits(self.model, self.variables, batch),
            self.config.data,
            width=len(self.class_names),
            batch_size=batch_size,
            broken=broken,
        )
        return np.asarray(probabilities_of(jnp.asarray(logits), loss=self.config.loss.name))

    def features(
        self, images: Images, *, batch_size: int = 32, broken: dict[int, str] | None = None
    ) -> np.ndarray:
        """Computes the pooled features, which are the input of the classifier.

        Args:
          images: as for `predict`.
          batch_size: as for `predict`.
          broken: as for `predict`.

        Returns:
          float32 [N, features].

        Raises:
          UserError: an image file cannot be read (without `broken`).
        """
        return map_images(
            images,
            lambda batch: _jitted_features(self.model, self.variables, batch),
            self.config.data,
            width=self.model.spec.num_features,
            batch_size=batch_size,
            broken=broken,
        )

    @property
    def multi_label(self) -> bool:
        """Whether the network was trained on images with several labels."""
        return self.config.data.labels == "multiple"

    def rank(
        self, probabilities: np.ndarray, *, top: int | None = 5, threshold: float = 0.0
    ) -> list[list[Guess]]:
        """Returns the best classes of each image, best first; ties by class number.

        Args:
          probabilities: [N, classes].
          top: the largest number of classes of an image (None: all).
          threshold: the lowest probability.
        """
        order = np.argsort(-probabilities, axis=-1, kind="stable")[:, :top]
        return [
            [
                Guess(int(index), self.class_names[index], float(row[index]))
                for index in best
                if row[index] >= threshold
            ]
            for row, best in zip(probabilities, order, strict=True)
        ]

    def decode(self, probabilities: np.ndarray, *, top: int = 5) -> list[list[tuple[str, float]]]:
        """Returns the `top` best class names of each image and their probabilities, best first."""
        return [
            [(guess.name, guess.probability) for guess in best]
            for best in self.rank(probabilities, top=top)
        ]

    # --- Evaluating labelled images --------------------------------------------------------------

    def evaluate(
        self, data: DataConfig | None = None, *, split: str | None = None
    ) -> dict[str, float]:
        """Computes loss and accuracy over a split of labelled images.

        Args:
          data: the data set and the preprocessing (None: `config.data`, for a run the data that it
            was trained on). Classes of other data are matched with the network's by name, or by
            WordNet id if they are ImageNet's.
          split: in TFDS split syntax (None: `data.eval_split`).

        Returns:
          The metrics of `jaxcls.training.evaluation.evaluate_split`, and a run's step.

        Raises:
          UserError: the data cannot be read, it has classes that the network does not know, or the
            loss is not finite.
        """
        source, data, class_map = self._open_split(data, split)
        self._require_known_classes(source, class_map)
        mesh = make_mesh()
        eval_step = make_eval_step(self.model, loss=self.config.loss.name, mesh=mesh)
        variables = copy_to_all(self.variables, mesh)
        metrics = evaluate_split(eval_step, variables, source, data, mesh=mesh, class_map=class_map)
        self._require_finite(metrics, source)
        return metrics | self._step()

    def examine(
        self, data: DataConfig | None = None, *, split: str | None = None, top: int = 5
    ) -> Evaluation | MultiLabelEvaluation:
        """Evaluates a split, and keeps the predictions for each example.

        Args:
          data: as for `evaluate`, but it may have classes that the network does not know.
          split: as for `evaluate`.
          top: the number of best classes to keep for each example.

        Returns:
          The metrics of `evaluate` and the predictions, from which it makes a table of the classes
          and a CSV file, and of images with one label the confusion matrix. If the data has classes
          that the network does not know, they get the numbers after the network's own, and
          num_examples is the only metric; not if images have several labels.

        Raises:
          UserError: the data cannot be read, or the loss is not finite.
        """
        source, data, class_map = self._open_split(data, split)
        if source.multi_label:
            self._require_known_classes(source, class_map)
        mesh = make_mesh()
        step = make_predict_step(self.model, loss=self.config.loss.name, mesh=mesh, top=top)
        variables = copy_to_all(self.variables, mesh)
        metrics, predictions = predict_split(
            step, variables, source, data, mesh=mesh, class_map=class_map
        )
        if isinstance(predictions, MultiLabelPredictions):
            self._require_finite(metrics, source)
            return MultiLabelEvaluation(
                metrics=metrics | self._step(),
                source=source,
                class_names=self.class_names,
                predictions=predictions,
            )
        class_names = self.class_names
        if class_map is not None and max(class_map) >= len(class_names):
            class_names += source.class_names
            metrics = {"num_examples": metrics["num_examples"]}
        else:
            self._require_finite(metrics, source)
        return Evaluation(
            metrics=metrics | self._step(),
            source=source,
            class_names=class_names,
            predictions=predictions,
            class_map=class_map,
            num_known=len(self.class_names),
        )

    def _open_split(
        self, data: DataConfig | None, split: str | None
    ) -> tuple[Source, DataConfig, list[int] | None]:
        """Returns a split, its config, and the network's number for each of its classes.

        The numbers are None if the classes are the same.
        """
        self._require_classifier()
        data = data or self.config.data
        if not data.source:
            raise UserError(
                f"data.source: name the data to evaluate {self.config.model.weights!r} on, for "
                f"example --data.source folder:photos"
            )
        if data.channels != self.model.spec.channels:
            raise UserError(
                f"data.channels: {data.channels}, but the network takes images of "
                f"{self.model.spec.channels}; set the field to that"
            )
        source = open_source(data, split or data.eval_split, field="--split" if split else None)
        if source.class_names == self.class_names:
            return source, data, None
        return source, data, match_classes(source.class_names, self.class_names)

    def _require_known_classes(self, source: Source, class_map: Sequence[int] | None) -> None:
        if class_map is not None and (
            message := describe_unknown_classes(
                source.name, source.class_names, self.class_names, class_map
            )
        ):
            raise UserError(message)

    def _step(self) -> dict[str, int]:
        return {} if self.step is None else {"step": self.step}

    def _require_classifier(self) -> None:
        if not self.class_names:
            raise UserError(
                f"{self.config.model.weights!r} has no classifier; use features(), or fine-tune it"
            )

    def _require_finite(self, metrics: Mapping[str, float], source: Source) -> None:
        if not math.isfinite(metrics["loss"]):
            weights = self.config.model.weights if self.step is None else f"step {self.step}"
            raise UserError(
                f"the loss of {weights} on {source.name} is {metrics['loss']}: its weights "
                f"cannot be used; evaluate another step (--step)"
            )


_jitted_logits = jax.jit(predict_logits, static_argnums=0)
_jitted_features = jax.jit(predict_features, static_argnums=0)
