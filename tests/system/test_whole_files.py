"""Files that appear completely or not at all."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxcls.system.whole_files import (
    UNCHANGED_SECONDS,
    create_whole,
    delete_temporary_files,
    replacing,
    replacing_folder,
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


FILLING = """
import sys
from pathlib import Path
from jaxcls.system.whole_files import replacing_folder
with replacing_folder(Path(sys.argv[1])) as temporary:
    (temporary / "half").mkdir()
    (temporary / "half/a").write_text("{")
    print(temporary.name, flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def filling(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that fills a folder for tmp_path / "out"."""
    process = subprocess.Popen(
        [sys.executable, "-c", FILLING, str(tmp_path / "out")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith(".out.")
    yield process
    process.kill()
    process.communicate()


def fill(path: Path) -> None:
    with replacing_folder(path) as temporary:
        (temporary / "b").write_text("whole")


def test_a_folder_that_a_killed_process_left_is_deleted_by_the_next(
    tmp_path: Path, filling: subprocess.Popen[str]
) -> None:
    kept = [".other.0123abcd.jaxcls-tmp", ".out.0123abcd", "out.0123abcd.jaxcls-tmp"]
    for name in kept:
        (tmp_path / name).mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".out.00000000.jaxcls-tmp").symlink_to(tmp_path / "elsewhere")
    filling.kill()
    filling.wait()
    fill(tmp_path / "out")
    assert names(tmp_path) == sorted([*kept, ".out.00000000.jaxcls-tmp", "elsewhere", "out"])
    assert names(tmp_path / "out") == ["b"]


def test_a_folder_that_another_process_fills_stays(
    tmp_path: Path, filling: subprocess.Popen[str]
) -> None:
    (temporary,) = names(tmp_path)
    fill(tmp_path / "out")
    assert names(tmp_path) == [temporary, "out"]
    assert "half" in names(tmp_path / temporary)
    (tmp_path / "out/b").unlink()
    filling.communicate("\n")
    assert filling.returncode == 0
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["half"]


@pytest.mark.parametrize("mark", ["another system", None])
@pytest.mark.parametrize("age", [0, UNCHANGED_SECONDS - 60, UNCHANGED_SECONDS + 60])
def test_a_folder_of_another_machine_is_deleted_once_it_has_not_changed_for_long(
    tmp_path: Path, mark: str | None, age: float
) -> None:
    left = tmp_path / ".out.0123abcd.jaxcls-tmp"
    (left / "half").mkdir(parents=True)
    (left / "half/a").write_text("{")
    if mark is not None:
        (left / ".written-by").write_text(mark)
    long_ago = time.time() - 2 * UNCHANGED_SECONDS
    for path in (*left.rglob("*"), left):
        os.utime(path, (long_ago, long_ago))
    newest = time.time() - age
    os.utime(left / "half/a", (newest, newest))
    fill(tmp_path / "out")
    assert left.exists() == (age < UNCHANGED_SECONDS)


def test_the_parents_of_a_folder_are_made_and_a_failure_leaves_nothing_in_them(
    tmp_path: Path,
) -> None:
    fill(tmp_path / "new/out")
    assert names(tmp_path / "new/out") == ["b"]

    def fail() -> None:
        with replacing_folder(tmp_path / "new/other") as temporary:
            (temporary / "half").write_text("{")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert names(tmp_path / "new") == ["out"]
