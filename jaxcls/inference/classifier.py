"""A network with all that prediction needs."""

import dataclasses
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcls.config import Config, DataConfig, LossConfig, ModelConfig
from jaxcls.data.images import evaluation_image, whole_image
from jaxcls.data.sources import Source, open_source
from jaxcls.distributed.keys import random_key
from jaxcls.distributed.mesh import copy_to_all, make_mesh
from jaxcls.inference.predict_split import make_predict_step, predict_split, probabilities_of
from jaxcls.inference.report import Evaluation
from jaxcls.models.efficientnet import EfficientNet
from jaxcls.models.registry import Variables, model_from_config, overlay
from jaxcls.models.weights_info import WeightsInfo
from jaxcls.pretrained.class_names import classes_of, with_class_names
from jaxcls.pretrained.imagenet import other_imagenet_names
from jaxcls.pretrained.importing import import_variables
from jaxcls.pretrained.presets import preset
from jaxcls.pretrained.resolve import resolve
from jaxcls.pretrained.weights import kind_of_weights, load_weights, weights_info
from jaxcls.runs.directory import recorded_info
from jaxcls.runs.restore import Step, read_run_info, restore_run
from jaxcls.system.errors import UserError
from jaxcls.system.names import composed
from jaxcls.system.paths import local_path, run_path
from jaxcls.training.evaluation import (
    evaluate_split,
    make_eval_step,
    predict_features,
    predict_logits,
)

type Image = np.ndarray | str | Path
type Images = np.ndarray | Sequence[Image]


