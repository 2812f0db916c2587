"""Which images and labels a tar file holds, and where: the index of a shard.

An example is a run of members with the same key, as in WebDataset: the key is the path up to the
first dot of its last part, and the rest is the kind, such as jpg. The index is saved in the cache,
because reading the headers of a large shard takes seconds, and is made again if the size or the
time of the shard has changed.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxcls.data.formats import IMAGE_SUFFIXES
from jaxcls.system.caches import make_cache_dir
from jaxcls.system.errors import DataError, one_line
from jaxcls.system.file_names import printable
from jaxcls.system.json_text import parse_json
from jaxcls.system.permissions import make_private
from jaxcls.system.whole_files import write_whole

VERSION = 1
_MOST_LABEL_BYTES = 2**16
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclasses.dataclass(frozen=True)
class Entry:
    """An example in a shard.

    Attributes:
      key: its key.
      offset: where the content of its image begins, in bytes.
      size: the length of the image in bytes.
      labels: its class names, as stored.
    """

    key: str
    offset: int
    size: int
    labels: tuple[str, ...]


def shard_entries(shard: Path) -> list[Entry]:
    """The examples of a shard in order, from its saved index if that is up to date.

    Raises:
      DataError: the shard cannot be read, is damaged or compressed, or an example is not complete.
    """
    try:
        status = os.stat(shard)
    except OSError as error:
        raise DataError(f"data.source: {shard} cannot be read ({error.strerror})") from error
    stamp = [VERSION, status.st_size, status.st_mtime_ns]
    index = _index_file(shard)
    saved = _read(index, stamp, size=status.st_size)
    if saved is not None:
        return saved
    entries = list(_scan(shard))
    with contextlib.suppress(OSError):  # if it cannot be saved, the next start makes it again
        make_private(index.parent)
        rows = [dataclasses.astuple(entry) for entry in entries]
        write_whole(index, json.dumps({"stamp": stamp, "entries": rows}))
    return entries


def _index_file(shard: Path) -> Path:
    name = hashlib.sha256(os.fsencode(shard.resolve())).hexdigest()[:16]
    return make_cache_dir() / "shards" / f"{name}.json"


def _read(index: Path, stamp: list[int], *, size: int) -> list[Entry] | None:
    """The entries of a saved index; None if it is missing, out of date or cannot be used."""
    try:
        values = parse_json(index.read_bytes())
        if values["stamp"] != stamp:
            return None
        entries = [Entry(key, at, count, tuple(labels)) for key, at, count, labels in
                   values["entries"]]  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return entries if all(_is_entry(entry, size) for entry in entries) else None


def _is_entry(entry: Entry, size: int) -> bool:
    numbers = type(entry.offset) is int and type(entry.size) is int
    texts = all(isinstance(text, str) for text in (entry.key, *entry.labels))
    return numbers and texts and 0 <= entry.offset <= entry.offset + entry.size <= size


# Reading the headers


def _scan(shard: Path) -> Iterator[Entry]:
    try:
        with shard.open("rb") as file:
            start = file.read(6)
    except OSError as error:
        raise DataError(f"data.source: {shard} cannot be read ({error.strerror})") from error
    for magic, kind in _COMPRESSED.items():
        if start.startswith(magic):
            raise DataError(
                f"data.source: {shard} is compressed with {kind}, so its images cannot be read one "
                f"by one; decompress it once, and name the .tar file"
            )
    seen: set[str] = set()
    try:
        with tarfile.open(shard, "r:") as archive:
            for key, members in _examples(archive):
                where = f"{shard}: example {printable(key)!r}"
                if key in seen:
                    raise DataError(
                        f"data.source: {where} comes twice; the members of an example must follow "
                        f"one another"
                    )
                seen.add(key)
                yield _entry(archive, key, members, where)
            _require_end(archive)
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"data.source: {shard} is damaged, cut off or no tar file ({one_line(error)}); copy it "
            f"again"
        ) from error


def _require_end(archive: tarfile.TarFile) -> None:
    """Checks that zeros mark the end, as the tar format demands: else members may be missing."""
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("its end is missing")


def _examples(archive: tarfile.TarFile) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """Yields the key of each run of members, and its members by kind."""
    current: str | None = None
    members: dict[str, tarfile.TarInfo] = {}
    for member in archive:
        folder, slash, name = member.name.rpartition("/")
        stem, dot, kind = name.partition(".")
        if not member.isreg() or not stem or not dot:
            continue  # folders, links, and files without a kind or with a hidden name
        key = folder + slash + stem
        if key != current and current is not None:
            yield current, members
            members = {}
        current = key
        members[kind.lower()] = member
    if current is not None:
        yield current, members


def _entry(
    archive: tarfile.TarFile, key: str, members: dict[str, tarfile.TarInfo], where: str
) -> Entry:
    images = [kind for kind in members if f".{kind}" in IMAGE_SUFFIXES]
    if len(images) != 1:
        found = ", ".join(printable(kind) for kind in sorted(members))
        raise DataError(
            f"data.source: {where} has {len(images) or 'no'} image{'s' * (len(images) != 1)} "
            f"(members: {found}); it needs one, and a label"
        )
    image = members[images[0]]
    if image.issparse():
        raise DataError(f"data.source: {where} is a sparse member; make the tar file without them")
    return Entry(key, image.offset_data, image.size, _labels(archive, members, where))


def _labels(
    archive: tarfile.TarFile, members: dict[str, tarfile.TarInfo], where: str
) -> tuple[str, ...]:
    """The class names in the member cls, or under "label" in the member json."""
    kind = next((kind for kind in ("cls", "json") if kind in members), None)
    if kind is None:
        raise DataError(
            f"data.source: {where} has no label; it needs a member .cls (a class), or .json with "
            f'"label"'
        )
    if members[kind].size > _MOST_LABEL_BYTES:
        raise DataError(f"data.source: {where}: the member .{kind} is too long for a label")
    file = archive.extractfile(members[kind])
    assert file is not None, "a regular member"
    content = file.read()
    value: Any
    try:
        value = parse_json(content).get("label") if kind == "json" else content.decode().strip()
    except (ValueError, AttributeError) as error:
        raise DataError(
            f"data.source: {where}: the member .{kind} is damaged ({one_line(error)})"
        ) from error
    if value is None:
        raise DataError(
            f'data.source: {where} has no label; its member .json needs one under "label"'
        )
    values = value if isinstance(value, list) else [value]
    if not all(map(_is_label, values)):
        raise DataError(
            f"data.source: {where}: the label must be a class name or number, or with several a "
            f"list of them, got {printable(repr(value))[:80]}"
        )
    return tuple(dict.fromkeys(str(one).strip() for one in values))


def _is_label(value: Any) -> bool:
    number_or_text = isinstance(value, str | int) and not isinstance(value, bool)
    return number_or_text and str(value).strip() != ""
