"""Images and labels in tar files, as WebDataset stores them: webdataset:SHARDS.

SHARDS is a folder of .tar files, or a pattern such as photos-{000..009}.tar or photos-*.tar. In a
folder the shards NAME-NUMBER.tar are the split NAME, if there is a split `train`. Otherwise the
examples are split into `train` and `test` as those of folder:PATH are.

An index of each shard (`jaxcls.data.tar_index`) gives access to any example, so the order of the
data is a function of seed and step here, too, and a run resumes anywhere. (WebDataset itself reads
shards from end to end, and its order depends on the workers.)
"""

import collections
import dataclasses
import glob
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from jaxcls.config.decoding import nearest
from jaxcls.data.labelled_files import FileSplit, spread, train_and_test
from jaxcls.data.source import Label, Record, Source
from jaxcls.data.splits import describe_splits, parse_split
from jaxcls.data.tar_index import Entry, shard_entries
from jaxcls.system.errors import DataError
from jaxcls.system.file_names import composed, printable
from jaxcls.system.links import has_wildcards
from jaxcls.system.paths import expand_home

if TYPE_CHECKING:
    from jaxcls.config import DataConfig

CLASSES_FILE = "classes.txt"
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_NUMBERED = re.compile(r"(.*?)[-_.]?\d+")
_MOST_SHARDS = 10**6

type Shards = dict[str, tuple[Path, list[Entry]]]  # by file name


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardSource(Source):
    """One split of a set of shards.

    Attributes:
      shards: the paths of the shards.
      places: for each example the number of its shard, and where its image lies in it.
      labels: the label of each example.
    """

    shards: tuple[str, ...]
    places: tuple[tuple[int, Entry], ...]
    labels: tuple[Label, ...]

    @property
    def identity(self) -> str:
        digest = hashlib.blake2b(digest_size=8)
        for (shard, entry), label in zip(self.places, self.labels, strict=True):
            name = os.path.basename(self.shards[shard])
            digest.update(repr((name, entry.key, entry.size, label)).encode())
        return f"{super().identity}, shards {digest.hexdigest()}"

    def all_labels(self) -> Sequence[Label]:
        return self.labels

    def describe(self, index: int) -> str:
        return f"image {self.example_name(index)!r}"

    def example_name(self, index: int) -> str:
        shard, entry = self.places[index]
        return f"{self.shards[shard]}:{entry.key}"

    def stored_files(self) -> dict[str, Path]:
        return {os.path.basename(shard): Path(shard) for shard in self.shards}

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Record:
        number, entry = self.places[index]
        try:
            with open(self.shards[number], "rb") as file:
                file.seek(entry.offset)
                image = file.read(entry.size)
        except OSError as error:
            raise DataError(
                f"{printable(self.describe(index))}: cannot be read ({error.strerror}); restore "
                f"the shard"
            ) from error
        if len(image) < entry.size:
            raise DataError(
                f"{printable(self.describe(index))}: the shard has been cut off; restore it"
            )
        return Record(image, self.labels[index])


def open_split(name: str, data: "DataConfig", split: str, *, field: str = "split") -> ShardSource:
    """Opens one split of a set of shards.

    Args:
      name: a folder or a pattern.
      data: `labels`, `test_share` and `split_seed`.
      split: in TFDS syntax.
      field: the name of the field that gave the split, for error messages.

    Raises:
      DataError: there are no such shards or no such split, a shard cannot be used, or an example
        has no class or, without data.labels "multiple", several.
    """
    paths = find_shards(name)
    shards = _read_shards(paths)
    several = data.labels == "multiple"
    if not several:
        _require_single(shards)
    splits = _splits(name, shards, test_share=data.test_share, seed=data.split_seed)
    chosen = [
        example
        for stored, part in parse_split(split, splits, name=printable(name), field=field)
        for example in splits[stored].files[part]
    ]
    given = _given_classes(paths[0].parent)
    class_names = given or _found_classes(name, splits["train"], several=several)
    numbers = {class_name: number for number, class_name in enumerate(class_names)}
    found = [_numbers(shard, entry, numbers, given=given is not None) for shard, entry in chosen]
    labels: list[Label] = [classes if several else classes[0] for classes in found]
    used = sorted({shard for shard, _ in chosen})
    places = {shard: number for number, shard in enumerate(used)}
    return ShardSource(
        name=printable(Path(name).name.removesuffix(".tar")),
        split=split,
        class_names=class_names,
        multi_label=several,
        shards=tuple(str(shards[shard][0]) for shard in used),
        places=tuple((places[shard], entry) for shard, entry in chosen),
        labels=tuple(labels),
    )


def prepare(name: str, data_dir: str | None = None) -> str:
    """Makes the index of each shard; see `jaxcls.data.sources.prepare_source`."""
    del data_dir
    shards = _read_shards(find_shards(name))
    splits = _splits(name, shards, test_share=0, seed=0)
    sizes = describe_splits({split: part for split, part in splits.items() if part.files})
    return f"{printable(name)} is ready: {len(shards):,} shards, {sizes}"


