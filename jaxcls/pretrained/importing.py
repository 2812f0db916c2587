"""Maps a file's tensors to a network's variables, strictly, with a report of what was done."""

import dataclasses
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from flax import traverse_util

from jaxcls.config.decoding import check_regex
from jaxcls.models.interface import CLASSIFIER, NetworkSpec
from jaxcls.models.registry import model_names, model_spec
from jaxcls.models.weights_info import WeightsError
from jaxcls.pretrained.families import Family, find_family
from jaxcls.pretrained.files import WeightsFile
from jaxcls.pretrained.limits import excerpt
from jaxcls.pretrained.variables import variable_names, variable_shapes, without_collection

type Variables = dict[str, Any]

_LISTED = 10
_KERNEL, _BIAS = f"params/{CLASSIFIER}/kernel", f"params/{CLASSIFIER}/bias"
_STEM = "params/stem_conv/kernel"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportReport:
    """The mapping of a file's tensors to a network's variables.

    Variables are named by their path without the collection ("stem_bn/mean"), tensors by their
    names in the file.

    Attributes:
      family: the naming convention of the file.
      mapped: the number of variables with a tensor.
      missing: variables without a tensor, which is an error.
      allowed: variables without a tensor that `allow_missing` allows.
      unused: tensors without a variable, which is an error.
      allowed_unused: tensors without a variable that `allow_unused` allows.
      reshaped: sentences on changes other than the layout.
      ignored: the number of tensors that are not weights, such as PyTorch's counters.
      notes: sentences on how the tensors were found in the file.
    """

    family: str
    mapped: int
    missing: tuple[str, ...] = ()
    allowed: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    allowed_unused: tuple[str, ...] = ()
    reshaped: tuple[str, ...] = ()
    ignored: int = 0
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.mapped} variables filled from tensors with {self.family} names"]
        lines += self.notes
        lines += _listing("missing in the file", self.missing)
        lines += _listing("missing in the file, as allowed", self.allowed)
        lines += _listing("unused tensors", self.unused)
        lines += _listing("unused tensors, as allowed", self.allowed_unused)
        if self.ignored:
            lines.append(
                f"{self.ignored} tensor{'s carry' if self.ignored > 1 else ' carries'} no weights"
            )
        lines += self.reshaped
        return "\n".join(lines)


def import_variables(
    file: WeightsFile,
    spec: NetworkSpec,
    *,
    num_classes: int | None,
    allow_missing: Sequence[str] = (),
    allow_unused: Sequence[str] = (),
) -> tuple[Variables, ImportReport]:
    """Returns a network's variables with the values in a file.

    A stem kernel for another number of channels than the network's images have is adapted
    (`for_input_channels`).

    Args:
      file: what `read_weights` returned.
      spec: the network.
      num_classes: the network's number of classes (None: the file's; 0: no classifier). If the file
        has another number, the classifier is left out of the result.
      allow_missing: regular expressions of variables (whole path without the collection) that may
        be missing in the file; they are left out of the result.
      allow_unused: regular expressions of tensors (whole name in the file) that may stay unused,
        such as the layers of another library's head. If some of them belong to the head, the file's
        classifier does not work without them, and is left out of the result too.

    Returns:
      {"params": …, "batch_stats": …}, nested, with NumPy float32 arrays; and the report.

    Raises:
      WeightsError: the tensors' names follow no known convention, a tensor has the wrong shape or
        type or values that are not finite, a variable is missing, or a tensor is unused; the
        message lists all of them. Or a pattern matches nothing.
    """
    family = family_for(file, spec)
    left_over = _left_over(allow_unused, file)
    match = _match(file, family, spec, num_classes=num_classes, left_over=left_over)
    allowed = _fitting(allow_missing, spec)
    absent = tuple(without_collection(path) for path in match.missing)
    report = ImportReport(
        family=family.name,
        mapped=len(match.views),
        missing=tuple(name for name in absent if name not in allowed),
        allowed=tuple(name for name in absent if name in allowed),
        unused=tuple(name for name in match.unused if name not in left_over),
        allowed_unused=tuple(name for name in match.unused if name in left_over),
        reshaped=match.reshaped,
        ignored=match.ignored,
        notes=file.notes,
    )
    if match.wrong or report.missing or report.unused:
        raise WeightsError(_misfit(file, spec, match, report))
    return _nested(_values(file, match)), report


