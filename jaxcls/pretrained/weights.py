"""Weights by name: a preset, a file, or a run (whose checkpoint is read elsewhere)."""

import dataclasses
from typing import Literal

from jaxcls.config.decoding import nearest
from jaxcls.models.registry import model_spec
from jaxcls.models.weights_info import WeightsError, WeightsInfo
from jaxcls.pretrained.families import find_family
from jaxcls.pretrained.files import WeightsFile, read_weights
from jaxcls.pretrained.hub import fetch_weights
from jaxcls.pretrained.imagenet import imagenet_class_names
from jaxcls.pretrained.importing import count_classes, fitting_models, nearest_model
from jaxcls.pretrained.jaxcls_file import stored_info
from jaxcls.pretrained.presets import find_preset, preset_names
from jaxcls.pretrained.torch import torchvision_release
from jaxcls.system.paths import is_url, local_path


def kind_of_weights(name: str) -> Literal["preset", "file", "run"]:
    """What a name stands for. A preset comes first, and a folder or a URL is a run.

    Raises:
      WeightsError: there is nothing of that name.
    """
    if find_preset(name):
        return "preset"
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


def weights_info(name: str, *, model: str | None = None, ema: bool = True) -> WeightsInfo:
    """The network and the preprocessing that belong to weights. Fetches nothing.

    Args and raises as `load_weights`.
    """
    if preset := find_preset(name):
        return _require_model(name, preset.info, model)
    return load_weights(name, model=model, ema=ema)[1]


def load_weights(
    name: str, *, model: str | None = None, ema: bool = True
) -> tuple[WeightsFile, WeightsInfo]:
    """The tensors of a preset, which is fetched if need be, or of a file, and what belongs to them.

    Args:
      name: a preset or a file.
      model: name of the network that the caller wants; None: whichever the weights are for.
      ema: which weights to take from a file that has two (see `read_weights`).

    Raises:
      WeightsError: no such weights, or they cannot be fetched or read, or are of another network.
    """
    if preset := find_preset(name):
        info = _require_model(name, preset.info, model)  # before anything is fetched
        return read_weights(fetch_weights(preset)), info
    file = read_weights(name, ema=ema)
    info, notes = _file_info(file, model=model)
    _require_model(name, info, model)
    return dataclasses.replace(file, notes=file.notes + notes), info


def _require_model(name: str, info: WeightsInfo, model: str | None) -> WeightsInfo:
    if model not in (None, info.model):
        raise WeightsError(f"weights {name!r} are of {info.model}, not of {model}")
    return info


def file_info(file: WeightsFile, *, model: str | None = None) -> WeightsInfo:
    """What a file says of itself, or what its naming and the network's name imply.

    The classes of another library's file with 1000 of them are taken for ImageNet's.

    Args:
      file: what `read_weights` gave.
      model: name of the network; None: the one that the tensors fit, or come closest to.

    Raises:
      WeightsError: the tensors fit several networks.
    """
    return _file_info(file, model=model)[0]


def _file_info(file: WeightsFile, *, model: str | None) -> tuple[WeightsInfo, tuple[str, ...]]:
    """`file_info`, and sentences on what of it is not sure."""
    if info := stored_info(file):
        return info, ()
    if model is None:
        fitting = fitting_models(file)
        if len(fitting) > 1:
            raise WeightsError(
                f"{file.path}: its tensors fit {' and '.join(fitting)}; name the network"
            )
        model = fitting[0] if fitting else nearest_model(file)  # the import says what is wrong
    spec, names = model_spec(model), imagenet_class_names()
    family, note = find_family(file.tensors), None
    info = family.info(spec, file.tensors)
    if family.name == "torchvision":
        info, note = torchvision_release(info, file.path)
    known = names if count_classes(file, spec) == len(names) else None
    return dataclasses.replace(info, class_names=known), (note,) if note else ()