def find_shards(name: str) -> list[Path]:
    """The shards that a folder holds or a pattern names, sorted by name.

    Raises:
      DataError: there are none, one of a range is missing, or two have the same name.
    """
    pattern = expand_home(name)
    if os.path.isdir(pattern):
        found = sorted(Path(pattern).glob("*.tar"))
        problem = "has no .tar files"
    elif _RANGE.search(pattern):
        found = [Path(path) for path in _expand(pattern)]
        missing = [path for path in found if not path.is_file()]
        if missing:
            raise DataError(
                f"data.source: {len(missing):,} of the {len(found):,} shards {printable(name)!r} "
                f"are missing, the first {printable(missing[0])}"
            )
        problem = "names no files"
    else:
        found = [Path(path) for path in sorted(glob.glob(pattern)) if os.path.isfile(path)]
        if os.path.isfile(pattern):
            found = [Path(pattern)]
        problem = "matches no files" if has_wildcards(pattern) else "does not exist"
    if not found:
        raise DataError(
            f"data.source: {printable(name)!r} {problem}; name a folder of .tar files, or a "
            f"pattern such as photos-{{000..009}}.tar"
        )
    names = collections.Counter(path.name for path in found)
    twice = next((path for path, count in names.items() if count > 1), None)
    if twice is not None:
        raise DataError(f"data.source: two shards have the name {printable(twice)}; rename one")
    return found


def _expand(pattern: str) -> list[str]:
    """Replaces each {first..last} by its numbers, with the zeros of the first."""
    found = _RANGE.search(pattern)
    if found is None:
        return [pattern]
    first, last = found.groups()
    count = int(last) - int(first) + 1
    if not 0 < count <= _MOST_SHARDS:
        raise DataError(f"data.source: {found[0]} in {printable(pattern)!r} is no range of numbers")
    numbers = (f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1))
    return [
        path
        for number in numbers
        for path in _expand(pattern[: found.start()] + number + pattern[found.end() :])
    ]


def _read_shards(paths: Sequence[Path]) -> Shards:
    with ThreadPoolExecutor(8) as threads:
        entries = threads.map(shard_entries, paths)
        return {path.name: (path, found) for path, found in zip(paths, entries, strict=True)}


def _require_single(shards: Shards) -> None:
    for path, entries in shards.values():
        for entry in entries:
            if len(entry.labels) != 1:
                raise DataError(
                    f"data.source: {path}: example {printable(entry.key)!r} has "
                    f"{len(entry.labels)} classes; give it one, or set data.labels to multiple if "
                    f"images may have any number of them"
                )


def _splits(
    name: str, shards: Shards, *, test_share: float, seed: int
) -> dict[str, FileSplit[Entry]]:
    """The splits by name: those that shards are named after, or `train` and `test`."""
    named: dict[str, list[tuple[str, Entry]]] = collections.defaultdict(list)
    for shard, (path, entries) in shards.items():
        numbered = _NUMBERED.fullmatch(path.stem)
        named[composed(numbered[1] if numbered else path.stem)] += [(shard, e) for e in entries]
    if "train" in named and os.path.isdir(expand_home(name)):
        return {split: FileSplit(tuple(found)) for split, found in sorted(named.items())}
    examples = {f"{s}/{e.key}": (s, e) for found in named.values() for s, e in found}
    by_class: dict[str, list[str]] = collections.defaultdict(list)
    for key, (_, entry) in examples.items():
        by_class[entry.labels[0] if len(entry.labels) == 1 else ""].append(key)
    classes = {key: entry.labels for key, (_, entry) in examples.items()}
    parts = train_and_test(spread(by_class, seed), test_share=test_share, classes=classes)
    return {
        split: FileSplit(tuple(examples[key] for key, _ in part))
        for split, part in zip(("train", "test"), parts, strict=True)
    }


# Classes


def _given_classes(folder: Path) -> tuple[str, ...] | None:
    """The class names in classes.txt beside the shards, one a line; None without such a file."""
    path = folder / CLASSES_FILE
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"data.source: {path} cannot be read ({error})") from error
    names = tuple(composed(printable(line.strip())) for line in lines if line.strip())
    if len(set(names)) < len(names) or len(names) < 2:
        raise DataError(f"data.source: {path} must name two or more classes, each once, one a line")
    return names


def _found_classes(name: str, train: FileSplit[Entry], *, several: bool) -> tuple[str, ...]:
    """The labels of the training split, in the order of numbers if all are numbers."""
    labels = {label for _, entry in train.files for label in entry.labels}
    if len(labels) < (1 if several else 2):
        raise DataError(
            f"data.source: the split 'train' of {printable(name)} has {len(labels) or 'no'} "
            f"class{'' if len(labels) == 1 else 'es'}; a classifier needs two or more"
        )
    numeric = all(label.isdecimal() for label in labels)
    ordered = sorted(labels, key=int) if numeric else sorted(labels)
    return tuple(composed(printable(label)) for label in ordered)


def _numbers(
    shard: str, entry: Entry, numbers: Mapping[str, int], *, given: bool
) -> tuple[int, ...]:
    """The numbers of an example's classes; a number as a label counts the lines of classes.txt."""
    found = set()
    for label in entry.labels:
        name = composed(printable(label))
        if name in numbers:
            found.add(numbers[name])
        elif given and label.isdecimal() and int(label) < len(numbers):
            found.add(int(label))
        else:
            source = f"in {CLASSES_FILE}" if given else "in the split 'train'"
            raise DataError(
                f"data.source: {printable(shard)}: example {printable(entry.key)!r}: class "
                f"{name!r} is not {source}{nearest(name, numbers)}"
            )
    return tuple(sorted(found))