def fitting_models(file: WeightsFile) -> tuple[str, ...]:
    """Returns the networks that fit a file's names and shapes, with any number of classes.

    Raises:
      WeightsError: the file's names follow no known convention.
    """
    family = family_of(file)
    return tuple(
        name
        for name in _candidates(file, family)
        if _match(file, family, model_spec(name), num_classes=None).fits
    )


def nearest_model(file: WeightsFile) -> str:
    """Returns the network that fits a file's names and shapes best.

    Raises:
      WeightsError: the file's names follow no known convention.
    """
    family = family_of(file)

    def agreement(name: str) -> int:
        match = _match(file, family, model_spec(name), num_classes=None)
        return len(match.views) - len(match.missing) - len(match.wrong) - len(match.unused)

    return max(_candidates(file, family), key=agreement)


def _candidates(file: WeightsFile, family: Family) -> list[str]:
    """Returns the networks whose variables' names fit a file best, without their shapes."""
    found = {name for name in file.tensors if not re.fullmatch(family.ignored, name)}

    def agreement(spec: NetworkSpec) -> int:
        names = family.names(spec, file.tensors)
        classifier = {names.get(_KERNEL), names.get(_BIAS)}
        wanted = {*names.values()} - (classifier - found)  # which a file may lack
        return len(wanted & found) - len(wanted ^ found)

    specs = {name: model_spec(name) for name in model_names()}
    scores = {
        name: agreement(spec) for name, spec in specs.items() if isinstance(spec, family.spec_type)
    }
    best = max(scores.values())
    return [name for name, score in scores.items() if score == best]


def family_of(file: WeightsFile) -> Family:
    """Returns the family of a file; raises as `find_family`, with the name of the file."""
    try:
        return find_family(file.tensors)
    except WeightsError as error:
        raise WeightsError(f"{file.path}: {excerpt(error, 1000)}") from None


def family_for(file: WeightsFile, spec: NetworkSpec) -> Family:
    """Returns the family of a file that is to be read for a network.

    Raises:
      WeightsError: the file's names follow no known convention, or one for other kinds of networks.
    """
    family = family_of(file)
    if not isinstance(spec, family.spec_type):
        raise WeightsError(
            f"{file.path} does not fit {spec.name}: its tensors have the names of another kind of "
            f"network ({family.name}); leave the name of the network out, or name that one"
        )
    return family


def count_classes(file: WeightsFile, spec: NetworkSpec) -> int:
    """Returns the number of classes of a file's classifier; 0 without one.

    Raises:
      WeightsError: as `family_for`.
    """
    family = family_for(file, spec)
    return _num_classes(file, family, family.names(spec, file.tensors))


def count_channels(file: WeightsFile, spec: NetworkSpec) -> int:
    """Returns the channels of the images that a file's network takes; `spec`'s if unknown.

    Raises:
      WeightsError: as `family_for`.
    """
    family = family_for(file, spec)
    kernel = file.tensors.get(family.names(spec, file.tensors).get(_STEM, ""))
    if kernel is None or kernel.ndim != 4:
        return spec.channels
    return family.convert(_STEM, kernel).shape[2] or spec.channels


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Match:
    """The comparison of a file with a network.

    Attributes:
      names: variable -> its tensor's name by the convention of the file.
      views: variable -> the tensor in jaxcls's layout, if its shape and type are right.
      missing: variables without a tensor.
      unused: tensors without a variable.
      wrong: sentences on tensors of the wrong shape or type.
      reshaped: sentences on what was changed.
      ignored: the number of tensors that are not weights.
    """

    names: dict[str, str]
    views: dict[str, np.ndarray]
    missing: tuple[str, ...]
    unused: tuple[str, ...]
    wrong: tuple[str, ...]
    reshaped: tuple[str, ...]
    ignored: int

    @property
    def fits(self) -> bool:
        return not (self.missing or self.unused or self.wrong)


