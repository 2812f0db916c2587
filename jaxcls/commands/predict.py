"""`jaxcls predict`: the classes of image files, as a table, JSON or CSV."""

import csv
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

from jaxcls.commands.common import ALONE, ClassNames, WeightsEma, read_step, start_job
from jaxcls.commands.options import parse
from jaxcls.distributed.job import JobOptions
from jaxcls.system.errors import UserError
from jaxcls.system.names import printable
from jaxcls.system.paths import expand_home

if TYPE_CHECKING:
    from jaxcls.inference.classifier import Guess


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predict:
    """Predicts the classes of image files."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Directory of a run, name of a preset, or a weights file."""
    images: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE ...")]
    """Image files, folders of images, or patterns such as 'photos/*.jpg'. Folders are listed as for
    training; a file that is named is taken whatever its name."""
    step: str = "latest"
    """Of a run: latest, best (by top-1 during training) or a step's number."""
    top: int = 5
    """Classes to show for each image."""
    format: Literal["table", "json", "csv"] = "table"
    """How to print them."""
    max_pixels: int | None = None
    """Refuse images of more pixels as decompression bombs (None: as data.max_pixels says)."""
    class_names: ClassNames = None
    ema: WeightsEma = True
    job: Annotated[JobOptions, tyro.conf.arg(name="")] = ALONE


def run(arguments: list[str]) -> int:
    """Runs `jaxcls predict MODEL IMAGE …`; returns the exit status.

    Raises:
      UserError: at the end, if images could not be read; the others are printed.
    """
    options = parse(Predict, "jaxcls predict", arguments)
    if options.top < 1:
        raise UserError(f"--top: must be at least 1, got {options.top}")
    if options.max_pixels is not None and options.max_pixels < 1:
        raise UserError(f"--max-pixels: must be at least 1, got {options.max_pixels}")
    from jaxcls.pretrained.class_names import read_class_names

    step, found = read_step(options.step), _find_images(options.images)
    names = options.class_names and read_class_names(options.class_names)
    start_job(options.job)
    from jaxcls.distributed.agree import is_main_process
    from jaxcls.inference.classifier import ImageClassifier

    classifier = ImageClassifier.load(options.model, step=step, ema=options.ema, class_names=names)
    if options.max_pixels is not None:
        classifier = classifier.with_max_pixels(options.max_pixels)
    broken: dict[int, str] = {}
    probabilities = classifier.predict(found.paths, broken=broken)
    good = [index for index in range(len(found.paths)) if index not in broken]
    ranked = dict(zip(good, classifier.rank(probabilities[good], top=options.top), strict=True))
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
    """The classes of an image, best first; or none, and why it could not be read."""

    path: str
    guesses: "list[Guess]"
    error: str | None


@dataclasses.dataclass(frozen=True)
class _Found:
    """Paths of images, in a stable order, and what cannot be read where they were looked for."""

    paths: list[str]
    unreadable: list[str]


def _find_images(patterns: Sequence[str]) -> _Found:
    """Files, the image files in folders, and the files that patterns match.

    A file that is named is taken whatever its name; folders are listed as for training, and what
    is left out of them is said on stderr.

    Raises:
      UserError: there are none, or one of them matches nothing.
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
    """Whether opening a path may wait for ever; a shell's own pipes, as in <(…), have a writer."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    pipe = stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)
    return pipe and not os.path.abspath(path).startswith(("/dev/", "/proc/"))


def _add_folder(folder: str, found: _Found) -> None:
    from jaxcls.data.listing import describe_left_out, list_images

    listing = list_images(Path(folder))
    left_out = describe_left_out(listing.left_out)
    unreadable = [
        f"{os.path.join(folder, path)!r} cannot be read: {reason}"
        for path, reason in listing.unreadable.items()
    ]
    if not listing.files:
        why = "; ".join([*unreadable, *([f"not used: {left_out}"] if left_out else [])])
        raise UserError(
            f"image {folder!r}: there is no image in this folder" + (f" ({why})" if why else "")
        )
    if left_out:
        print(f"{printable(folder)}: not used: {left_out}", file=sys.stderr)
    found.paths.extend(os.path.join(folder, file) for file in listing.files)
    found.unreadable.extend(unreadable)


def _matches(pattern: str) -> list[str]:
    """The files that a pattern matches, sorted; each once, though links lead to it by many ways.

    Below a folder that `**` stands for, what a listing hides is hidden here.
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
    shown = [(printable(path), guesses) for path, guesses, error in predictions if error is None]
    width = max(len("image"), *(len(path) for path, _ in shown), 0)
    names = max(len("class"), *(len(guess.name) for _, best in shown for guess in best), 0)
    print(f"{'image':{width}}  {'class':{names}}  probability")
    for path, best in shown:
        for rank, (_, name, probability) in enumerate(best):
            print(f"{'' if rank else path:{width}}  {name:{names}}  {probability:10.2%}")


def _print_json(predictions: Sequence[Prediction]) -> None:
    entries = [
        {"image": path, "classes": [guess._asdict() for guess in best]}
        | ({} if error is None else {"error": error})
        for path, best, error in predictions
    ]
    print(json.dumps(entries))


def _print_csv(predictions: Sequence[Prediction]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["image", "rank", "id", "class", "probability"])
    for path, best, _ in predictions:
        for rank, (index, name, probability) in enumerate(best, start=1):
            writer.writerow([printable(path), rank, index, name, f"{probability:.6f}"])


PRINTERS: dict[str, Callable[[Sequence[Prediction]], None]] = {
    "table": _print_table,
    "json": _print_json,
    "csv": _print_csv,
}
