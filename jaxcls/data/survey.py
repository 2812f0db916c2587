"""Surveys a split: classes, sizes, formats, broken images, and reading speed."""

import collections
import dataclasses
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from jaxcls.data.decode import image_header
from jaxcls.data.images import training_image
from jaxcls.data.source import Label, Source, classes_of, count_classes
from jaxcls.system.errors import BrokenImageError

if TYPE_CHECKING:
    from jaxcls.config import DataConfig

SHOWN_CLASSES = 20
SHOWN_BROKEN = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Survey:
    """The findings about a split.

    Attributes:
      name: the name of the data set.
      split: the split as the user named it.
      num_examples: the number of examples in the split.
      num_seen: the number of examples that were read; the rest counts only these.
      classes: class name -> number of images that have it, in the order of the labels.
      classes_per_image: number of classes -> number of images with so many, ascending.
      formats: file format by content -> number of images.
      heights: smallest, median and largest stored height in pixels.
      widths: the same of the widths.
      megabytes: the size of the encoded images.
      broken: the error message of each broken image.
      images_per_second: the speed of reading, decoding and shrinking with data.num_threads threads.
    """

    name: str
    split: str
    num_examples: int
    num_seen: int
    classes: dict[str, int]
    classes_per_image: dict[int, int]
    formats: dict[str, int]
    heights: tuple[int, int, int]
    widths: tuple[int, int, int]
    megabytes: float
    broken: tuple[str, ...]
    images_per_second: float


@dataclasses.dataclass(frozen=True)
class _Seen:
    label: Label
    num_bytes: int
    kind: str = "?"
    size: tuple[int, int] | None = None
    problem: str | None = None


def survey(source: Source, data: "DataConfig", *, limit: int | None = None) -> Survey:
    """Reads and decodes a split as training does, and counts what it has.

    Args:
      source: the split.
      data: num_threads and the fields of `training_image` are used.
      limit: the largest number of images to read, evenly spread (None: all).

    Raises:
      DataError: a record cannot be read. Broken images are findings, not errors.
    """
    count = len(source) if limit is None else min(limit, len(source))
    records = [i * len(source) // count for i in range(count)]
    begin = time.perf_counter()
    with ThreadPoolExecutor(data.num_threads) as pool:
        seen = list(pool.map(lambda record: _look(source, record, data), records))
    seconds = time.perf_counter() - begin
    counts = count_classes([one.label for one in seen], source.num_classes)
    per_image = collections.Counter(len(classes_of(one.label)) for one in seen)
    sizes = np.array([one.size for one in seen if one.size] or [(0, 0)])
    return Survey(
        name=source.name,
        split=source.split,
        num_examples=len(source),
        num_seen=count,
        classes=dict(zip(source.class_names, counts.tolist(), strict=True)),
        classes_per_image=dict(sorted(per_image.items())),
        formats=dict(collections.Counter(one.kind for one in seen if one.size).most_common()),
        heights=_range(sizes[:, 0]),
        widths=_range(sizes[:, 1]),
        megabytes=sum(one.num_bytes for one in seen) / 1e6,
        broken=tuple(one.problem for one in seen if one.problem),
        images_per_second=count / seconds,
    )


def _look(source: Source, record: int, data: "DataConfig") -> _Seen:
    stored = source[record]
    try:
        training_image(stored.image, data, where=source.describe(record))
    except BrokenImageError as error:
        return _Seen(stored.label, len(stored.image), problem=str(error))
    # Does not decode the pixels again.
    kind, height, width = image_header(stored.image, channels=data.channels)
    return _Seen(stored.label, len(stored.image), kind, (height, width))


def _range(values: np.ndarray) -> tuple[int, int, int]:
    return int(values.min()), int(np.median(values)), int(values.max())


def describe(found: Survey) -> str:
    """Formats the findings for the user; long lists are shortened."""
    return "\n".join(_lines(found))


def _lines(found: Survey) -> Iterator[str]:
    seen = "" if found.num_seen == found.num_examples else f" ({found.num_seen:,} of them read)"
    yield f"{found.name} {found.split!r}: {found.num_examples:,} images{seen}"
    yield f"  {len(found.classes)} classes:"
    ordered = sorted(found.classes.items(), key=lambda entry: -entry[1])
    width = max(len(name) for name in found.classes)
    if len(ordered) > SHOWN_CLASSES:
        middle = f"    … {len(ordered) - SHOWN_CLASSES} more …"
        shown = [*ordered[: SHOWN_CLASSES // 2], None, *ordered[-SHOWN_CLASSES // 2 :]]
    else:
        middle, shown = "", list(ordered)
    for entry in shown:
        yield middle if entry is None else f"    {entry[0]:{width}}  {entry[1]:,}"
    if found.classes_per_image.keys() != {1}:
        sizes = ", ".join(f"{size}: {count:,}" for size, count in found.classes_per_image.items())
        yield f"  images by their number of classes: {sizes}"
    for name, (low, median, high) in (("height", found.heights), ("width", found.widths)):
        yield f"  {name}: {low} to {high}, median {median}"
    formats = ", ".join(f"{name} {count:,}" for name, count in found.formats.items())
    yield f"  formats: {formats or 'none'}; {found.megabytes:,.1f} MB"
    yield f"  broken: {len(found.broken)}"
    for problem in found.broken[:SHOWN_BROKEN]:
        yield f"    {problem}"
    if len(found.broken) > SHOWN_BROKEN:
        yield f"    … {len(found.broken) - SHOWN_BROKEN} more (--json lists them)"
    yield f"  reading: {found.images_per_second:,.0f} img/s"
