"""Exports a run as a folder for serving, which needs only jax:

model.stablehlo        uint8 images to probabilities, with the weights inside (`jax.export`)
weights.safetensors    the same weights for jaxcls, as `jaxcls convert` writes them
classes.json           the names of the classes, in the order of the probabilities
config.json            the config of the training, as in the run
README.md              the model card
"""

import contextlib
import csv
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
from jax import Array

from jaxcls.config.decoding import nearest
from jaxcls.config.sizes import describe_size, height_and_width
from jaxcls.data.resize import uncropped
from jaxcls.inference.center_crop_jax import center_crop_jax
from jaxcls.models.weights_info import WeightsInfo
from jaxcls.pretrained.jaxcls_file import write_weights
from jaxcls.pretrained.resolve import run_weights_info
from jaxcls.runs.directory import write_json
from jaxcls.runs.reporter import read_metrics
from jaxcls.runs.restore import RestoredRun, Step, restore_run
from jaxcls.system.errors import UserError
from jaxcls.system.markdown_text import code, plain
from jaxcls.system.paths import RunPath, run_path
from jaxcls.system.version import VERSION
from jaxcls.system.whole_files import replacing_folder
from jaxcls.training.evaluation import predict_logits, probabilities_of
from jaxcls.training.multi_label import THRESHOLD

logger = logging.getLogger("jaxcls")

PLATFORMS = ("cpu", "cuda", "tpu")
_NAMED_CLASSES = 20  # in the card; classes.json has them all


def export_run(
    run: str | Path, output: Path, *, step: Step = "latest", platforms: Sequence[str] = PLATFORMS
) -> int:
    """Writes the whole folder or nothing.

    Args:
      run: the run's directory.
      output: the folder to create; an existing one must be empty.
      step: "latest", "best" (by top-1 during training) or the number of a step.
      platforms: some of `PLATFORMS`.

    Returns:
      The number of the step.

    Raises:
      UserError: there is no such run, step or platform, or the folder cannot be written.
    """
    _require_platforms(platforms)
    _require_empty(output)
    restored = restore_run(run, step=step)
    program = make_program(restored, platforms=platforms)
    info = run_weights_info(restored.info)
    evaluation = _evaluation(run_path(run), restored.step)
    with _whole_folder(output) as folder:
        (folder / "model.stablehlo").write_bytes(program.serialize())
        write_weights(folder / "weights.safetensors", restored.variables, info)
        write_json(folder / "classes.json", restored.info.class_names)
        write_json(folder / "config.json", restored.info.to_json())
        card = model_card(restored, info, evaluation, platforms=platforms)
        (folder / "README.md").write_text(card, encoding="utf-8")
    return restored.step


def make_program(restored: RestoredRun, *, platforms: Sequence[str]) -> jax.export.Exported:
    """Exports what `ImageClassifier.predict` does to decoded images.

    Args:
      restored: the network.
      platforms: some of `PLATFORMS`.

    Returns:
      A program from uint8 [batch, height, width, channels] of any batch and size to float32
      [batch, classes]; the caller compiles it.
    """
    data, loss = restored.info.config.data, restored.info.config.loss.name
    assert data.interpolation != "auto", "a run records a resolved config"
    interpolation, variables = data.interpolation, jax.device_get(restored.variables)

    def predict(images: Array) -> Array:
        images = center_crop_jax(images, data.image_size, data.crop_fraction, interpolation)
        return probabilities_of(predict_logits(restored.model, variables, images), loss=loss)

    shape = jax.export.symbolic_shape(f"batch, height, width, {data.channels}")
    return jax.export.export(jax.jit(predict), platforms=list(dict.fromkeys(platforms)))(
        jax.ShapeDtypeStruct(shape, jnp.uint8)
    )


