"""`jaxcls predict`: the classes of image files, as a table, JSON or CSV."""

import csv
import dataclasses
import glob
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from jaxcls.arguments import ALONE, ClassNames, WeightsEma, read_step, start_job
from jaxcls.cluster import JobOptions
from jaxcls.errors import UserError
from jaxcls.options import parse
from jaxcls.paths import expand_home

if TYPE_CHECKING:
    from jaxcls.classifier import Guess

type Guesses = list[list["Guess"]]  # for each image, best first


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predict:
    """Predicts the classes of image files."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Directory of a run, name of a preset, or a weights file."""
    images: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE ...")]
    """Image files, folders of images, or patterns such as 'photos/*.jpg'."""
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


def predict(arguments: list[str]) -> int:
    """Runs `jaxcls predict MODEL IMAGE …`; returns the exit status."""
    options = parse(Predict, "jaxcls predict", arguments)
    if options.top < 1:
        raise UserError(f"--top: must be at least 1, got {options.top}")
    if options.max_pixels is not None and options.max_pixels < 1:
        raise UserError(f"--max-pixels: must be at least 1, got {options.max_pixels}")
    from jaxcls.pretrained.class_names import read_class_names

    step, paths = read_step(options.step), _image_paths(options.images)
    names = options.class_names and read_class_names(options.class_names)
    start_job(options.job)
    from jaxcls.classifier import ImageClassifier
    from jaxcls.distributed import is_first

    classifier = ImageClassifier.load(options.model, step=step, ema=options.ema, class_names=names)
    if options.max_pixels is not None:
        classifier = classifier.with_max_pixels(options.max_pixels)
    guesses = classifier.rank(classifier.predict(paths), top=options.top)
    if is_first():
        PRINTERS[options.format](paths, guesses)
    return 0


def _image_paths(patterns: Sequence[str]) -> list[str]:
    """Files, the image files in folders, and what patterns match, in a stable order.

    Raises:
      UserError: there are none, or one of them matches nothing.
    """
    from jaxcls.data.decode import is_image_name

    if not patterns:
        raise UserError("give image files, folders or patterns after the model")
    paths: list[str] = []
    for pattern in map(expand_home, patterns):
        if os.path.isdir(pattern):
            files = sorted(Path(pattern).rglob("*"))
            found = [str(file) for file in files if is_image_name(file.name) and file.is_file()]
        elif os.path.exists(pattern):
            found = [pattern]
        else:
            found = sorted(filter(os.path.isfile, glob.glob(pattern, recursive=True)))
        if not found:
            raise UserError(f"image {pattern!r}: no such file, folder of images or pattern")
        paths += found
    return paths


def _print_table(paths: list[str], guesses: Guesses) -> None:
    width = max(len("image"), *map(len, paths))
    names = max(len("class"), *(len(guess.name) for best in guesses for guess in best))
    print(f"{'image':{width}}  {'class':{names}}  probability")
    for path, best in zip(paths, guesses, strict=True):
        for rank, (_, name, probability) in enumerate(best):
            print(f"{'' if rank else path:{width}}  {name:{names}}  {probability:10.2%}")


def _print_json(paths: list[str], guesses: Guesses) -> None:
    entries = [
        {"image": path, "classes": [guess._asdict() for guess in best]}
        for path, best in zip(paths, guesses, strict=True)
    ]
    print(json.dumps(entries))


def _print_csv(paths: list[str], guesses: Guesses) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["image", "rank", "id", "class", "probability"])
    for path, best in zip(paths, guesses, strict=True):
        for rank, (index, name, probability) in enumerate(best, start=1):
            writer.writerow([path, rank, index, name, f"{probability:.6f}"])


PRINTERS: dict[str, Callable[[list[str], Guesses], None]] = {
    "table": _print_table,
    "json": _print_json,
    "csv": _print_csv,
}
