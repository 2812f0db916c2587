"""The parts of a classifier, opened from the weights of a preset or a file."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxcls.config import Config, DataConfig, LossConfig, ModelConfig
from jaxcls.config.sizes import height_and_width
from jaxcls.distributed.random_keys import random_key
from jaxcls.inference.class_matching import class_names_for
from jaxcls.models.interface import Network, Variables
from jaxcls.models.own_code import warn_of_changed_code
from jaxcls.models.registry import model_from_config, overlay
from jaxcls.models.weights_info import WeightsInfo
from jaxcls.pretrained.class_names import num_classes_of, with_class_names
from jaxcls.pretrained.importing import import_variables
from jaxcls.pretrained.resolve import resolve
from jaxcls.pretrained.weights import kind_of_weights, load_weights, weights_info
from jaxcls.runs.directory import recorded_info
from jaxcls.runs.restore import read_run_info
from jaxcls.system.errors import UserError
from jaxcls.system.paths import run_path


def open_weights(
    name: str,
    *,
    model_name: str | None = None,
    num_classes: int | None = None,
    allow_missing: Sequence[str] = (),
    allow_unused: Sequence[str] = (),
    ema: bool = True,
    class_names: Sequence[str] | None = None,
) -> tuple[Config, tuple[str, ...], Network, Variables]:
    """Returns the config, class names, network and variables of a preset or a weights file.

    Args and raises as `ImageClassifier.from_file`.
    """
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
    count = num_classes or num_classes_of(values)
    if class_names is not None:
        info = with_class_names(info, class_names, count, name=name)
    model = model_from_config(config, num_classes=count)
    warn_of_changed_code(info.model, info.code)
    images = jnp.zeros((1, *height_and_width(spec.image_size), spec.channels))
    # Variables that the file does not have keep their random initial values.
    fill = jax.jit(lambda values: overlay(model.init(random_key(0), images), values))
    return config, class_names_for(info.class_names, count), model, fill(values)


def data_of(name: str) -> DataConfig:
    """Returns the data that a run is evaluated on, or the preprocessing of a preset or a file.

    Without `stage_image_sizes`, which concern training: evaluation may use any image size.

    Raises:
      UserError: there is no such run, preset or file.
    """
    if kind_of_weights(name) == "run":
        info = recorded_info(run_path(name)) or read_run_info(name)
        return dataclasses.replace(info.config.data, stage_image_sizes=())
    return _config_of(name, weights_info(name)).data


def _config_of(name: str, info: WeightsInfo) -> Config:
    """Returns what is known of the training that made the weights of a preset or a file."""
    return resolve(
        Config(
            model=ModelConfig(name=info.model, options=info.options, weights=name),
            data=DataConfig(
                source="",
                image_size=0,
                canvas_size=0,
                channels=info.channels,
                value_range=info.value_range,
                labels=info.labels,
                crop_fraction=0,
                interpolation="auto",
            ),
            loss=LossConfig(name=info.activation),
            num_steps=1,
        ),
        info,
    )
