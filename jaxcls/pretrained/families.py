"""The naming conventions of weight files, one `Family` each."""

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping

import numpy as np

from jaxcls.models.efficientnet import ModelSpec
from jaxcls.models.weights_info import WeightsError, WeightsInfo, info_of_spec
from jaxcls.pretrained import keras, torch
from jaxcls.pretrained.variables import variable_shapes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """How one library names and lays out the variables of an EfficientNet.

    Attributes:
      name: of the library.
      telltale: regular expression of a tensor's whole name; a file that has one is of this family.
      separator: what ends each name that a wrapper puts before a tensor's; empty where the names
        have the groups around a network anyway.
      head: regular expression of the whole names of tensors beside which the classifier cannot be
        one by itself: other layers of a foreign head.
      names: (spec, the file's tensor names) to the tensor's name for each of our variables
        ("params/stem_conv/kernel", collection first), the classifier's among them; a variable that
        such a file cannot have may be left out.
      convert: (our name, the tensor) to our layout, values unchanged.
      ignored: regular expression of the whole names of tensors that carry no weights.
      info: (spec, the file's tensors) to what the library's weights expect of a network when
        nothing else says so.
    """

    name: str
    telltale: str
    separator: str = "."
    head: str
    names: Callable[[ModelSpec, Collection[str]], dict[str, str]]
    convert: Callable[[str, np.ndarray], np.ndarray]
    ignored: str
    info: Callable[[ModelSpec, Mapping[str, np.ndarray]], WeightsInfo]


def _own_names(spec: ModelSpec, tensors: Collection[str]) -> dict[str, str]:
    del tensors
    return {path: path for path in variable_shapes(spec, num_classes=1)}


def _of_network(
    info: Callable[[ModelSpec], WeightsInfo],
) -> Callable[[ModelSpec, Mapping[str, np.ndarray]], WeightsInfo]:
    """Whatever the tensors are."""
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
    ),
    Family(
        name="timm",
        telltale=r"conv_stem\.weight",
        head=r"classifier\..*",
        names=torch.timm_names,
        convert=torch.convert,
        ignored=torch.IGNORED,
        info=_of_network(torch.timm_info),
    ),
    Family(
        name="torchvision",
        telltale=r"features\.0\.0\.weight",
        head=r"classifier\..*",
        names=torch.torchvision_names,
        convert=torch.convert,
        ignored=torch.IGNORED,
        info=_of_network(torch.torchvision_info),
    ),
    Family(
        name="efficientnet-lite",
        telltale=r"_conv_stem\.weight",
        head=r"_fc\..*",
        names=torch.lite_names,
        convert=torch.convert,
        ignored=torch.IGNORED,
        info=_of_network(torch.lite_info),
    ),
    Family(
        name="keras",
        telltale=keras.KERAS,
        separator="",
        head=keras.HEAD,
        names=keras.keras_names,
        convert=keras.convert,
        ignored=keras.IGNORED,
        info=keras.keras_info,
    ),
    Family(
        name="keras_cv",
        telltale=keras.KERAS_CV,
        separator="",
        head=keras.HEAD,
        names=keras.keras_cv_names,
        convert=keras.convert,
        ignored=keras.IGNORED,
        info=keras.keras_cv_info,
    ),
    Family(
        name="keras_hub",
        telltale=keras.KERAS_HUB,
        separator="",
        head=keras.HEAD,
        names=keras.keras_names,
        convert=keras.convert,
        ignored=keras.IGNORED,
        info=keras.keras_hub_info,
    ),
)


def find_family(names: Collection[str]) -> Family:
    """The family of a file with tensors of these names.

    Raises:
      WeightsError: none; the message says what was looked for, and what the file has.
    """
    for family in FAMILIES:
        if any(re.fullmatch(family.telltale, name) for name in names):
            return family
    known = ", ".join(family.name for family in FAMILIES)
    found = ", ".join(list(names)[:5]) or "none"
    raise WeightsError(
        f"its tensors are named as those of an EfficientNet in none of {known}; "
        f"the first names in the file: {found}"
    )
