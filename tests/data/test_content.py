import os
import threading
from pathlib import Path

import pytest

from jaxcls.config import DataConfig
from jaxcls.data import content
from jaxcls.data.content import read_content
from jaxcls.data.sources import open_source
from jaxcls.system.errors import DataError


def write_files(folder: Path, contents: dict[str, bytes]) -> dict[str, Path]:
    for name, data in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return {name: folder / name for name in contents}


def test_digests_are_those_of_sha256(tmp_path: Path) -> None:
    found = read_content(write_files(tmp_path, {"empty": b"", "a/abc": b"abc"}))
    assert found.digests == {
        "empty": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "a/abc": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    }
    assert found.num_bytes == 3
    assert str(found).startswith("2 files (0.0 MB in 0.0 s, ")


def test_digests_depend_on_names_and_content_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = {f"{number}.png": bytes([number]) * 3000 for number in range(50)}
    first = read_content(write_files(tmp_path / "here", contents)).digests
    there = write_files(tmp_path / "there", dict(reversed(contents.items())))
    for path in there.values():
        os.utime(path, (7, 7))
    monkeypatch.setattr(content, "_PIECE_BYTES", 7)
    monkeypatch.setattr(content, "_THREADS", 1)
    assert read_content(there).digests == first
    (tmp_path / "there/7.png").write_bytes(bytes([7]) * 2999 + b"8")
    again = read_content(there).digests
    assert {name for name in first if first[name] != again[name]} == {"7.png"}


def test_files_are_read_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write_files(tmp_path, {str(number): b"" for number in range(64)})
    together = threading.Barrier(8)
    real = Path.open

    def wait_and_open(path: Path, mode: str) -> object:
        together.wait(timeout=20)  # for seven other readers
        return real(path, mode)

    monkeypatch.setattr(Path, "open", wait_and_open)
    assert len(read_content(files).digests) == 64


@pytest.mark.parametrize("count", [1, 5, 1000])
def test_progress_is_noted_equally_often_for_equally_many_files(tmp_path: Path, count: int) -> None:
    calls = []
    for data in (b"a", b"b" * 5000):
        notes: list[None] = []
        files = write_files(tmp_path, {str(number): data for number in range(count)})
        read_content(files, note_progress=lambda notes=notes: notes.append(None))
        calls.append(len(notes))
    assert calls[0] == calls[1] > min(count, 100) // 2


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    files = write_files(tmp_path, {"a": b"a", "caf\udce9": b"b"})
    files["caf\udce9"].unlink()
    with pytest.raises(DataError, match=r"caf\\xe9' cannot be read \(No such file") as error:
        read_content(files)
    assert "data.verify" in str(error.value)


def test_a_folder_is_stored_in_its_images(make_photos) -> None:
    root = make_photos({"train/dog": 2, "train/cat": 3, "test/dog": 1, "test/cat": 1})
    (root / "train/notes.txt").touch()
    source = open_source(DataConfig(source=f"folder:{root}"), "train[:80%]")
    files = source.stored_files()
    assert len(files) == 4
    for name, path in files.items():
        assert path == root / name
        assert name.startswith(("train/cat/", "train/dog/"))


def test_a_prepared_set_is_stored_in_the_shards_of_its_split(make_set) -> None:
    folder = make_set()
    data = DataConfig(source="tfds:photos", data_dir=str(folder.parents[1]))
    for split, names in {
        "train[:50%]": ["train"],
        "train+validation": ["train", "validation"],
    }.items():
        files = open_source(data, split).stored_files()
        assert sorted(files) == [f"photos-{name}.array_record-00000-of-00001" for name in names]
        assert all(Path(path) == folder / name for name, path in files.items())