def _match(
    file: WeightsFile,
    family: Family,
    spec: NetworkSpec,
    *,
    num_classes: int | None,
    left_over: Collection[str] = (),
) -> _Match:
    """Finds the tensor of each variable and compares the shapes; reads no values."""
    names = family.names(spec, file.tensors)
    found = _num_classes(file, family, names)
    layers_beside = _beside_classifier(file, family, names, left_over)
    if layers_beside or num_classes not in (None, found):
        kept = variable_shapes(spec, num_classes=0)
        reshaped = [_replaced(found, num_classes or 0, layers_beside)]
    else:
        kept = variable_shapes(spec, num_classes=found)
        reshaped = []
    names_of_classifier = {names.get(_KERNEL), names.get(_BIAS)} if reshaped else set()
    views, missing, wrong = {}, [], []
    for path, shape in kept.items():
        name = names.get(path)
        if name is None or name not in file.tensors:
            missing.append(path)
            continue
        tensor = file.tensors[name]
        view = family.convert(path, tensor)
        if path == _STEM and _of_other_channels(view.shape, shape):
            reshaped.append(_adapted(view.shape[2], shape[2]))
            view = for_input_channels(view, shape[2])
        if not np.issubdtype(tensor.dtype, np.floating):
            quantised = "; save the model before it is quantised"
            wrong.append(
                f"{name}: {tensor.dtype} is not a floating-point type"
                f"{quantised if tensor.dtype.itemsize == 1 else ''}"
            )
        elif view.shape != shape:
            turned = (
                "" if view.shape == tensor.shape else f", in jaxcls's layout {_text(view.shape)}"
            )
            ours = f"{without_collection(path)} {_text(shape)}"
            wrong.append(f"{ours}: {name} is {_text(tensor.shape)}{turned}")
        else:
            views[path] = view
    claimed = {names.get(path) for path in kept} | names_of_classifier
    rest = [name for name in file.tensors if name not in claimed] + list(file.outside)
    unused = [name for name in rest if not re.fullmatch(family.ignored, name)]
    return _Match(
        names=names,
        views=views,
        missing=tuple(missing),
        unused=tuple(unused),
        wrong=tuple(wrong),
        reshaped=tuple(reshaped),
        ignored=len(rest) - len(unused),
    )


def for_input_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
    """Adapts the kernel of a network's first convolution to images of other channels.

    For one channel, its inputs are summed, so that grey images give what they gave as RGB. For
    others, they are taken in turn, again and again, and scaled so that the outputs keep their size.
    (timm's `adapt_input_conv` does the same with kernels of three.)

    Args:
      kernel: [height, width, in, out], of any floating-point type.
      channels: the channels of the images.

    Returns:
      float32 [height, width, channels, out].
    """
    found = kernel.shape[2]
    with np.errstate(over="ignore"):  # what is not finite is an error elsewhere
        kernel = kernel.astype(np.float32)
        if channels == 1:
            return kernel.sum(axis=2, keepdims=True)
        repeated = kernel[:, :, np.arange(channels) % found]
        return repeated * np.float32(found) / np.float32(channels)


def adapt_stem(variables: Variables, channels: int) -> tuple[Variables, str]:
    """Adapts the variables of a run to images of other channels.

    Args:
      variables: {"params": …, …}.
      channels: the channels of the images.

    Returns:
      The variables with `for_input_channels` of the stem's kernel, and a sentence about it; as they
      are and an empty text, if they fit or have no such kernel.
    """
    params = variables["params"]
    stem = params.get("stem_conv", {})
    kernel = stem.get("kernel")
    if kernel is None or kernel.ndim != 4 or kernel.shape[2] == channels:
        return variables, ""
    adapted = for_input_channels(np.asarray(kernel), channels)
    params = {**params, "stem_conv": {**stem, "kernel": adapted}}
    return {**variables, "params": params}, _adapted(kernel.shape[2], channels)


