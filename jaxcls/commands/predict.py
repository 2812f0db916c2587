"""`jaxcls predict`: the classes of image files, as a table, JSON or CSV."""

import dataclasses
import glob
import json
import os
import stat
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import tyro

from jaxcls.commands.common import DEFAULT_JOB, ClassNames, WeightsEma, read_step, start_job
from jaxcls.commands.options import parse
from jaxcls.distributed.job import JobOptions
from jaxcls.system.csv_text import csv_line
from jaxcls.system.errors import UserError
from jaxcls.system.file_names import printable
from jaxcls.system.output import put, say, table
from jaxcls.system.paths import expand_home

if TYPE_CHECKING:
    from jaxcls.inference.classifier import Guess


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predict:
    """Predicts the classes of image files."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Directory of a run, name of a preset, a weights file, or hf:OWNER/REPO[@REVISION]."""
    images: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE ...")]
    """Image files, folders of images, or patterns such as 'photos/*.jpg'. Folders are listed as for
    training; a file that is given by name may have any extension."""
    step: str = "latest"
    """Checkpoint of a run: latest, best (by top-1 during training) or the number of a step."""
    top: int | None = None
    """Number of classes to print for each image (None: 5, or with a threshold all above it)."""
    threshold: float | None = None
    """Print only classes of at least this probability (None: 0.5 for a network of images with
    several labels, and 0 for others)."""
    format: Literal["table", "json", "csv"] = "table"
    """Format of the output."""
    max_pixels: int | None = None
    """Refuse images with more pixels as decompression bombs (None: as data.max_pixels)."""
    class_names: ClassNames = None
    ema: WeightsEma = True
    job: Annotated[JobOptions, tyro.conf.arg(name="")] = DEFAULT_JOB


def run(arguments: list[str]) -> int:
    """Runs `jaxcls predict MODEL IMAGE …`; returns the exit status.

    Raises:
      UserError: images could not be read; it is raised after the others are printed.
    """
    options = parse(Predict, "jaxcls predict", arguments)
    if options.top is not None and options.top < 1:
        raise UserError(f"--top: must be at least 1, got {options.top}")
    if options.threshold is not None and not 0 <= options.threshold <= 1:
        raise UserError(f"--threshold: must be between 0 and 1, got {options.threshold}")
    if options.max_pixels is not None and options.max_pixels < 1:
        raise UserError(f"--max-pixels: must be at least 1, got {options.max_pixels}")
    from jaxcls.pretrained.class_names import read_class_names

    step, found = read_step(options.step), _find_images(options.images)
    names = options.class_names and read_class_names(options.class_names)
    start_job(options.job)
    from jaxcls.distributed.agree import is_main_process
    from jaxcls.inference.classifier import ImageClassifier
    from jaxcls.training.multi_label import THRESHOLD

    classifier = ImageClassifier.load(options.model, step=step, ema=options.ema, class_names=names)
    if options.max_pixels is not None:
        classifier = classifier.with_max_pixels(options.max_pixels)
    broken: dict[int, str] = {}
    probabilities = classifier.predict(found.paths, broken=broken)
    good = [index for index in range(len(found.paths)) if index not in broken]
    top, threshold = options.top, options.threshold
    if threshold is None and classifier.multi_label and top is None:
        threshold = THRESHOLD
    if threshold is None:
        top, threshold = top or 5, 0.0
    best = classifier.rank(probabilities[good], top=top, threshold=threshold)
    ranked = dict(zip(good, best, strict=True))
    predictions = [
        Prediction(path, ranked.get(index, []), broken.get(index))
        for index, path in enumerate(found.paths)
    ]
    if is_main_process():
        PRINTERS[options.format](predictions)
    problems = [*found.unreadable, *broken.values()]
    if problems:
        raise UserError(
            f"{len(broken):,} of {len(found.paths):,} images could not be read"
            + (f", and {len(found.unreadable):,} folders or links" if found.unreadable else "")
            + "".join(f"\n  {problem}" for problem in problems)
        )
    return 0


class Prediction(NamedTuple):
    """The classes of an image, best first; or an error that says why it could not be read."""

    path: str
    guesses: "list[Guess]"
    error: str | None


