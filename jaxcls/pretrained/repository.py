"""Weights in a repository on the Hugging Face Hub: hf:OWNER/REPO, or hf:OWNER/REPO@REVISION.

A repository in timm's format has two files that are read: config.json, which describes the network
and its preprocessing, and the weights. No code of a repository is ever run.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

from jaxcls.config.decoding import nearest
from jaxcls.config.sizes import ImageSize
from jaxcls.models.normalisation import IMAGENET_MEAN, IMAGENET_STD, for_channels
from jaxcls.models.registry import model_names
from jaxcls.models.weights_info import WeightsError, WeightsInfo
from jaxcls.pretrained.class_names import MAX_BYTES, read_class_names
from jaxcls.pretrained.hub import HubFile, MissingFileError, fetch_from_hub, is_cached
from jaxcls.pretrained.imagenet import imagenet_class_names
from jaxcls.pretrained.limits import excerpt
from jaxcls.pretrained.timm_names import timm_network
from jaxcls.system.json_text import parse_json

PREFIX = "hf:"
_CONFIG = "config.json"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first that there is
_PART = r"[A-Za-z0-9_][\w.-]*"
_NAME = re.compile(
    rf"hf:(?P<repository>{_PART}/{_PART})(?:@(?P<revision>{_PART}(?:/{_PART})*))?", re.ASCII
)

# Arguments of timm's networks that change nothing in evaluation, or that stand elsewhere too.
_HARMLESS_ARGUMENTS = {
    "num_classes",
    "drop_rate",
    "drop_path_rate",
    "pretrained",
    "global_pool",
    "in_chans",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Repository:
    """A repository whose config.json is on this machine.

    Attributes:
      name: as the user gives it, such as "hf:timm/resnet50.a1_in1k".
      repository: OWNER/REPO.
      info: the network and its preprocessing; its `revision` is the commit.
      num_classes: the number of classes; None if unknown.
      notes: sentences for the report.
    """

    name: str
    repository: str
    info: WeightsInfo
    num_classes: int | None
    notes: tuple[str, ...]


def is_repository(name: str) -> bool:
    """Returns whether a name of weights is meant as a repository's."""
    return name.startswith(PREFIX)


def open_repository(name: str) -> Repository:
    """Reads a repository's config.json, which is downloaded if it is not in the cache.

    Args:
      name: hf:OWNER/REPO, or hf:OWNER/REPO@REVISION with a commit, branch or tag.

    Raises:
      WeightsError: there is no such repository, it cannot be fetched, it has no config.json of
        timm, or its network or preprocessing is one that jaxcls does not have.
    """
    match = _NAME.fullmatch(name)
    if match is None or ".." in name:
        raise WeightsError(
            f"weights {excerpt(name)!r}: expected hf:OWNER/REPO or hf:OWNER/REPO@REVISION, such as "
            f"hf:timm/resnet50.a1_in1k"
        )
    repository, revision = match["repository"], match["revision"]
    file = HubFile(
        name=name,
        repository=repository,
        file=_CONFIG,
        revision=revision,
        needed_too=_WEIGHTS[0],
    )
    try:
        path = fetch_from_hub(file)
    except MissingFileError as error:
        raise WeightsError(
            f"{name}: {repository} has no {_CONFIG}, so its network is unknown; download its "
            f"weights, and give the file and the name of the network"
        ) from error
    return _Config(name, path).repository(repository)


def fetch_repository_weights(repository: Repository) -> Path:
    """Returns the file of weights on this machine, of the same commit as the config.json.

    Raises:
      WeightsError: there is no such file, or it cannot be fetched.
    """
    files = [
        HubFile(
            name=repository.name,
            repository=repository.repository,
            file=file,
            revision=repository.info.revision,
        )
        for file in _WEIGHTS
    ]
    # A file that is here comes first: without a network nobody can say that the other is missing.
    for file in sorted(files, key=lambda file: not is_cached(file)):
        try:
            return fetch_from_hub(file)
        except MissingFileError:
            continue
    raise WeightsError(
        f"{repository.name}: {repository.repository} has neither {' nor '.join(_WEIGHTS)}; "
        f"download its weights, and give the file"
    )


