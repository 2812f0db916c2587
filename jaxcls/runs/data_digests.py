"""The digests of a run's data in data_sha256.txt, as `sha256sum` writes and checks them.

The first line is a comment with the digest of the other lines, so that damage to the record is not
taken for a change of the data.
"""

import hashlib
import os
import re
from collections.abc import Iterable, Mapping

from jaxcls.runs.directory import RunError, not_readable, writing
from jaxcls.system.file_names import printable
from jaxcls.system.paths import RunPath
from jaxcls.system.whole_files import write_whole

DIGESTS_FILE = "data_sha256.txt"

_HEADER = b"# SHA-256 of the lines below: "
_ESCAPES = {"\\": "\\\\", "\n": "\\n", "\r": "\\r"}
_LETTERS = {escape: letter for letter, escape in _ESCAPES.items()}
_SHOWN = 5  # names of files in a message


def record_digests(run: RunPath, digests: Mapping[str, str]) -> None:
    """Writes data_sha256.txt.

    Raises:
      RunError: the directory cannot be written.
    """
    lines = _lines(digests)
    with writing(run):
        write_whole(run / DIGESTS_FILE, _HEADER + _hex(lines) + b"\n" + lines)


def recorded_digests(run: RunPath) -> dict[str, str] | None:
    """Reads data_sha256.txt: name of each file -> digest of its content; None if there is none.

    Raises:
      RunError: it is damaged, or cannot be read.
    """
    try:
        text = (run / DIGESTS_FILE).read_bytes()
    except FileNotFoundError:
        return None
    except Exception as error:  # errors of a bucket have many types
        raise not_readable(run, error) from error
    header, _, lines = text.partition(b"\n")
    if header != _HEADER + _hex(lines):
        raise RunError(
            f"{run / DIGESTS_FILE} is damaged, so nobody knows whether the data have changed since "
            f"the run recorded them; delete it to continue with the data as they are now"
        )
    return dict(map(_parse, os.fsdecode(lines).split("\n")[:-1]))


def digest_of_all(digests: Mapping[str, str]) -> str:
    """One digest of the names and contents of all files, in whatever order they were listed."""
    return _hex(_lines(digests)).decode()


def describe_changes(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Describes for the user how the files of the data have changed; empty if they have not."""
    both = before.keys() & after.keys()
    kinds = {
        "changed": {name for name in both if before[name] != after[name]},
        "gone": before.keys() - both,
        "new": after.keys() - both,
    }
    return [
        f"content of the data: {len(names):,} file{'s' * (len(names) > 1)} {kind}: {_some(names)}"
        for kind, names in kinds.items()
        if names
    ]


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - _SHOWN:,} more" if len(listed) > _SHOWN else ""
    return ", ".join(f"'{printable(name)}'" for name in listed[:_SHOWN]) + more


def _lines(digests: Mapping[str, str]) -> bytes:
    return b"".join(_line(name, digests[name]) for name in sorted(digests))


def _line(name: str, digest: str) -> bytes:
    escaped = "".join(_ESCAPES.get(letter, letter) for letter in name)
    mark = "\\" if escaped != name else ""
    return os.fsencode(f"{mark}{digest}  {escaped}\n")


def _parse(line: str) -> tuple[str, str]:
    digest, _, name = line.partition("  ")
    if digest.startswith("\\"):
        digest = digest.removeprefix("\\")
        name = re.sub(r"\\[\\nr]", lambda escape: _LETTERS[escape[0]], name)
    return name, digest


def _hex(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest().encode()