@dataclasses.dataclass(frozen=True)
class _Found:
    """The paths of images, in a stable order, and messages about what could not be read."""

    paths: list[str]
    unreadable: list[str]


def _find_images(patterns: Sequence[str]) -> _Found:
    """Finds files by name, the image files in folders, and the files that match patterns.

    A file that is given by name may have any extension. Folders are listed as for training; files
    in them that are not used are reported on stderr.

    Raises:
      UserError: there are no images, or a pattern matches nothing.
    """
    if not patterns:
        raise UserError("give image files, folders or patterns after the model")
    found = _Found([], [])
    for pattern in map(expand_home, patterns):
        if os.path.isdir(pattern):
            _add_folder(pattern, found)
        elif _would_wait(pattern):
            found.unreadable.append(f"{pattern!r} is a pipe or a socket, not an image file")
        elif os.path.lexists(pattern):
            found.paths.append(pattern)
        else:
            matches = _matches(pattern)
            if not matches:
                raise UserError(
                    f"{pattern!r}: no such file or folder, and as a pattern it matches nothing"
                )
            found.paths.extend(matches)
    return found


def _would_wait(path: str) -> bool:
    """Whether opening a path may wait forever; a shell's own pipes, as in <(…), have a writer."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    pipe = stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)
    return pipe and not os.path.abspath(path).startswith(("/dev/", "/proc/"))


def _add_folder(folder: str, found: _Found) -> None:
    from jaxcls.data.listing import describe_left_out, list_images

    listing = list_images(Path(folder))
    left_out = [describe_left_out({kind: some}) for kind, some in listing.left_out.items()]
    unreadable = [
        f"{os.path.join(folder, path)!r} cannot be read: {reason}"
        for path, reason in listing.unreadable.items()
    ]
    if not listing.files:
        why = "; ".join([*unreadable, *(f"not used: {kind}" for kind in left_out)])
        raise UserError(
            f"image {folder!r}: there is no image in this folder" + (f" ({why})" if why else "")
        )
    for kind in left_out:
        say(f"{printable(folder)}: not used: {kind}", sys.stderr)
    found.paths.extend(os.path.join(folder, file) for file in listing.files)
    found.unreadable.extend(unreadable)


def _matches(pattern: str) -> list[str]:
    """The files that match a pattern, sorted; each once, even if several links lead to it.

    Hidden files are left out as in listings, unless the pattern names them.
    """
    from jaxcls.data.listing import is_hidden

    literal = set(Path(pattern).parts)
    files: dict[str, str] = {}
    matched = sorted(glob.glob(pattern, recursive=True), key=lambda path: (path.count("/"), path))
    for path in matched:
        if any(is_hidden(part) and part not in literal for part in Path(path).parts[:-1]):
            continue
        if os.path.isfile(path):
            folder, name = os.path.split(path)
            files.setdefault(os.path.join(os.path.realpath(folder), name), path)
    return sorted(files.values())


def _print_table(predictions: Sequence[Prediction]) -> None:
    rows = [["image", "class", "probability"]]
    for path, best, error in predictions:
        if not best and error is None:
            rows.append([path, "none", ""])
        for rank, (_, name, probability) in enumerate(best):
            rows.append(["" if rank else path, name, f"{probability:10.2%}"])
    say(table(rows))


def _print_json(predictions: Sequence[Prediction]) -> None:
    entries = [
        {"image": path, "classes": [guess._asdict() for guess in best]}
        | ({} if error is None else {"error": error})
        for path, best, error in predictions
    ]
    put(json.dumps(entries))


def _print_csv(predictions: Sequence[Prediction]) -> None:
    lines = [csv_line(["image", "rank", "id", "class", "probability"])]
    for path, best, _ in predictions:
        for rank, (index, name, probability) in enumerate(best, start=1):
            lines.append(csv_line([printable(path), rank, index, name, probability]))
    put("".join(lines).removesuffix("\n"))


PRINTERS: dict[str, Callable[[Sequence[Prediction]], None]] = {
    "table": _print_table,
    "json": _print_json,
    "csv": _print_csv,
}
