import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from jaxcls.runs.data_digests import (
    describe_changes,
    digest_of_all,
    record_digests,
    recorded_digests,
)
from jaxcls.runs.directory import RunError

NAMES = ("train/cat/1.png", "a b  c", "# not a comment", "back\\slash\\n", "new\nline", "caf\udce9")


def digests_of(names: tuple[str, ...] = NAMES) -> dict[str, str]:
    return {name: hashlib.sha256(os.fsencode(name)).hexdigest() for name in names}


def test_what_is_recorded_is_read_back_whatever_the_names(tmp_path: Path) -> None:
    assert recorded_digests(tmp_path) is None
    record_digests(tmp_path, digests_of())
    assert recorded_digests(tmp_path) == digests_of()


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="sha256sum is not installed")
def test_sha256sum_checks_the_record(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for name in NAMES:
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_bytes(os.fsencode(name))
    record_digests(tmp_path, digests_of())
    command = ["sha256sum", "--check", "--quiet", "../data_sha256.txt"]
    check = subprocess.run(command, cwd=data, capture_output=True, text=True, check=False)
    assert (check.returncode, check.stdout, check.stderr) == (0, "", "")
    (data / "a b  c").write_bytes(b"other")
    check = subprocess.run(command, cwd=data, capture_output=True, text=True, check=False)
    assert (check.returncode, check.stdout) == (1, "a b  c: FAILED\n")


def test_the_digest_of_all_depends_on_names_and_contents_but_not_on_their_order() -> None:
    digests = digests_of()
    assert digest_of_all(dict(reversed(digests.items()))) == digest_of_all(digests)
    others = [
        digests | {NAMES[0]: digests[NAMES[1]]},
        {name: digest for name, digest in digests.items() if name != NAMES[0]},
        digests | {NAMES[0]: digests[NAMES[1]], NAMES[1]: digests[NAMES[0]]},
    ]
    assert len({digest_of_all(some) for some in (digests, *others)}) == 4


def test_a_damaged_record_is_not_taken_for_a_change_of_the_data(tmp_path: Path) -> None:
    record_digests(tmp_path, digests_of())
    record = tmp_path / "data_sha256.txt"
    whole = record.read_bytes()
    for place in range(0, 8 * len(whole), 7):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        record.write_bytes(damaged)
        with pytest.raises(RunError, match=r"data_sha256\.txt is damaged.*delete it"):
            recorded_digests(tmp_path)
    for damaged in (b"", whole[:-1], whole[: len(whole) // 2], b"\n" + whole):
        record.write_bytes(damaged)
        with pytest.raises(RunError, match="is damaged"):
            recorded_digests(tmp_path)
    record.unlink()
    record.mkdir()
    with pytest.raises(RunError, match="cannot be read: Is a directory"):
        recorded_digests(tmp_path)


def test_changes_name_some_of_the_files() -> None:
    before = {f"{number}.png": str(number) for number in range(9)} | {"caf\udce9": "old"}
    assert describe_changes(before, before) == []
    after = {f"{number}.png": str(10 * number) for number in range(9)} | {"new": "new"}
    assert describe_changes(before, after) == [
        "content of the data: 8 files changed: '1.png', '2.png', '3.png', '4.png', '5.png' and 3 "
        "more",
        "content of the data: 1 file gone: 'caf\\xe9'",
        "content of the data: 1 file new: 'new'",
    ]
