"""A list of image files and their classes: csv:FILE.

FILE is a CSV file with a header, a TSV file, a JSON list of objects, or JSON lines. It has the
columns (or keys) `file` and `label`, and perhaps `split`; others are not used. Paths are relative
to the folder of FILE. With data.labels "multiple" a label cell has any number of classes, separated
by semicolons, or in JSON is a list. A number in JSON is a class name, too.

Without the column `split`, the files are split into `train` and `test` as those of folder:PATH
are; files with several labels without regard to them, but the first file of each class is in
`train`.
"""

import collections
import csv
import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxcls.config.decoding import nearest
from jaxcls.data.labelled_files import FileSource, FileSplit, spread, train_and_test
from jaxcls.data.source import Label
from jaxcls.data.splits import describe_splits, parse_split
from jaxcls.system.errors import DataError, one_line
from jaxcls.system.file_names import composed, printable
from jaxcls.system.json_text import parse_json
from jaxcls.system.paths import local_path

if TYPE_CHECKING:
    from jaxcls.config import DataConfig

SEPARATOR = ";"  # of the classes in a label cell
_DELIMITERS = {".tsv": "\t"}
_FIELD = 2**20  # the longest cell; the csv module's own limit is shorter


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the file.

    Attributes:
      where: the file and the number of its line or entry, for messages.
      file: the path of the image.
      classes: the names of its classes.
      split: the name of its split; None without the column.
    """

    where: str
    file: str
    classes: tuple[str, ...]
    split: str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class CsvSource(FileSource):
    """One split of a list of files."""

    @property
    def identity(self) -> str:
        """As for a folder, and the labels, which may change in the list."""
        digest = hashlib.blake2b(repr(self.labels).encode(), digest_size=8).hexdigest()
        return f"{super().identity}, labels {digest}"


def open_split(path: str, data: "DataConfig", split: str, *, field: str = "split") -> CsvSource:
    """Opens one split of a list of files.

    Args:
      path: the list.
      data: `labels`, `test_share` and `split_seed`.
      split: in TFDS syntax.
      field: the name of the field that gave the split, for error messages.

    Raises:
      DataError: the list cannot be read, a line is wrong, there is no such split, a class is not in
        `train`, or there are fewer than two classes (with several labels: none).
    """
    file = local_path(path)
    several = data.labels == "multiple"
    rows = read_rows(file, several=several)
    splits = _splits(rows, several=several, test_share=data.test_share, seed=data.split_seed)
    if "train" not in splits:
        raise DataError(
            f"data.source: {file} has no line with the split 'train' (splits: "
            f"{describe_splits(splits)}); the classes are those of that split"
        )
    class_names = _class_names(file, splits["train"], several=several)
    numbers = {name: number for number, name in enumerate(class_names)}
    chosen = [
        row
        for stored, part in parse_split(
            composed(split), splits, name=printable(file.name), field=field
        )
        for _, row in splits[stored].files[part]
    ]
    for row in chosen:
        for name in row.classes:
            if name not in numbers:
                raise DataError(
                    f"data.source: {row.where}: class {name!r} has no image in the split 'train'"
                    f"{nearest(name, numbers)}"
                )
    _require_file(file, chosen[0])
    labels: list[Label] = [tuple(sorted(numbers[name] for name in row.classes)) for row in chosen]
    if not several:
        labels = [numbers[row.classes[0]] for row in chosen]
    return CsvSource(
        name=printable(file.stem),
        split=split,
        class_names=class_names,
        multi_label=several,
        root=str(file.parent),
        files=tuple(row.file for row in chosen),
        labels=tuple(labels),
    )


def prepare(path: str, data_dir: str | None = None) -> str:
    """Checks the list; see `jaxcls.data.sources.prepare_source`."""
    del data_dir
    file = local_path(path)
    rows = read_rows(file, several=True)
    splits = _splits(rows, several=True, test_share=0, seed=0)
    sizes = describe_splits({name: split for name, split in splits.items() if split.files})
    classes = {name for row in rows for name in row.classes}
    return f"{printable(file)} is ready: {len(classes)} classes, {sizes}"


# The lines of the file


def read_rows(file: Path, *, several: bool) -> list[Row]:
    """Reads the list.

    Args:
      file: the list.
      several: whether an image may have several classes or none.

    Raises:
      DataError: it cannot be read, is empty, or a line is wrong.
    """
    try:
        # The name of a photo may not be UTF-8.
        text = file.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise DataError(
            f"data.source: {str(file)!r} cannot be read ({error.strerror}); name a CSV or JSON "
            f"file with the columns file and label"
        ) from error
    suffix = file.suffix.lower()
    if suffix in (".json", ".jsonl", ".ndjson"):
        entries = _json_entries(file, text, lines=suffix != ".json")
    else:
        entries = _csv_entries(file, text, delimiter=_DELIMITERS.get(suffix, ","))
    rows = [_row(where, values, several=several) for where, values in entries]
    if not rows:
        raise DataError(f"data.source: {file} lists no images")
    _require_once(rows)
    return rows


def _csv_entries(file: Path, text: str, *, delimiter: str) -> Iterator[tuple[str, dict[str, Any]]]:
    csv.field_size_limit(_FIELD)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        before = lines.line_num
        try:
            cells = next(lines, None)
        except csv.Error as error:
            raise DataError(f"data.source: {file}, line {before + 1}: {error}") from error
        if cells is None:
            break
        if not any(cell.strip() for cell in cells):
            continue  # an empty line
        if header is None:
            header = _header(file, cells, delimiter=delimiter)
            continue
        where = f"{file}, line {before + 1}"
        if len(cells) != len(header):
            raise DataError(
                f"data.source: {where}: {len(cells)} cells, but the header has {len(header)} "
                f"({', '.join(header)}); put a text that has a comma in double quotes"
            )
        yield where, dict(zip(header, cells, strict=True))
    if header is None:
        raise DataError(f"data.source: {file} is empty; its first line must be file,label")


def _header(file: Path, cells: Sequence[str], *, delimiter: str) -> list[str]:
    header = [cell.strip().lower() for cell in cells]
    for name in ("file", "label"):
        if header.count(name) == 1:
            continue
        other = next((char for char in ";\t," if char != delimiter and char in cells[0]), None)
        hint = ""
        if other is not None:
            wanted = "commas" if delimiter == "," else "tabs"
            hint = f"; its columns must be separated by {wanted}, not by {other!r}"
        raise DataError(
            f"data.source: {file}: the first line must name a column {name!r} once, and names "
            f"{', '.join(map(repr, map(printable, header)))}{hint}"
        )
    return header


def _json_entries(file: Path, text: str, *, lines: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    def parsed(part: str, where: str) -> Any:
        try:
            return parse_json(part)
        except ValueError as error:
            raise DataError(f"data.source: {where} is not JSON ({one_line(error)})") from error

    if lines:
        numbered = [
            (f"{file}, line {number}", parsed(line, f"{file}, line {number}"))
            for number, line in enumerate(text.splitlines(), start=1)
            if line.strip()
        ]
    else:
        entries = parsed(text, str(file))
        if not isinstance(entries, list):
            raise DataError(f"data.source: {file} must be a list of objects with file and label")
        numbered = [(f"{file}, entry {number}", entry) for number, entry in enumerate(entries, 1)]
    for where, entry in numbered:
        if not isinstance(entry, dict):
            raise DataError(f"data.source: {where} must be an object with file and label")
        yield where, entry


def _row(where: str, values: dict[str, Any], *, several: bool) -> Row:
    file, split = values.get("file"), values.get("split")
    if not isinstance(file, str) or not _is_path(file):
        raise DataError(f"data.source: {where}: 'file' must be a path, got {_short(file)}")
    if split is not None and (not isinstance(split, str) or not split.strip()):
        raise DataError(f"data.source: {where}: 'split' must be a name, got {_short(split)}")
    label = values.get("label")
    texts = label if isinstance(label, list) else [label]
    names = []
    for text in texts:
        if isinstance(text, bool) or not isinstance(text, str | int) or isinstance(text, float):
            raise DataError(
                f"data.source: {where}: 'label' must be a class name, or with several a list of "
                f"them, got {_short(label)}"
            )
        parts = str(text).split(SEPARATOR) if not isinstance(label, list) else [str(text)]
        names += [composed(printable(part.strip())) for part in parts if part.strip()]
    names = list(dict.fromkeys(names))
    if not several and len(names) != 1:
        problem = f"has {len(names)} classes ({', '.join(names)})" if names else "has no class"
        raise DataError(
            f"data.source: {where}: the image {problem}; give it one, or set data.labels to "
            f"multiple if images may have any number of them"
        )
    return Row(where, file, tuple(names), None if split is None else composed(split.strip()))


def _is_path(text: str) -> bool:
    try:
        return bool(text) and b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:  # half of a pair of surrogates, in JSON
        return False


def _short(value: Any) -> str:
    text = printable(repr(value) if not isinstance(value, dict | list) else json.dumps(value))
    return text if len(text) <= 80 else f"{text[:77]}..."


def _require_once(rows: Sequence[Row]) -> None:
    """Checks that each file is listed once, so that none is in two splits or has two labels."""
    first: dict[str, Row] = {}
    for row in rows:
        path = os.path.normpath(row.file)
        if path in first:
            raise DataError(
                f"data.source: {row.where}: {printable(row.file)!r} is listed already "
                f"({first[path].where.rpartition(', ')[2]}); list each image once"
            )
        first[path] = row


def _require_file(file: Path, row: Row) -> None:
    """Checks that the first image exists, in case all paths are relative to another folder."""
    path = file.parent / row.file
    try:
        path.stat()
    except OSError as error:
        raise DataError(
            f"data.source: {row.where}: {printable(path)!r} cannot be read ({error.strerror}); "
            f"paths are relative to the folder of the list"
        ) from error


# Splits and classes


def _splits(
    rows: Sequence[Row], *, several: bool, test_share: float, seed: int
) -> dict[str, FileSplit[Row]]:
    by_file = {row.file: row for row in rows}
    by_split: dict[str, dict[str, list[str]]] = collections.defaultdict(
        lambda: collections.defaultdict(list)
    )
    without = [row for row in rows if row.split is None]
    if without and len(without) < len(rows):
        raise DataError(
            f"data.source: {without[0].where}: 'split' is missing, but other images have one"
        )
    for row in rows:
        by_split[row.split or ""]["" if several else row.classes[0]].append(row.file)
    if not without:
        return {
            name: FileSplit(tuple((file, by_file[file]) for _, file, _ in spread(found, seed)))
            for name, found in sorted(by_split.items())
        }
    placed = spread(by_split[""], seed)
    classes = {row.file: row.classes for row in rows}
    parts = train_and_test(placed, test_share=test_share, classes=classes)
    return {
        name: FileSplit(tuple((file, by_file[file]) for file, _ in part))
        for name, part in zip(("train", "test"), parts, strict=True)
    }


def _class_names(file: Path, train: FileSplit[Row], *, several: bool) -> tuple[str, ...]:
    names = {name for _, row in train.files for name in row.classes}
    if len(names) < (1 if several else 2):
        raise DataError(
            f"data.source: the split 'train' of {file} has {len(names) or 'no'} "
            f"class{'' if len(names) == 1 else 'es'}; a classifier needs two or more"
        )
    return tuple(sorted(names))