def model_card(
    restored: RestoredRun,
    info: WeightsInfo,
    evaluation: Mapping[str, float],
    *,
    platforms: Sequence[str],
) -> str:
    """Returns the folder's README.md in Markdown.

    Args:
      restored: the exported run.
      info: the info of its weights.
      evaluation: loss, top1, top5 and perhaps map of the step; empty if it was not evaluated.
      platforms: the platforms of the program.
    """
    config, names = restored.info.config, restored.info.class_names
    data, optimizer = config.data, config.optimizer
    listed = ", ".join(map(plain, names[:_NAMED_CLASSES]))
    classes = listed + (", …" if len(names) > _NAMED_CLASSES else "")
    averaged = f", averaged with a decay of {optimizer.ema_decay}" if optimizer.ema_decay else ""
    length = f"{config.num_steps} steps" if config.num_steps else f"{config.num_epochs:g} epochs"
    started = code(config.model.weights) if config.model.weights else "random values"
    outcome = "Not evaluated at this step; run `jaxcls evaluate`."
    if evaluation:
        outcome = (
            f"On the split {code(data.eval_split)}: {_named_scores(evaluation)}, "
            f"loss {evaluation['loss']:.4f}."
        )
    kind, meaning = "An image classifier", ""
    use = "print(classes[probabilities[0].argmax()], probabilities.max())"
    if data.labels == "multiple":
        kind = "A classifier of images that may have several classes"
        meaning = f"; a class of {THRESHOLD} or more counts as found"
        found = f"[classes[i] for i in np.flatnonzero(probabilities[0] >= {THRESHOLD})]"
        use = f"print({found})"
    channels = data.channels
    pixels = {1: "grey", 3: "RGB", 4: "RGB and alpha"}.get(channels, f"{channels} channels")
    mapped = ""
    if data.value_range is not None:
        low, high = data.value_range
        mapped = (
            f"\n\nImages of more than 8 bits must be mapped to uint8 first, as in the training: "
            f"{low:g} to 0 and {high:g} to 255, rounded and clipped."
        )
    return f"""\
# {plain(info.model)}: {len(names)} classes

{kind}, trained with jaxcls {VERSION}. Its classes: {classes}.

## Use

```sh
pip install jax flatbuffers
```

```python
import json, pathlib, jax, jax.export, numpy as np

program = jax.export.deserialize(bytearray(pathlib.Path("model.stablehlo").read_bytes()))
images = np.zeros((1, 300, 400, {channels}), np.uint8)  # decoded, of one size: {pixels}, upright
probabilities = np.asarray(jax.jit(program.call)(images))  # float32 [1, {len(names)}]
classes = json.loads(pathlib.Path("classes.json").read_text())
{use}
```

`model.stablehlo` runs on {", ".join(dict.fromkeys(platforms))}, with the weights inside. It takes \
uint8 [batch, height, width, {channels}] of any batch and size, and compiles once for each. \
Exported by JAX {jax.__version__}; JAX promises that versions of the next six months read it.

It resizes an image, without stretching it, to the smallest size that covers \
{describe_size(uncropped(info.image_size, info.crop_fraction))} pixels ({info.interpolation}, \
antialiased), cuts {describe_size(height_and_width(info.image_size))} (height x width) out of the \
centre, divides by 255, \
subtracts {_numbers(info.mean)} and divides by {_numbers(info.std)}. The probabilities are the \
{info.activation} of the logits{meaning}.{mapped}

| file | what it holds |
|---|---|
| `model.stablehlo` | the program, for `jax.export` |
| `weights.safetensors` | its weights, for `jaxcls predict`, `evaluate` and `model.weights` |
| `classes.json` | names of the classes, in order |
| `config.json` | the whole config of the training, and versions |

## Evaluation

{outcome}

## Training

| | |
|---|---|
| data | {code(data.source)}, split {code(data.train_split)} |
| images | {pixels} |
| started from | {started} |
| length | {length}, {data.batch_size} images a step; this is step {restored.step} |
| optimizer | {plain(optimizer.name)}, learning rate {optimizer.learning_rate}{averaged} |
| augmentation | {", ".join(type(entry).__name__ for entry in config.augment)} |
| seed | {config.seed} |

## Licence

To be chosen by the publisher; consider the licences of the data and of the initial weights.
"""


def _named_scores(evaluation: Mapping[str, float]) -> str:
    names = {"map": "mAP", "top1": "top-1", "top5": "top-5"}
    return ", ".join(
        f"{text} {evaluation[name]:.2%}" for name, text in names.items() if name in evaluation
    )


def _numbers(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:.6g}" for value in values) + ")"


def _evaluation(run: RunPath, step: int) -> dict[str, float]:
    """Reads the metrics of a step's evaluation during training; empty if there was none."""
    names = ("loss", "top1", "top5", "map")
    found: dict[str, float] = {}
    try:
        for row in read_metrics(run / "metrics.csv"):
            if row["step"] == str(step) and row["eval_top1"]:
                values = {name: row.get(f"eval_{name}") for name in names}
                found = {name: float(value) for name, value in values.items() if value}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, csv.Error) as error:
        logger.warning("README.md has no metrics, because metrics.csv cannot be read: %r", error)
        return {}
    return found


def _require_platforms(platforms: Sequence[str]) -> None:
    for platform in platforms:
        if platform not in PLATFORMS:
            raise UserError(
                f"--platforms: unknown platform {platform!r}{nearest(platform, PLATFORMS)}; "
                f"known: {', '.join(PLATFORMS)}"
            )
    if not platforms:
        raise UserError(f"--platforms: name at least one of {', '.join(PLATFORMS)}")


def _require_empty(folder: Path) -> None:
    try:
        used = next(iter(folder.iterdir()), None) is not None
    except FileNotFoundError:
        return
    except OSError as error:
        message = f"--output: {str(folder)!r}: {error.strerror}; name another folder"
        raise UserError(message) from error
    if used:
        raise UserError(f"--output: folder {str(folder)!r} is not empty; name another folder")


@contextlib.contextmanager
def _whole_folder(path: Path) -> Iterator[Path]:
    """Makes a folder to fill, which appears at `path` only if the block ends without an error.

    Raises:
      UserError: the folder cannot be written.
    """
    target = Path(os.path.realpath(path))
    try:
        with replacing_folder(target) as temporary:
            yield temporary
    except OSError as error:
        raise UserError(f"--output: cannot write {str(path)!r}: {error.strerror}") from error