class Guess(NamedTuple):
    """A class for an image: its number, its name, and how probable it is."""

    id: int
    name: str
    probability: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageClassifier:
    """A network, its weights, and how images are brought to it.

    Attributes:
      config: of the training that made the weights; for a preset or a file, what is known of it.
      class_names: in the order of the probabilities; empty if the network has no classifier.
      model: the network.
      variables: {"params", "batch_stats"}, the moving averages where the training kept some.
      step: of the run's checkpoint; None for a preset or a file.
    """

    config: Config
    class_names: tuple[str, ...]
    model: EfficientNet
    variables: Variables
    step: int | None = None

    @classmethod
    def load(
        cls,
        name: str | Path,
        *,
        step: Step = "latest",
        ema: bool = True,
        class_names: Sequence[str] | None = None,
    ) -> "ImageClassifier":
        """A run's directory, a preset's name, or a weights file, whichever `name` is.

        Args:
          name: of one of them.
          step: as for `from_run`.
          ema: as for `from_file`.
          class_names: as for `from_file`; a run knows its own.

        Raises:
          UserError: it is none of them, or cannot be used.
        """
        kind = kind_of_weights(str(name))
        if class_names is not None and kind == "run":
            raise UserError("class_names: a run already has its class names; leave the option out")
        if not ema and kind != "file":
            raise UserError(
                f"ema (--no-ema): is about a checkpoint file of another library, and {str(name)!r} "
                f"is a {kind}; leave it out"
            )
        if kind == "run":
            return cls.from_run(name, step=step)
        if step != "latest":
            raise UserError(f"--step: only a run has steps, and {str(name)!r} is a {kind}")
        return cls._from_weights(str(name), ema=ema, class_names=class_names)

    @classmethod
    def from_run(cls, run: str | Path, *, step: Step = "latest") -> "ImageClassifier":
        """Restores a run for prediction; needs nothing but its directory.

        Args:
          run: directory of the run.
          step: "latest", "best" (by top-1 during training) or a step's number.

        Raises:
          UserError: no such run, no good checkpoint, or no such step.
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
        allow_missing: Sequence[str] = (),
        allow_unused: Sequence[str] = (),
        class_names: Sequence[str] | None = None,
    ) -> "ImageClassifier":
        """A published network with its weights, which are fetched if need be.

        Args:
          name: such as "efficientnetv2_b0_imagenet"; `jaxcls.pretrained.presets` lists them.
          num_classes: of the classifier. Where the preset has another number, the classifier is
            new, and tells nothing until it is trained; None keeps the preset's.
          allow_missing, allow_unused, class_names: as for `from_file`.

        Raises:
          WeightsError: no such preset, or its weights cannot be had.
        """
        preset(name)
        return cls._from_weights(
            name,
            num_classes=num_classes,
            allow_missing=allow_missing,
            allow_unused=allow_unused,
            class_names=class_names,
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
        """A network with the weights of a file: safetensors, Keras', or PyTorch's.

        Args:
          path: of the file.
          model: name of the network (None: the one that the file names, or that its tensors fit).
          num_classes: as for `from_preset`.
          allow_missing: regular expressions of variables ("block1a/project_conv/kernel") that the
            file may lack; they start at random.
          allow_unused: regular expressions of tensors (names in the file) that may be left over,
            such as the layers of a foreign head.
          ema: of a training's checkpoint that holds both, take the moving averages of the weights,
            and not the weights themselves.
          class_names: of the classifier, in its order (None: those that the file names, or
            ImageNet's for 1000 of them, or numbers).

        Raises:
          WeightsError: the file cannot be read, or does not fit.
          UserError: there is another number of class names than of classes.
        """
        return cls._from_weights(
            str(path),
            model_name=model,
            num_classes=num_classes,
            allow_missing=allow_missing,
            allow_unused=allow_unused,
            ema=ema,
            class_names=class_names,
        )

    @classmethod
    def _from_weights(
        cls,
        name: str,
        *,
        model_name: str | None = None,
        num_classes: int | None = None,
        allow_missing: Sequence[str] = (),
        allow_unused: Sequence[str] = (),
        ema: bool = True,
        class_names: Sequence[str] | None = None,
    ) -> "ImageClassifier":
        if num_classes is not None and num_classes < 1:
            raise UserError(f"num_classes: must be at least 1, got {num_classes}")
        file, info = load_weights(name, model=model_name, ema=ema)
        config = _config_of(name, info)
        spec = model_from_config(config, num_classes=0).spec
        values, _ = import_variables(
            file,
            spec,
            num_classes=num_classes,
            allow_missing=allow_missing,
            allow_unused=allow_unused,
        )
        count = num_classes or classes_of(values)
        if class_names is not None:
            info = with_class_names(info, class_names, count, name=name)
        model = model_from_config(config, num_classes=count)
        images = jnp.zeros((1, spec.image_size, spec.image_size, 3))
        return cls(
            config=config,
            class_names=class_names_for(info.class_names, count),
            model=model,
            variables=jax.jit(lambda given: overlay(model.init(random_key(0), images), given))(
                values
            ),
        )

    def with_max_pixels(self, max_pixels: int | None) -> "ImageClassifier":
        """The same, but image files of more pixels are refused (`data.max_pixels`)."""
        data = dataclasses.replace(self.config.data, max_pixels=max_pixels)
        return dataclasses.replace(self, config=dataclasses.replace(self.config, data=data))

    def predict(
        self, images: Images, *, batch_size: int = 32, broken: dict[int, str] | None = None
    ) -> np.ndarray:
        """Probabilities of every class.

        Args:
          images: uint8 [N, height, width, 3], or a sequence of uint8 [height, width, 3] of any
            sizes, or of paths of image files. Grey images may lack the last axis, or have 1 there.
          batch_size: images that go to the device at once, at most.
          broken: if given, a file that cannot be read or decoded does not end the prediction: this
            gets its place in `images` and what is wrong with it, and its row is not a number.

        Returns:
          float32 [N, classes]; each row sums to 1, or with the sigmoid loss each entry stands for
          itself.

        Raises:
          UserError: without `broken`, an image cannot be read, and the message names it; or the
            network has no classifier.
        """
        self._require_classifier()
        logits = self._apply(
            images, _jitted_logits, batch_size, width=len(self.class_names), broken=broken
        )
        return np.asarray(probabilities_of(jnp.asarray(logits), loss=self.config.loss.name))

    def features(
        self, images: Images, *, batch_size: int = 32, broken: dict[int, str] | None = None
    ) -> np.ndarray:
        """The pooled features that the classifier sees.

        Args:
          images: as for `predict`.
          batch_size: images that go to the device at once, at most.
          broken: as for `predict`.

        Returns:
          float32 [N, features].

        Raises:
          UserError: without `broken`, an image cannot be read; the message names it.
        """
        width = self.model.spec.head_filters
        return self._apply(images, _jitted_features, batch_size, width=width, broken=broken)

    def evaluate(
        self, data: DataConfig | None = None, *, split: str | None = None
    ) -> dict[str, float]:
        """Loss and accuracy over a split of labelled images.

        Args:
          data: where they are and how they are brought to the network (None: `config.data`, for a
            run the data that it was trained on). Other data have classes that the network knows by
            their names, or by their WordNet ids where those are ImageNet's.
          split: TFDS split syntax (None: `data.eval_split`).

        Returns:
          loss (without label smoothing), top1 and top5 (shares), num_examples, and a run's step.

        Raises:
          UserError: the data cannot be read, or has classes that the network does not know, or the
            loss is not finite.
        """
        source, data, class_map = self._open(data, split)
        if unknown := self._unknown(source, class_map):
            raise UserError(unknown)
        mesh = make_mesh()
        eval_step = make_eval_step(self.model, loss=self.config.loss.name, mesh=mesh)
        variables = copy_to_all(self.variables, mesh)
        metrics = evaluate_split(eval_step, variables, source, data, mesh=mesh, class_map=class_map)
        self._require_finite(metrics, source)
        return metrics | self._step()

    def examine(
        self, data: DataConfig | None = None, *, split: str | None = None, top: int = 5
    ) -> Evaluation:
        """Evaluates a split, and keeps what the network says to each of its examples.

        Args:
          data: as for `evaluate`, but it may have classes that the network does not know.
          split: as for `evaluate`.
          top: classes to keep for each example.

        Returns:
          The metrics of `evaluate`, the predictions, and from them a table of the classes, the
          confusion matrix and a CSV file. Where the network does not know each class of the data,
          those have numbers after its own, and the metrics are only num_examples.

        Raises:
          UserError: the data cannot be read, or the loss is not finite.
        """
        source, data, class_map = self._open(data, split)
        mesh = make_mesh()
        step = make_predict_step(self.model, loss=self.config.loss.name, mesh=mesh, top=top)
        variables = copy_to_all(self.variables, mesh)
        metrics, predictions = predict_split(
            step, variables, source, data, mesh=mesh, class_map=class_map
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

    def _open(
        self, data: DataConfig | None, split: str | None
    ) -> tuple[Source, DataConfig, list[int] | None]:
        """A split, and the network's number for each of its classes (None: they are the same)."""
        self._require_classifier()
        data = data or self.config.data
        if not data.source:
            raise UserError(
                f"data.source: say what {self.config.model.weights!r} is to be evaluated on, for "
                f"example --data.source folder:photos"
            )
        source = open_source(data, split or data.eval_split, field="--split" if split else None)
        if source.class_names == self.class_names:
            return source, data, None
        return source, data, match_classes(source.class_names, self.class_names)

    def _unknown(self, source: Source, class_map: list[int] | None) -> str:
        """A sentence if the data have classes that the network does not know; else nothing."""
        missing = [
            name
            for name, number in zip(source.class_names, class_map or (), strict=False)
            if number >= len(self.class_names)
        ]
        if not missing:
            return ""
        nameless = self.class_names == class_names_for(None, len(self.class_names))
        named = "; the weights do not name theirs; --class-names FILE does" if nameless else ""
        return (
            f"data.source: the network does not know {len(missing)} of the {source.num_classes} "
            f"classes of {source.name} "
            f"({textwrap.shorten(', '.join(missing), 100, placeholder=' …')}){named}; "
            f"fine-tune it on them, or write predictions without a score: --predictions FILE.csv"
        )

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

    def _apply(
        self,
        images: Images,
        function: Callable[[EfficientNet, Variables, jax.Array], jax.Array],
        batch_size: int,
        *,
        width: int,
        broken: dict[int, str] | None,
    ) -> np.ndarray:
        """Maps images batch by batch; float32 [N, width], not a number where one is broken."""
        if batch_size < 1:
            raise UserError(f"batch_size: must be at least 1, got {batch_size}")
        if isinstance(images, str | Path) or (isinstance(images, np.ndarray) and images.ndim != 4):
            raise UserError(
                "images: expected uint8 [N, height, width, 3] or a list of images; put a single "
                "image in a list"
            )
        size = min(batch_size, len(images))
        rows = np.full((len(images), width), np.nan, np.float32)
        for start in range(0, len(images), batch_size):
            chunk: dict[int, np.ndarray] = {}
            for index in range(start, min(start + batch_size, len(images))):
                image = self._read(images[index], index, broken)
                if image is not None:
                    chunk[index] = self._prepare(image)
            if not chunk:
                continue
            prepared = list(chunk.values())
            padding = [np.zeros_like(prepared[0])] * (size - len(chunk))  # one shape, one compile
            batch = jnp.asarray(np.stack(prepared + padding))
            result = np.asarray(function(self.model, self.variables, batch))
            rows[list(chunk)] = result[: len(chunk)]
        return rows

    def _read(self, image: Image, index: int, broken: dict[int, str] | None) -> np.ndarray | None:
        """An image's pixels; None if its file cannot be read, which `broken` then notes.

        Raises:
          UserError: it cannot be read, and there is nothing to note it in.
        """
        if isinstance(image, np.ndarray):
            return image
        try:
            return read_image(local_path(image), self.config.data)
        except UserError as error:
            if broken is None:
                raise
            broken[index] = str(error)
            return None

    def _prepare(self, image: np.ndarray) -> np.ndarray:
        data = self.config.data
        shape = list(image.shape)
        if image.ndim == 2:
            image = image[:, :, None]
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
            raise UserError(
                f"images: expected uint8 [height, width, 3], or grey [height, width], got "
                f"{image.dtype} {shape}"
            )
        if image.shape[2] == 1:
            image = np.repeat(image, 3, axis=2)
        return evaluation_image(image, data)


def data_of(name: str) -> DataConfig:
    """The data that a run is evaluated on, or for a preset or a file the preprocessing alone.

    Without `stage_image_sizes`, which are about training: evaluation may be at any size.

    Raises:
      UserError: there is no such run, preset or file.
    """
    if kind_of_weights(name) == "run":
        info = recorded_info(run_path(name)) or read_run_info(name)
        return dataclasses.replace(info.config.data, stage_image_sizes=())
    return _config_of(name, weights_info(name)).data


def _config_of(name: str, info: WeightsInfo) -> Config:
    """What is known of the training that made a preset's or a file's weights."""
    return resolve(
        Config(
            model=ModelConfig(name=info.model, weights=name),
            data=DataConfig(
                source="", image_size=0, canvas_size=0, crop_fraction=0, interpolation="auto"
            ),
            loss=LossConfig(name=info.activation),
            num_steps=1,
        ),
        info,
    )


_jitted_logits = jax.jit(predict_logits, static_argnums=0)
_jitted_features = jax.jit(predict_features, static_argnums=0)


def class_names_for(names: tuple[str, ...] | None, num_classes: int) -> tuple[str, ...]:
    """Names for the classes of a classifier; numbers where none are known for as many."""
    if names is not None and len(names) == num_classes:
        return names
    return tuple(f"class {number}" for number in range(num_classes))


def match_classes(theirs: Sequence[str], ours: Sequence[str]) -> list[int]:
    """Our number of each of their classes; those that we do not have get numbers after ours.

    ImageNet's classes may go by their names or their WordNet ids. In what form Unicode's characters
    are stored does not matter.
    """
    aliases = other_imagenet_names(tuple(ours)) or ()
    numbers = {
        composed(name): number for known in (aliases, ours) for number, name in enumerate(known)
    }
    return [numbers.get(composed(name), len(ours) + index) for index, name in enumerate(theirs)]


def read_image(path: Path, data: DataConfig | None = None) -> np.ndarray:
    """Reads an image file for prediction.

    Args:
      path: of the file.
      data: `background` and `max_pixels` are used (None: their defaults).

    Returns:
      uint8 [height, width, 3], as `whole_image` has it.

    Raises:
      UserError: there is no such file, or it cannot be decoded.
    """
    try:
        encoded = path.read_bytes()
    except OSError as error:
        raise UserError(f"image {str(path)!r} cannot be read: {error.strerror}") from error
    return whole_image(encoded, data or DataConfig(), where=f"image {str(path)!r}")
