"""Numbers that follow from how many training examples each class has."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxcls.config import Config, ConfigError, LossConfig
from jaxcls.config.decoding import nearest
from jaxcls.system.errors import one_line
from jaxcls.system.json_text import parse_json
from jaxcls.system.paths import local_path

BALANCED = "balanced"


def needs_class_counts(config: Config) -> bool:
    """Whether the loss depends on how many examples each class has."""
    return config.loss.class_weights is not None or config.loss.logit_adjustment > 0


def with_weights_from_file(loss: LossConfig, class_names: Sequence[str]) -> LossConfig:
    """Replaces the file that `class_weights` names, if any, by the weights in it.

    The file is a JSON object of class names and weights; a class that is not in it has 1.

    Raises:
      ConfigError: the file cannot be read, or names a class that does not exist.
    """
    named, field = loss.class_weights, "loss.class_weights"
    if not isinstance(named, str) or named == BALANCED:
        return loss
    try:
        values = parse_json(local_path(named).read_bytes())
    except OSError as error:
        raise ConfigError(
            f"{field}: {named!r} cannot be read ({error.strerror}); give {BALANCED}, one weight "
            f"for each class, or a JSON file of class names and weights"
        ) from error
    except ValueError as error:
        raise ConfigError(f"{field}: {named!r} is not JSON ({one_line(error)})") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{field}: {named!r} must be an object of class names and weights")
    for name, weight in values.items():
        if name not in class_names:
            raise ConfigError(
                f"{field}: {named!r} has {name!r}, which is not a class of the training data"
                f"{nearest(name, class_names)}"
            )
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < 1e9:
            raise ConfigError(
                f"{field}: {named!r} has the weight {weight!r} for {name!r}; a weight is a number "
                f"from 0 up"
            )
    weights = tuple(float(values.get(name, 1)) for name in class_names)
    return dataclasses.replace(loss, class_weights=weights)


def class_weights(loss: LossConfig, class_counts: np.ndarray) -> np.ndarray | None:
    """The weight of each class, whose mean over the labels of the training set is 1.

    Dividing the weighted sum of losses by the batch size is then right on average, and gradient
    accumulation equals the large batch. (Dividing by the sum of a batch's weights, as PyTorch does,
    would not be.)

    Args:
      loss: the loss of the config.
      class_counts: examples of each class in the training set, int [classes].

    Returns:
      float32 [classes]; None if all have the weight 1.

    Raises:
      ConfigError: there are more or fewer weights than classes, or no class with examples has a
        weight above 0.
    """
    given = loss.class_weights
    if given is None:
        return None
    if given == BALANCED:
        weights = 1 / np.maximum(class_counts, 1)
    else:
        assert isinstance(given, tuple), "with_weights_from_file() has read the file"
        weights = np.asarray(given)
        if len(weights) != len(class_counts):
            raise ConfigError(
                f"loss.class_weights: {len(weights)} weights for {len(class_counts)} classes; give "
                f"one for each"
            )
    total = np.sum(weights * class_counts)
    if not total > 0:
        raise ConfigError(
            f"loss.class_weights: no class of the training data has a weight above 0: {given!r}"
        )
    return (weights * np.sum(class_counts) / total).astype(np.float32)


def prior_logits(counts: np.ndarray, *, loss: str) -> np.ndarray:
    """The logits with which a network predicts each class as often as it occurs.

    Args:
      counts: the number of examples of each class; one is added to each, so that no share is 0.
      loss: the name of the loss; all but "softmax" take the classes as independent.

    Returns:
      float32 [classes].
    """
    shares = (counts + 1) / (counts.sum() + len(counts))
    logits = np.log(shares) if loss == "softmax" else np.log(shares) - np.log1p(-shares)
    return logits.astype(np.float32)
