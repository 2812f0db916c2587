"""Fills in the fields of a config that its weights or its network decide."""

import dataclasses

from jaxcls.config import Config, ConfigError, check_data, check_stages, is_own_network
from jaxcls.config.sizes import longer_side
from jaxcls.models.normalisation import for_channels
from jaxcls.models.registry import model_spec
from jaxcls.models.weights_info import WeightsInfo, info_of_spec
from jaxcls.pretrained.imagenet import other_imagenet_names
from jaxcls.pretrained.weights import kind_of_weights, weights_info
from jaxcls.runs.directory import RunInfo
from jaxcls.runs.restore import read_run_info
from jaxcls.system.file_names import composed


def info_for(config: Config, *, recorded: RunInfo | None = None) -> WeightsInfo | None:
    """Returns the info of the weights that a config starts from; None without weights.

    Args:
      config: the experiment.
      recorded: the record of the run if it was started before; then the weights themselves are not
        needed any more.

    Raises:
      UserError: there are no such weights, or they cannot be used.
    """
    weights = config.model.weights
    if weights is None:
        return None
    if recorded is not None and recorded.config.model.weights == weights:
        return recorded.weights
    model = None if config.model.name == "auto" else config.model.name
    if kind_of_weights(weights) == "run":
        return run_weights_info(read_run_info(weights))
    return weights_info(
        weights, model=model, options=config.model.options, ema=config.model.weights_ema
    )


def resolve(config: Config, info: WeightsInfo | None = None) -> Config:
    """Returns the config with every field filled in that the weights or the network decide.

    A run records the result, because it can be used without the weights. Resolving it again changes
    nothing.

    Args:
      config: the experiment.
      info: the info of its weights (None: read it from the weights).

    Raises:
      ConfigError: there is no such network, the weights are of another one, a size is too large, or
        the stages of the training do not end at the image size.
      WeightsError: there are no such weights, or they cannot be used.
    """
    model, data = config.model, config.data
    info = info or info_for(config)
    if info is None:
        spec = model_spec(
            model.name, model.options, image_size=data.image_size, channels=data.channels
        )
        info = info_of_spec(spec, options=model.options)
    else:
        if model.name not in ("auto", info.model):
            raise ConfigError(
                f"model.name: {model.name}, but the weights {model.weights!r} are of {info.model}; "
                f'"auto" takes the network of the weights'
            )
        filled = {
            field: getattr(model, field) or for_channels(getattr(info, field), data.channels)
            for field in ("mean", "std")
        }
        if not is_own_network(info.model):
            for field in ("padding", "pooling", "batch_norm_epsilon"):
                filled[field] = getattr(model, field) or getattr(info, field)
        options = {**info.options, **model.options}  # those of the config go first
        model = dataclasses.replace(model, name=info.model, options=options, **filled)
    image_size = data.image_size or info.image_size
    interpolation = info.interpolation if data.interpolation == "auto" else data.interpolation
    data = dataclasses.replace(
        data,
        image_size=image_size,
        canvas_size=data.canvas_size or 2 * longer_side(image_size),
        crop_fraction=data.crop_fraction or info.crop_fraction,
        interpolation=interpolation,
    )
    config = dataclasses.replace(config, model=model, data=data)
    check_data(data)
    check_stages(config)
    return config


def same_classes(ours: tuple[str, ...], theirs: tuple[str, ...]) -> bool:
    """Returns whether two lists have the same classes in the same order.

    ImageNet's classes match by their names and by their WordNet ids.
    """
    known = tuple(map(composed, ours))
    return tuple(map(composed, theirs)) in (known, other_imagenet_names(known))


def run_weights_info(run: RunInfo) -> WeightsInfo:
    """Returns the info of a run's weights."""
    model, data = run.config.model, run.config.data
    assert data.interpolation != "auto", "a run records a resolved config"
    spec = model_spec(model.name, model.options, image_size=data.image_size, channels=data.channels)
    return WeightsInfo(
        model=model.name,
        mean=model.mean or spec.mean,
        std=model.std or spec.std,
        padding=model.padding or spec.padding,
        batch_norm_epsilon=model.batch_norm_epsilon or spec.batch_norm_epsilon,
        pooling=model.pooling or "average",
        activation="softmax" if run.config.loss.name == "softmax" else "sigmoid",
        image_size=data.image_size,
        crop_fraction=data.crop_fraction,
        interpolation=data.interpolation,
        value_range=data.value_range,
        labels=data.labels,
        class_names=run.class_names,
        options=model.options,
        code=run.code,
    )
