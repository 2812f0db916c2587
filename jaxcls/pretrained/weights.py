"""Finds weights by name: a preset, a repository on the Hub, a file, or a run.

A run's checkpoint is read by `runs.restore`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from jaxcls.config.decoding import nearest
from jaxcls.models.normalisation import for_channels
from jaxcls.models.registry import model_spec
from jaxcls.models.weights_info import WeightsError, WeightsInfo
from jaxcls.pretrained.files import WeightsFile, read_weights
from jaxcls.pretrained.hub import fetch_weights
from jaxcls.pretrained.imagenet import imagenet_class_names
from jaxcls.pretrained.importing import (
    count_channels,
    count_classes,
    family_for,
    fitting_models,
    nearest_model,
)
from jaxcls.pretrained.jaxcls_file import stored_info
from jaxcls.pretrained.presets import find_preset, preset_names
from jaxcls.pretrained.repository import (
    Repository,
    fetch_repository_weights,
    is_repository,
    open_repository,
)
from jaxcls.pretrained.torch_names import torchvision_release
from jaxcls.system.paths import is_url, local_path


def kind_of_weights(name: str) -> Literal["preset", "repository", "file", "run"]:
    """Returns what a name means.

    It is a preset if there is one, a repository with hf:, a run for a folder or URL, or a file.

    Raises:
      WeightsError: nothing has this name.
    """
    if find_preset(name):
        return "preset"
    if is_repository(name):
        return "repository"
    if is_url(name):
        return "run"
    try:
        path = local_path(name)
        if path.is_dir():
            return "run"
        exists = path.exists()
    except OSError as error:
        raise WeightsError(f"weights {name[:80]!r}: {error.strerror}") from error
    if not exists:
        known = nearest(name, preset_names())
        raise WeightsError(f"weights {name!r}: no such run, preset or weights file{known}")
    return "file"


def weights_info(
    name: str,
    *,
    model: str | None = None,
    options: Mapping[str, Any] | None = None,
    ema: bool = True,
) -> WeightsInfo:
    """Returns the network and preprocessing of weights, without downloading the weights.

    Of a repository, only the config.json is downloaded.

    Args and raises as `load_weights`.
    """
    if preset := find_preset(name):
        return _require_model(name, preset.info, model)
    if is_repository(name):
        return _require_model(name, open_repository(name).info, model)
    return load_weights(name, model=model, options=options, ema=ema)[1]


def load_weights(
    name: str,
    *,
    model: str | None = None,
    options: Mapping[str, Any] | None = None,
    ema: bool = True,
) -> tuple[WeightsFile, WeightsInfo]:
    """Returns the tensors and the info of weights, which are downloaded if needed.

    Args:
      name: a preset, a repository or a file.
      model: the name of the network (None: the network of the weights).
      options: the keyword arguments of its factory, for a network of the user's.
      ema: whether to take the moving averages from a file with both (see `read_weights`).

    Raises:
      WeightsError: there are no such weights, they cannot be fetched or read, or they are of
        another network.
    """
    if preset := find_preset(name):
        info = _require_model(name, preset.info, model)  # before anything is fetched
        return read_weights(fetch_weights(preset)), info
    if is_repository(name):
        return _load_repository(open_repository(name), model=model, ema=ema)
    file = read_weights(name, ema=ema)
    info, notes = file_info(file, model=model, options=options)
    _require_model(name, info, model)
    return dataclasses.replace(file, notes=file.notes + notes), info


def _load_repository(
    repository: Repository, *, model: str | None, ema: bool
) -> tuple[WeightsFile, WeightsInfo]:
    info = _require_model(repository.name, repository.info, model)  # before the weights are fetched
    file = read_weights(fetch_repository_weights(repository), ema=ema)
    count = count_classes(file, model_spec(info.model))
    if count and repository.num_classes not in (None, count):
        raise WeightsError(
            f"{repository.name}: its config.json has {repository.num_classes} classes, but the "
            f"classifier in {file.path.name} has {count}; download the file, and give it instead"
        )
    return dataclasses.replace(file, notes=file.notes + repository.notes), info


def _require_model(name: str, info: WeightsInfo, model: str | None) -> WeightsInfo:
    if model not in (None, info.model):
        raise WeightsError(f"weights {name!r} are of {info.model}, not of {model}")
    return info


def file_info(
    file: WeightsFile, *, model: str | None = None, options: Mapping[str, Any] | None = None
) -> tuple[WeightsInfo, tuple[str, ...]]:
    """Returns the info in a file, or what its tensors' names imply, and notes on what is unsure.

    If another library's file has 1000 classes, they are assumed to be ImageNet's.

    Args:
      file: what `read_weights` returned.
      model: the name of the network (None: the one that the tensors fit, or fit best).
      options: as for `load_weights`.

    Raises:
      WeightsError: the tensors fit several networks, or another kind of network than `model`.
    """
    if info := stored_info(file):
        return info, ()
    if model is None:
        fitting = fitting_models(file)
        if len(fitting) > 1:
            raise WeightsError(
                f"{file.path}: its tensors fit {' and '.join(fitting)}; name the network"
            )
        model = fitting[0] if fitting else nearest_model(file)  # the import reports what is wrong
    spec, names = model_spec(model, options), imagenet_class_names()
    family, note = family_for(file, spec), None
    info = family.info(spec, file.tensors)
    if family.name == "torchvision":
        info, note = torchvision_release(info, file.path)
    known = names if count_classes(file, spec) == len(names) else None
    channels = count_channels(file, spec)
    info = dataclasses.replace(
        info,
        mean=for_channels(info.mean, channels),
        std=for_channels(info.std, channels),
        class_names=known,
        options=dict(options or {}),
    )
    return info, (note,) if note else ()