def _of_other_channels(found: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether two kernels of a convolution differ in their input channels alone."""
    same = (*found[:2], *found[3:]) == (*wanted[:2], *wanted[3:])
    return len(found) == len(wanted) == 4 and same and found[2] not in (0, wanted[2])


def _adapted(found: int, channels: int) -> str:
    if channels == 1:
        return f"stem_conv/kernel: the sum of its {found} input channels, for images of one"
    plural = "s" * (found != 1)
    return (
        f"stem_conv/kernel: its {found} input channel{plural} in turn for {channels}, times "
        f"{found}/{channels}"
    )


def _num_classes(file: WeightsFile, family: Family, names: Mapping[str, str]) -> int:
    """Returns the number of classes of the file's classifier; 0 without one."""
    kernel = file.tensors.get(names.get(_KERNEL, ""))
    return family.convert(_KERNEL, kernel).shape[-1] if kernel is not None and kernel.ndim else 0


def _beside_classifier(
    file: WeightsFile, family: Family, names: Mapping[str, str], left_over: Collection[str]
) -> list[str]:
    """Returns unused tensors, allowed by the user, that belong to the head around a classifier."""
    classifier = {names.get(_KERNEL), names.get(_BIAS)}
    if names.get(_KERNEL) not in file.tensors:
        return []
    known = {*names.values()} - classifier
    return [
        name
        for name in file.tensors
        if name in left_over and name not in known
        if name not in classifier and not re.fullmatch(family.ignored, name)
        if re.fullmatch(family.head, name)
    ]


def _replaced(found: int, wanted: int, layers_beside: Sequence[str]) -> str:
    if layers_beside:
        return (
            f"classifier: left out, because its head has other layers, such as "
            f"{excerpt(layers_beside[0])}" + (f"; {wanted} new classes" * bool(wanted))
        )
    if not wanted:
        return f"classifier: {found} classes left out"
    if not found:
        return f"classifier: none in the file, {wanted} new classes"
    return f"classifier: {found} classes replaced by {wanted}"


def _fitting(patterns: Iterable[str], spec: NetworkSpec) -> set[str]:
    """Returns the variables that match one of the patterns."""
    names = [without_collection(path) for path in variable_names(spec)]
    return _matching(
        patterns,
        names,
        field="allow_missing",
        otherwise=f"matches no variable of {spec.name}; they are named like "
        f"{names[0]}, {names[len(names) // 2]} and {names[-1]}",
    )


def _left_over(patterns: Iterable[str], file: WeightsFile) -> set[str]:
    """Returns the tensors that match one of the patterns."""
    some = ", ".join([*file.tensors, *file.outside][-3:])
    return _matching(
        patterns,
        [*file.tensors, *file.outside],
        field="allow_unused",
        otherwise=f"matches no tensor of {file.path}; they are named like {excerpt(some, 300)}",
    )


def _matching(
    patterns: Iterable[str], names: Sequence[str], *, field: str, otherwise: str
) -> set[str]:
    allowed: set[str] = set()
    for pattern in patterns:
        check_regex(pattern, field=field)
        fitting = {name for name in names if re.fullmatch(pattern, name)}
        if not fitting:
            raise WeightsError(f"{field}: {pattern!r} {otherwise}")
        allowed |= fitting
    return allowed


def _values(file: WeightsFile, match: _Match) -> dict[str, np.ndarray]:
    """Reads the values as float32, and checks that they are finite."""
    arrays, bad = {}, []
    for path, view in match.views.items():
        with np.errstate(over="ignore"):
            arrays[path] = np.ascontiguousarray(view, np.float32)
        if count := np.count_nonzero(~np.isfinite(arrays[path])):
            bad.append(f"{match.names[path]}: {count} of {view.size}")
    if bad:
        lines = _listing("values that are not finite", bad)
        raise WeightsError("\n".join([f"{file.path} cannot be used", *lines]))
    return arrays


def _misfit(file: WeightsFile, spec: NetworkSpec, match: _Match, report: ImportReport) -> str:
    """Returns the message that explains why a file does not fit."""
    wanted = report.mapped + len(match.wrong) + len(match.missing)
    lines = [
        f"{file.path} does not fit {spec.name}: {report.mapped} of {wanted} variables are good"
    ]
    if others := [name for name in fitting_models(file) if name != spec.name]:
        lines.append(f"it fits {' and '.join(others)}; name that network")
    lines += _listing("tensors of another shape or type", match.wrong)
    lines += _listing("missing", [_called(name, match) for name in report.missing])
    lines += _listing("unused tensors", report.unused)
    if report.missing and not others:
        lines.append("allow_missing takes patterns of variables that may be missing: 'head_.*'")
    if report.unused and not others:
        lines.append(
            "allow_unused takes patterns of tensors that may stay unused, such as those of "
            f"another library's head: {re.escape(excerpt(report.unused[0], 300))!r}"
        )
    return "\n".join(lines)


def _called(name: str, match: _Match) -> str:
    """Returns a missing variable, and its tensor's name by the convention of the file."""
    path = next(path for path in match.missing if without_collection(path) == name)
    theirs = match.names.get(path, path)
    return name if theirs == path else f"{name} ({theirs})"


def _listing(title: str, items: Sequence[str]) -> Iterator[str]:
    """Yields lines with the number of items and the first of them."""
    if items:
        yield f"{title} ({len(items)}):"
        yield from (f"  {excerpt(item, 300)}" for item in items[:_LISTED])
        if len(items) > _LISTED:
            yield f"  and {len(items) - _LISTED} more"


def _text(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _nested(arrays: dict[str, np.ndarray]) -> Variables:
    variables: Variables = {"params": {}}
    return variables | traverse_util.unflatten_dict(arrays, sep="/")
