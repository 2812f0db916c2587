"""Files that appear completely or not at all."""

import subprocess
import sys
from pathlib import Path

import pytest

from jaxcls.system.whole_files import (
    create_whole,
    delete_temporary_files,
    replacing,
    try_writing,
    write_whole,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("content", ["text é\n", b"\x00\xff"])
def test_a_file_is_written_or_replaced(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "a"
    path.write_text("something longer, from before")
    write_whole(path, content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("kind", ["file", "folder", "nothing"])
def test_a_failure_leaves_only_what_was_there(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a"
    path.write_text("before")

    def write_half() -> None:
        with replacing(path) as temporary:
            if kind == "file":
                temporary.write_text("half")
            elif kind == "folder":
                temporary.mkdir()
                (temporary / "b").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert (names(tmp_path), path.read_text()) == (["a"], "before")


def test_a_folder_takes_the_place_of_an_empty_one(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.mkdir()
    with replacing(path) as temporary:
        temporary.mkdir()
        (temporary / "b").write_text("whole")
    assert (names(tmp_path), names(path)) == (["a"], ["b"])


def test_a_new_file_is_created_once(tmp_path: Path) -> None:
    assert create_whole(tmp_path / "a", "first")
    assert not create_whole(tmp_path / "a", "second")
    assert ((tmp_path / "a").read_text(), names(tmp_path)) == ("first", ["a"])


def test_a_trial_leaves_nothing_and_names_what_fails(tmp_path: Path) -> None:
    try_writing(tmp_path / "a")
    assert names(tmp_path) == []
    with pytest.raises(FileNotFoundError):
        try_writing(tmp_path / "gone/a")


def test_what_a_killed_process_left_is_deleted_and_nothing_else(tmp_path: Path) -> None:
    program = f"""
import os
from pathlib import Path
from jaxcls.system.whole_files import replacing
with replacing(Path({str(tmp_path / "verified.json")!r})) as temporary:
    temporary.write_text("{{")
    os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 9
    kept = [".hidden", ".notes.20250101", "a.0123abcd.jaxcls-tmp", ".git"]
    for name in kept:
        (tmp_path / name).write_text("")
    assert len(names(tmp_path)) == len(kept) + 1
    delete_temporary_files(tmp_path)
    assert names(tmp_path) == sorted(kept)
    delete_temporary_files(tmp_path / "missing")
