"""The naming conventions of weights files, one `Family` for each library."""

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from jaxcls.models.efficientnet import ModelSpec
from jaxcls.models.interface import NetworkSpec
from jaxcls.models.resnet import ResNetSpec
from jaxcls.models.weights_info import WeightsError, WeightsInfo, info_of_spec
from jaxcls.pretrained import keras_names, resnet_names, torch_names
from jaxcls.pretrained.variables import variable_names


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """The names and layout that one library uses for the variables of a kind of network.

    Attributes:
      name: the name of the library.
      telltale: a regular expression for a whole tensor name; a file with a match is of this family.
      separator: the end of the prefixes that wrappers add to tensor names; empty if this library's
        names contain the groups around a network anyway.
      head: a regular expression for whole names of tensors of another head, without which the
        classifier does not work.
      names: (spec, the file's tensor names) -> for each of jaxcls's variables
        ("params/stem_conv/kernel", collection first), the classifier's included, the tensor's name.
        A variable that such a file cannot have may be left out.
      convert: (variable, tensor) -> the tensor in jaxcls's layout, with the same values.
      ignored: a regular expression for whole names of tensors that are not weights.
      info: (spec, the file's tensors) -> the preprocessing and settings that the library's weights
        expect if the file does not say more.
      spec_type: the kind of network; its specs are the first argument of `names` and `info`.
    """

    name: str
    telltale: str
    separator: str = "."
    head: str
    names: Callable[[Any, Collection[str]], dict[str, str]]
    convert: Callable[[str, np.ndarray], np.ndarray]
    ignored: str
    info: Callable[[Any, Mapping[str, np.ndarray]], WeightsInfo]
    spec_type: type[NetworkSpec] = ModelSpec


def _own_names(spec: NetworkSpec, tensors: Collection[str]) -> dict[str, str]:
    del tensors
    return {path: path for path in variable_names(spec)}


def _of_network(
    info: Callable[[Any], WeightsInfo],
) -> Callable[[Any, Mapping[str, np.ndarray]], WeightsInfo]:
    """Makes an `info` that does not depend on the tensors."""
    return lambda spec, tensors: info(spec)


FAMILIES = (
    Family(
        name="jaxcls",
        telltale=r"(?:params|batch_stats)/.+",
        separator="/",
        head=r"(?:params|batch_stats)/(?:classifier|head(?!_)).*",
        names=_own_names,
        convert=lambda path, tensor: tensor,
        ignored="",
        info=_of_network(info_of_spec),
        spec_type=NetworkSpec,
    ),
    Family(
        name="timm",
        telltale=r"conv_stem\.weight",
        head=r"classifier\..*",
        names=torch_names.timm_names,
        convert=torch_names.convert,
        ignored=torch_names.IGNORED,
        info=_of_network(torch_names.timm_info),
    ),
    Family(
        name="torchvision",
        telltale=r"features\.0\.0\.weight",
        head=r"classifier\..*",
        names=torch_names.torchvision_names,
        convert=torch_names.convert,
        ignored=torch_names.IGNORED,
        info=_of_network(torch_names.torchvision_info),
    ),
    Family(
        name="efficientnet-lite",
        telltale=r"_conv_stem\.weight",
        head=r"_fc\..*",
        names=torch_names.lite_names,
        convert=torch_names.convert,
        ignored=torch_names.IGNORED,
        info=_of_network(torch_names.lite_info),
    ),
    Family(
        name="resnet",
        telltale=r"layer1\.0\.conv1\.weight",
        head=r"fc\..*",
        names=resnet_names.resnet_names,
        convert=torch_names.convert,
        ignored=torch_names.IGNORED,
        info=_of_network(resnet_names.resnet_info),
        spec_type=ResNetSpec,
    ),
    Family(
        name="keras",
        telltale=keras_names.KERAS,
        separator="",
        head=keras_names.HEAD,
        names=keras_names.keras_names,
        convert=keras_names.convert,
        ignored=keras_names.IGNORED,
        info=keras_names.keras_info,
    ),
    Family(
        name="keras_cv",
        telltale=keras_names.KERAS_CV,
        separator="",
        head=keras_names.HEAD,
        names=keras_names.keras_cv_names,
        convert=keras_names.convert,
        ignored=keras_names.IGNORED,
        info=keras_names.keras_cv_info,
    ),
    Family(
        name="keras_hub",
        telltale=keras_names.KERAS_HUB,
        separator="",
        head=keras_names.HEAD,
        names=keras_names.keras_hub_names,
        convert=keras_names.convert,
        ignored=keras_names.IGNORED,
        info=keras_names.keras_hub_info,
    ),
)


def find_family(names: Collection[str]) -> Family:
    """Returns the family of a file with tensors of these names.

    Raises:
      WeightsError: there is none; the message lists the known families and the first names.
    """
    for family in FAMILIES:
        if any(re.fullmatch(family.telltale, name) for name in names):
            return family
    known = ", ".join(family.name for family in FAMILIES)
    found = ", ".join(list(names)[:5]) or "none"
    raise WeightsError(
        f"its tensors are not named as a known network's in any of {known}; "
        f"the first names in the file: {found}"
    )
