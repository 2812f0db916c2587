"""What training starts from: the fields that weights decide, and the first values of variables.

Weights are a preset, a file, or a run.
"""

import dataclasses

import numpy as np

from jaxcls.config import Config, ConfigError, check_data, check_stages
from jaxcls.data.records import Source
from jaxcls.data.sources import open_source
from jaxcls.models.efficientnet import EfficientNet
from jaxcls.models.registry import model_spec
from jaxcls.names import composed
from jaxcls.paths import RunPath
from jaxcls.pretrained.imagenet import other_imagenet_names
from jaxcls.pretrained.importing import Report, import_variables
from jaxcls.pretrained.info import WeightsInfo, info_of_spec
from jaxcls.pretrained.weights import kind_of_weights, load_weights, weights_info
from jaxcls.rundir import RunInfo, recorded_info
from jaxcls.training.restore import read_run_info, restore_run
from jaxcls.training.state import Variables


def open_experiment(config: Config, run: RunPath) -> tuple[RunInfo, Source, Source]:
    """What a training in `run` works on: its record, with the config resolved, and its two splits.

    Raises:
      UserError: the run's record is damaged, or the network, the weights or the data of the config
        cannot be used.
    """
    weights = info_for(config, recorded=recorded_info(run))
    config = resolve(config, weights)
    source = open_source(config.data, config.data.train_split)
    eval_source = open_source(config.data, config.data.eval_split)
    info = RunInfo(
        config=config,
        class_names=source.class_names,
        data=source.identity,
        weights=weights and dataclasses.replace(weights, class_names=None),
    )
    return info, source, eval_source


def info_for(config: Config, *, recorded: RunInfo | None = None) -> WeightsInfo | None:
    """What belongs to the weights that a config starts from; None if it starts from none.

    Args:
      config: the experiment.
      recorded: of the run, if it was started before; then the weights need not be there any more.

    Raises:
      UserError: no such weights, or they cannot be used.
    """
    weights = config.model.weights
    if weights is None:
        return None
    if recorded is not None and recorded.config.model.weights == weights:
        return recorded.weights
    model = None if config.model.name == "auto" else config.model.name
    if kind_of_weights(weights) == "run":
        return run_weights_info(read_run_info(weights))
    return weights_info(weights, model=model, ema=config.model.weights_ema)


def resolve(config: Config, info: WeightsInfo | None = None) -> Config:
    """The config with every field filled in that was left to the weights or the network.

    What it returns needs no weights to be understood, so a run keeps that. Resolving it again
    changes nothing.

    Args:
      config: the experiment.
      info: of its weights (None: they are looked up).

    Raises:
      ConfigError: no such network, the weights are of another one, sizes beyond any memory, or the
        stages of the training do not end at the image size.
      WeightsError: no such weights, or they cannot be used.
    """
    model, data = config.model, config.data
    info = info or info_for(config)
    if info is None:
        info = info_of_spec(model_spec(model.name))
    else:
        if model.name not in ("auto", info.model):
            raise ConfigError(
                f"model.name: {model.name}, but the weights {model.weights!r} are of {info.model}; "
                f'"auto" takes the network of the weights'
            )
        model = dataclasses.replace(
            model,
            name=info.model,
            padding=model.padding or info.padding,
            pooling=model.pooling or info.pooling,
            mean=model.mean or info.mean,
            std=model.std or info.std,
            batch_norm_epsilon=model.batch_norm_epsilon or info.batch_norm_epsilon,
        )
    image_size = data.image_size or info.image_size
    interpolation = info.interpolation if data.interpolation == "auto" else data.interpolation
    data = dataclasses.replace(
        data,
        image_size=image_size,
        canvas_size=data.canvas_size or 2 * image_size,
        crop_fraction=data.crop_fraction or info.crop_fraction,
        interpolation=interpolation,
    )
    config = dataclasses.replace(config, model=model, data=data)
    check_data(data)
    check_stages(config)
    return config


def first_values(config: Config, model: EfficientNet, source: Source) -> tuple[Variables, str]:
    """The variables that do not start at random, and what is to be said of them.

    The classifier of the weights is kept where it tells the same classes apart.

    Args:
      config: resolved.
      model: of the config, for the source's classes.
      source: the training data.

    Raises:
      WeightsError: the weights cannot be had, or do not fit.
    """
    values: Variables = {}
    lines = []
    if config.model.weights is not None:
        values, classes, report = _load(config, model)
        lines.append(f"weights {config.model.weights}: {report}")
        if classes is None or not same_classes(classes, source.class_names):
            values["params"].pop("classifier", None)
            lines.append(f"a new classifier of {source.num_classes} classes")
    if config.model.head_prior and "classifier" not in values.get("params", {}):
        params = values.setdefault("params", {})
        bias = prior_logits(source.class_counts(), loss=config.loss.name)
        params["classifier"] = {"bias": bias}
        lines.append("the classifier's bias starts at the classes' shares of the training data")
    return values, "\n".join(lines)


def same_classes(ours: tuple[str, ...], theirs: tuple[str, ...]) -> bool:
    """Whether two lists name the same classes in the same order.

    ImageNet's may go by their names or their WordNet ids.
    """
    known = tuple(map(composed, ours))
    return tuple(map(composed, theirs)) in (known, other_imagenet_names(known))


def prior_logits(counts: np.ndarray, *, loss: str) -> np.ndarray:
    """Logits that predict each class' share of the examples.

    Args:
      counts: examples a class; one more is counted of each, so that none has a share of 0.
      loss: "softmax", or "sigmoid" for independent classes.

    Returns:
      float32 [classes].
    """
    shares = (counts + 1) / (counts.sum() + len(counts))
    logits = np.log(shares) if loss == "softmax" else np.log(shares) - np.log1p(-shares)
    return logits.astype(np.float32)


def run_weights_info(run: RunInfo) -> WeightsInfo:
    """What belongs to the weights of a run."""
    model, data = run.config.model, run.config.data
    assert data.interpolation != "auto", "a run keeps a resolved config"
    spec = model_spec(model.name)
    return WeightsInfo(
        model=model.name,
        mean=model.mean or spec.mean,
        std=model.std or spec.std,
        padding=model.padding or spec.padding,
        batch_norm_epsilon=model.batch_norm_epsilon or spec.batch_norm_epsilon,
        pooling=model.pooling or "average",
        activation=run.config.loss.name,
        image_size=data.image_size,
        crop_fraction=data.crop_fraction,
        interpolation=data.interpolation,
        class_names=run.class_names,
    )


def _load(
    config: Config, model: EfficientNet
) -> tuple[Variables, tuple[str, ...] | None, Report | str]:
    """The variables of the weights, their class names, and a report."""
    weights = config.model.weights
    assert weights is not None
    if kind_of_weights(weights) == "run":
        restored = restore_run(weights)
        return restored.variables, restored.info.class_names, f"step {restored.step} of the run"
    file, info = load_weights(weights, model=model.spec.name, ema=config.model.weights_ema)
    values, report = import_variables(
        file,
        model.spec,
        num_classes=None,
        allow_missing=config.model.allow_missing,
        allow_unused=config.model.allow_unused,
    )
    return values, info.class_names, report
