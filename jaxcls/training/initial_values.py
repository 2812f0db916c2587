"""Initial values of a network: pretrained weights, a new classifier, the share of each class."""

from typing import Any

from flax import traverse_util

from jaxcls.config import Config, is_own_network
from jaxcls.config.decoding import ConfigError
from jaxcls.data.source import Source
from jaxcls.models.interface import CLASSIFIER, Network, Variables
from jaxcls.models.own_code import warn_of_changed_code
from jaxcls.models.registry import variables_template
from jaxcls.models.weights_info import WeightsError
from jaxcls.pretrained.importing import ImportReport, adapt_stem, import_variables
from jaxcls.pretrained.resolve import same_classes
from jaxcls.pretrained.weights import kind_of_weights, load_weights
from jaxcls.runs.restore import restore_run
from jaxcls.training.class_balance import prior_logits


def make_initial_values(config: Config, model: Network, source: Source) -> tuple[Variables, str]:
    """Loads the values that a config does not leave to chance; returns them and a message.

    The classifier of the weights is kept if it is for the same classes as the training data.

    Args:
      config: the experiment, resolved.
      model: the network of the config, for the classes of the source.
      source: the training data.

    Raises:
      WeightsError: the weights cannot be loaded, or do not fit the network.
    """
    values: Variables = {}
    lines = []
    if config.model.weights is not None:
        values, classes, report = _load(config, model)
        lines.append(f"weights {config.model.weights}: {report}")
        if classes is None or not same_classes(classes, source.class_names):
            values["params"].pop(CLASSIFIER, None)
            lines.append(f"a new classifier of {source.num_classes} classes")
    if config.model.head_prior and CLASSIFIER not in values.get("params", {}):
        template = variables_template(model, image_size=config.data.image_size)["params"]
        if "bias" not in template[CLASSIFIER]:
            raise ConfigError(
                f"model.head_prior: the classifier of {config.model.name} has no bias; leave it out"
            )
        params = values.setdefault("params", {})
        bias = prior_logits(source.class_counts(), loss=config.loss.name)
        params[CLASSIFIER] = {"bias": bias}
        lines.append("the classifier's bias starts at the classes' shares of the training data")
    weights = config.model.weights
    from_run = weights is not None and kind_of_weights(weights) == "run"
    if from_run or is_own_network(config.model.name):  # a file's shapes are checked as it is read
        _require_fit(values, model, config, complete=from_run)
    return values, "\n".join(lines)


def _load(
    config: Config, model: Network
) -> tuple[Variables, tuple[str, ...] | None, ImportReport | str]:
    """Loads the weights of a config: their variables, class names, and a report."""
    weights = config.model.weights
    assert weights is not None
    if kind_of_weights(weights) == "run":
        restored = restore_run(weights)
        values, change = adapt_stem(restored.variables, model.spec.channels)
        report = f"step {restored.step} of the run" + f"\n{change}" * bool(change)
        return values, restored.info.class_names, report
    file, info = load_weights(
        weights,
        model=model.spec.name,
        options=config.model.options,
        ema=config.model.weights_ema,
    )
    warn_of_changed_code(info.model, info.code)
    values, report = import_variables(
        file,
        model.spec,
        num_classes=None,
        allow_missing=config.model.allow_missing,
        allow_unused=config.model.allow_unused,
    )
    return values, info.class_names, report


def _require_fit(values: Variables, model: Network, config: Config, *, complete: bool) -> None:
    """Checks that given variables are among the network's and have the same shapes.

    Args:
      values: the variables.
      model: the network.
      config: the experiment.
      complete: whether only the classifier may be missing.

    Raises:
      WeightsError: the network has no such variable, it has another shape, or one is missing.
    """
    template = variables_template(model, image_size=config.data.image_size)
    wanted: dict[str, Any] = traverse_util.flatten_dict(template, sep="/")
    given: dict[str, Any] = traverse_util.flatten_dict(dict(values), sep="/")
    lacking = [path for path in wanted.keys() - given.keys() if f"/{CLASSIFIER}/" not in path]
    if complete and lacking:
        raise WeightsError(
            f"weights {config.model.weights!r}: they lack {min(lacking)} of the network of the "
            f"config; give the same network and model.options"
        )
    for path, value in given.items():
        shape = wanted[path].shape if path in wanted else None
        if shape != value.shape:
            raise WeightsError(
                f"weights {config.model.weights!r}: {path} has the shape {value.shape}, but the "
                f"network of the config has {shape or 'no such variable'}; give the same network "
                f"and model.options"
            )