class _Config:
    """A config.json, whose fields are checked as they are read."""

    def __init__(self, name: str, path: Path):
        self._name = name
        self._path = path
        self._notes = [f"from {name.partition('@')[0]} at commit {path.parent.name}"]
        if path.stat().st_size > MAX_BYTES:
            self._fail(f"is too large for a {_CONFIG}")
        try:
            content = parse_json(path.read_bytes())
        except ValueError as error:
            self._fail(f"is not valid JSON ({error})")
        if not isinstance(content, Mapping):
            self._fail(f"holds a {type(content).__name__} and not an object")
        self._top: Mapping[str, Any] = content
        inner = content.get("pretrained_cfg", content)  # older ones have all in one object
        self._settings: Mapping[str, Any] = inner if isinstance(inner, Mapping) else {}

    def repository(self, repository: str) -> Repository:
        network = timm_network(self._architecture())
        channels, image_size = self._image_shape()
        self._check_arguments(channels)
        num_classes, names = self._classes()
        info = WeightsInfo(
            model=network.model,
            mean=self._per_channel("mean", IMAGENET_MEAN, channels),
            std=self._per_channel("std", IMAGENET_STD, channels),
            padding=network.padding,
            batch_norm_epsilon=network.batch_norm_epsilon,
            pooling=self._pooling(),
            image_size=image_size,
            crop_fraction=self._crop_fraction(),
            interpolation=self._interpolation(),
            class_names=names,
            revision=self._path.parent.name,
        )
        if (mode := self._get("crop_mode")) not in (None, "center"):
            self._notes.append(
                f"timm fits images into the square by {excerpt(mode)!r}; jaxcls keeps their shape "
                f"and cuts off their sides"
            )
        return Repository(
            name=self._name,
            repository=repository,
            info=info,
            num_classes=num_classes,
            notes=tuple(self._notes),
        )

    def _fail(self, why: str) -> NoReturn:
        raise WeightsError(f"{self._name}: {self._path}: {why}")

    def _get(self, field: str) -> Any:
        """Returns a field, wherever it stands; None without it."""
        found = self._top.get(field)
        return self._settings.get(field) if found is None else found

    def _architecture(self) -> str:
        name = self._get("architecture")
        if not isinstance(name, str):
            others = self._top.get("architectures", self._top.get("model_type"))
            theirs = f" (it is of another library's {excerpt(others)})" if others else ""
            self._fail(
                f"names no architecture, as timm's do{theirs}; jaxcls reads repositories in timm's "
                f"format, or a file of weights"
            )
        known = [known for known in model_names() if ":" not in known]
        if timm_network(name).model not in known:
            near = nearest(timm_network(name).model, known)
            self._fail(
                f"architecture: {excerpt(name)!r} is not a network of jaxcls{near}; known: "
                f"{', '.join(known)}"
            )
        return name

    def _check_arguments(self, channels: int) -> None:
        arguments = self._get("model_args") or {}
        if not isinstance(arguments, Mapping):
            self._fail(f"model_args: expected an object, got {excerpt(arguments)}")
        if arguments.get("in_chans", channels) != channels:
            self._fail(
                f"model_args: in_chans is {excerpt(arguments['in_chans'])}, but input_size has "
                f"{channels} channels"
            )
        if others := sorted(set(arguments) - _HARMLESS_ARGUMENTS):
            self._fail(
                f"model_args: {excerpt(others[0])} changes the network in a way that jaxcls does "
                f"not know"
            )

    def _classes(self) -> tuple[int | None, tuple[str, ...] | None]:
        count = self._get("num_classes")
        if count is not None and (type(count) is not int or count < 0):
            self._fail(f"num_classes: expected a number, got {excerpt(count)}")
        if not self._get("label_names"):
            # As for files of other libraries: a thousand classes are ImageNet's.
            names = imagenet_class_names()
            return count, names if count == len(names) else None
        names = read_class_names(self._path)
        if count is not None and count != len(names):
            self._fail(f"names {len(names)} classes, but num_classes is {count}")
        return len(names), names

    def _pooling(self) -> Literal["average", "max"]:
        kind = self._get("global_pool")
        if kind in (None, "avg"):
            return "average"
        if kind != "max":
            self._fail(f"global_pool: {excerpt(kind)} is not known to jaxcls; it has avg and max")
        return "max"

    def _image_shape(self) -> tuple[int, ImageSize]:
        """Returns the channels, and the size for evaluation."""
        field = "test_input_size" if self._get("test_input_size") else "input_size"
        shape = self._get(field) or (3, 224, 224)
        if not _is_list(shape, of=int, length=3) or min(shape) < 1:
            self._fail(f"{field}: expected channels, height and width, got {excerpt(shape)}")
        channels, height, width = shape
        return channels, height if height == width else (height, width)

    def _crop_fraction(self) -> float:
        fraction = self._get("test_crop_pct") or self._get("crop_pct") or 0.875
        if type(fraction) not in (int, float) or not 0 < fraction <= 1:
            self._fail(f"crop_pct: expected a share above 0 and up to 1, got {excerpt(fraction)}")
        return float(fraction)

    def _interpolation(self) -> Literal["bilinear", "bicubic"]:
        kind = self._get("interpolation")
        if kind == "bilinear":
            return "bilinear"
        if kind not in (None, "bicubic"):
            self._notes.append(f"timm resizes images by {excerpt(kind)!r}, jaxcls by bicubic")
        return "bicubic"

    def _per_channel(
        self, field: str, otherwise: Sequence[float], channels: int
    ) -> tuple[float, ...]:
        values = self._get(field) or otherwise
        numbers = [
            length for length in (1, 3, channels) if _is_list(values, of=int | float, length=length)
        ]
        if not numbers or not all(abs(value) < 1e6 for value in values):
            self._fail(f"{field}: expected {channels} numbers, got {excerpt(values)}")
        if field == "std" and min(values) <= 0:
            self._fail(f"std: must be above 0, got {excerpt(values)}")
        return for_channels(tuple(map(float, values)), channels)


def _is_list(value: Any, *, of: Any, length: int) -> bool:
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and len(value) == length
        and all(isinstance(item, of) and not isinstance(item, bool) for item in value)
    )
