"""The list of a folder's images is never out of date, unless one asks for the last one."""

import datetime
import json
import os
import shutil
import tarfile

import pytest

from jaxcls.config import DataConfig
from jaxcls.data import folder_index
from jaxcls.data.folder_index import index_folder
from jaxcls.data.listing import list_images
from jaxcls.data.sources import open_source, prepare_source
from jaxcls.system.caches import make_cache_dir

LISTING = {
    "made": "2026-11-30T00:00:00+00:00",
    "folders": ["a", "b"],
    "files": ["a/0000.png", "b/0002.png"],
    "left_out": {"links": {"count": 1, "example": "x"}},
    "unreadable": {},
}


def set_times(root, time=1_700_000_000):
    for folder, _, files in os.walk(root):
        for path in (folder, *(os.path.join(folder, file) for file in files)):
            os.utime(path, (time, time))


@pytest.mark.parametrize(
    "change",
    [
        lambda root: shutil.copy(root / "a/0000.png", root / "a/new.png"),
        lambda root: shutil.copytree(root / "b", root / "a/deep/new"),
        lambda root: (root / "a/0000.png").unlink(),
        lambda root: shutil.rmtree(root / "b/deep"),
        lambda root: (root / "a/0000.png").rename(root / "a/other.png"),
        lambda root: (root / "a/0000.png").rename(root / "a/0000.txt"),
        lambda root: (root / "b").rename(root / "c"),
        lambda root: [(root / "a/0000.png").unlink(), (root / "a/0000.png").mkdir()],
        lambda root: (root / "a/link").symlink_to("../b"),
    ],
)
def test_a_change_is_seen_though_all_times_stand_still(make_photos, monkeypatch, change):
    """As tar, rsync, cp -a and unzip set times back, and network disks have none of their own."""
    root = make_photos({"a": 2, "b/deep": 2})
    set_times(root)
    before = index_folder(root)
    change(root)
    set_times(root)
    # On such disks ctime, inode and size of a folder are no evidence, either.
    monkeypatch.setattr(os, "stat", lambda path, **_: constant(path))
    after = index_folder(root)
    assert after != before
    assert after == list_images(root)


real_stat = os.stat


def constant(path):
    values = list(real_stat(path))
    return os.stat_result([values[0], 0, 0, 1, *values[4:6], 0, 0, 0, 0])


def test_a_second_part_of_an_archive_is_seen(make_photos, tmp_path):
    root = make_photos({"a": 4, "b": 4})
    set_times(root)
    parts = {"1.tar": ("0000", "0001", "0004", "0005"), "2.tar": ("0002", "0003", "0006", "0007")}
    for part, names in parts.items():
        with tarfile.open(tmp_path / part, "w") as archive:
            archive.add(
                root,
                "all",
                filter=lambda entry, names=names: (
                    entry if entry.isdir() or any(name in entry.name for name in names) else None
                ),
            )
    data = DataConfig(source=f"folder:{tmp_path}/all", test_share=0.5)
    for part, count in (("1.tar", 4), ("2.tar", 8)):
        with tarfile.open(tmp_path / part) as archive:
            archive.extractall(tmp_path, filter="tar")
        assert len(open_source(data, "train+test")) == count


def test_a_file_that_was_replaced_is_read_anew(make_photos):
    root = make_photos({"a": 2, "b": 2})
    data = DataConfig(source=f"folder:{root}", test_share=0, folder_index="reuse")
    open_source(data, "train")
    for file in root.rglob("*.png"):
        file.write_bytes(b"another")
    set_times(root)
    source = open_source(data, "train")
    assert {source[index].image for index in range(4)} == {b"another"}


def test_the_last_list_is_reused_on_request_and_says_when_it_was_made(make_photos, caplog):
    root = make_photos({"a": 2, "b": 2})
    reuse = DataConfig(source=f"folder:{root}", test_share=0, folder_index="reuse")
    before = datetime.datetime.now().astimezone().replace(microsecond=0)
    assert len(open_source(reuse, "train")) == 4  # there is none yet
    assert not caplog.records
    shutil.copy(root / "a/0000.png", root / "a/new.png")
    assert len(open_source(reuse, "train")) == 4
    (line,) = [record.getMessage() for record in caplog.records]
    prefix, _, rest = line.partition(" was made on ")
    when, _, advice = rest.partition(" and ")
    assert prefix == f"{root}: the list of its 4 images"
    made = datetime.datetime.strptime(when, "%Y-%m-%d at %H:%M:%S").astimezone()
    assert before <= made <= datetime.datetime.now().astimezone()
    assert advice == "may be out of date; --data.folder-index rebuild makes a new one"
    rebuild = DataConfig(source=f"folder:{root}", test_share=0, folder_index="rebuild")
    assert len(open_source(rebuild, "train")) == 5
    assert len(open_source(reuse, "train")) == 5


def test_prepare_makes_the_list_anew(make_photos):
    root = make_photos({"a": 2, "b": 2})
    prepare_source(f"folder:{root}")
    shutil.copy(root / "a/0000.png", root / "a/new.png")
    assert "train 5" in prepare_source(f"folder:{root}")
    assert len(index_folder(root, reuse=True).files) == 5


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[]", '{"folders": {}}', '{"left_out": []}'),
        *(
            json.dumps(LISTING | changes)
            for changes in (
                {"folders": ["a", "b", 3]},
                {"folders": ["a"]},  # not all folders of the files
                {"files": ["a/0000.png", "/etc/x.png"]},
                {"files": ["a/0000.png", "../x.png"]},
                {"files": ["a/0000.png", ""]},
                {"files": ["a/0000.png", "a/\ud800.png"]},
                {"left_out": {"links": {"count": "1", "example": "x"}}},
                {"left_out": {"links": {"count": 1, "example": None}}},
            )
        ),
    ],
)
def test_a_damaged_list_is_made_anew(make_photos, content):
    root = make_photos({"a": 2, "b": 2})
    expected = index_folder(root)
    index = folder_index._index_file(root)
    assert index.is_relative_to(make_cache_dir())
    assert index.is_file()
    index.write_text(content)
    assert index_folder(root, reuse=True) == expected
    assert folder_index._read(index)
    index.write_text(json.dumps(LISTING))
    assert index_folder(root, reuse=True).files == tuple(LISTING["files"])


def test_a_list_that_cannot_be_kept_does_not_matter(make_photos, monkeypatch, tmp_path):
    (tmp_path / "no_folder").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "no_folder"))
    root = make_photos({"a": 2, "b": 2})
    assert index_folder(root, reuse=True) == index_folder(root, reuse=True) == list_images(root)
