"""What counts as an image of a folder, for training and prediction alike."""

import contextlib
import os
import socket
from pathlib import Path

import pytest

from jaxcls.data import listing
from jaxcls.data.formats import UNREADABLE_FORMATS
from jaxcls.data.listing import (
    BACK,
    HIDDEN,
    NOWHERE,
    OTHER,
    SPECIAL,
    LeftOut,
    Listing,
    describe_left_out,
    is_hidden,
    list_images,
)


@pytest.fixture
def make(tmp_path):
    """Makes empty files below a folder, and what else a test calls for."""

    def make(*files, links=None):
        root = tmp_path / "photos"
        for file in files:
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).touch()
        for link, target in (links or {}).items():
            (root / link).parent.mkdir(parents=True, exist_ok=True)
            (root / link).symlink_to(target)
        return root

    return make


def test_images_are_told_by_their_names_in_any_case_and_at_any_depth(make):
    root = make("b.JPG", "a/c.PnG", "a/deep/er/d.webp", "folder.jpg/e.jpeg", "notes.txt", "a/none")
    assert list_images(root) == Listing(
        folders=("a", "a/deep", "a/deep/er", "folder.jpg"),
        files=("a/c.PnG", "a/deep/er/d.webp", "b.JPG", "folder.jpg/e.jpeg"),
        left_out={OTHER: LeftOut(2, "a/none")},
        unreadable={},
    )


@pytest.mark.parametrize(
    "name",
    ["._a.jpg", ".a.jpg", ".git/a.jpg", "__MACOSX/a.jpg", "@eaDir/a.jpg", "$RECYCLE.BIN/a.jpg"],
)
def test_what_systems_put_there_is_hidden(make, name):
    root = make("a.jpg", f"cat/{name}")
    found = list_images(root)
    assert found.files == ("a.jpg",)
    assert found.folders == ("cat",)
    assert found.left_out == {HIDDEN: LeftOut(1, f"cat/{name.partition('/')[0]}")}


def test_the_folder_itself_may_be_hidden(tmp_path):
    (tmp_path / ".photos").mkdir()
    (tmp_path / ".photos/a.jpg").touch()
    assert is_hidden(".photos")
    assert list_images(tmp_path / ".photos").files == ("a.jpg",)


@pytest.mark.parametrize(
    "target", [".", "..", "../..", "../../..", "/", "../cat", "../birch/../cat"]
)
def test_a_link_back_is_left_out_once(make, target):
    """Each leads to the folder that it lies in, or to one above that."""
    root = make("cat/a.jpg", "birch/b.jpg", links={"cat/back": target})
    found = list_images(root)
    assert found.files == ("birch/b.jpg", "cat/a.jpg")
    assert found.left_out == {BACK: LeftOut(1, "cat/back")}


def test_a_root_that_is_a_link_knows_itself(make, tmp_path):
    root = make("cat/a.jpg", links={"cat/back": ".."})
    (tmp_path / "link").symlink_to(root)
    (root / "again").symlink_to(tmp_path / "link")
    found = list_images(tmp_path / "link")
    assert found.files == ("cat/a.jpg",)
    assert found.left_out == {BACK: LeftOut(2, "again")}


def test_links_in_circles_end(make):
    names = [f"class{i}" for i in range(7)]
    root = make(
        *(f"{name}/a.jpg" for name in names),
        links={f"{name}/{other}": f"../{other}" for name in names for other in names},
    )
    found = list_images(root)
    assert len(found.files) == 7 * 7  # each class has the images of all, once
    assert found.left_out[BACK].count > 7


def test_links_out_of_the_folder_are_followed_and_what_they_lead_back_to_is_not(make, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "deep").mkdir(parents=True)
    (elsewhere / "deep/c.jpg").touch()
    (elsewhere / "deep/up").symlink_to("..")
    (elsewhere / "home").symlink_to(tmp_path / "photos")
    (tmp_path / "d.jpg").touch()
    root = make("cat/a.jpg", links={"cat/more": elsewhere, "cat/d.jpg": tmp_path / "d.jpg"})
    found = list_images(root)
    assert found.files == ("cat/a.jpg", "cat/d.jpg", "cat/more/deep/c.jpg")
    assert found.left_out == {BACK: LeftOut(2, "cat/more/deep/up")}


def test_folders_come_before_links_to_them(make):
    root = make("cat/z/y/a.jpg", links={"cat/a": "z/y"})
    assert list_images(root).files == ("cat/z/y/a.jpg",)


def test_a_split_may_be_a_link_to_another_one(make):
    root = make("test/cat/a.jpg", links={"val": "test"})
    assert list_images(root).files == ("test/cat/a.jpg", "val/cat/a.jpg")


@pytest.mark.parametrize("split", ["", "train/"])
def test_classes_may_be_links_to_one_folder(make, tmp_path, split, monkeypatch):
    """And the disk's order of names decides nothing."""
    for name in ("a", "b"):
        (tmp_path / "pool" / name / "deep").mkdir(parents=True)
        (tmp_path / "pool" / name / "deep/1.jpg").touch()
        (tmp_path / "pool" / name / "deep/back").symlink_to(tmp_path / "photos" / split)
    pool = tmp_path / "pool"
    links = {f"{split}x": pool / "a", f"{split}y": pool / "b", f"{split}z": pool / "b"}
    root = make(f"{split}w/1.jpg", links=links)
    expected = tuple(f"{split}{name}" for name in ("w/1.jpg", "x/deep/1.jpg", "y/deep/1.jpg"))
    expected += (f"{split}z/deep/1.jpg",)
    assert list_images(root).files == expected
    assert list_images(root).left_out[BACK].count == 3
    scan = os.scandir

    @contextlib.contextmanager
    def backwards(path):
        with scan(path) as entries:
            yield reversed(list(entries))

    monkeypatch.setattr(os, "scandir", backwards)
    assert list_images(root).files == expected


def test_links_that_lead_nowhere(make):
    root = make("a.jpg", links={"b.jpg": "gone.jpg", "c.jpg": "c.jpg", "d": "a.jpg/d"})
    found = list_images(root)
    assert found.files == ("a.jpg",)
    assert found.left_out == {NOWHERE: LeftOut(3, "b.jpg")}
    assert found.unreadable == {}


def test_pipes_and_sockets_are_no_images_whatever_their_names(make, monkeypatch):
    root = make("a.jpg", links={"d.jpg": "b.jpg"})
    os.mkfifo(root / "b.jpg")
    monkeypatch.chdir(root)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind("c.jpg")
        found = list_images(root)
    assert found.files == ("a.jpg",)
    assert found.left_out == {SPECIAL: LeftOut(3, "b.jpg")}


def test_formats_that_are_not_decoded_are_named_with_what_to_do(make):
    root = make("a.heic", "b.HEIC", "c.jxl", "d.NEF", "e.dng", "f.txt")
    found = list_images(root)
    assert found.files == ()
    assert {UNREADABLE_FORMATS[suffix] for suffix in (".heic", ".jxl", ".nef")} == {
        kind.removesuffix(" files, which must be converted to JPEG or PNG")
        for kind in found.left_out
        if kind != OTHER
    }
    assert "HEIC files, which must be converted to JPEG or PNG (2, for example 'a.heic')" in (
        describe_left_out(found.left_out)
    )


def test_what_cannot_be_read_is_told(make, monkeypatch):
    root = make("a.jpg", "shut/b.jpg", "open/c.jpg")
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(listing.os, "scandir", refusing)
    found = list_images(root)
    assert found.files == ("a.jpg", "open/c.jpg")
    assert found.unreadable == {"shut": "Permission denied"}


def test_a_folder_that_is_not_there_cannot_be_read():
    assert list_images(Path("gone")).unreadable == {"": "No such file or directory"}


def test_what_is_left_out_reads_as_words():
    assert describe_left_out({}) == ""
    left_out = {HIDDEN: LeftOut(1200, "._a.jpg"), NOWHERE: LeftOut(1, "caf\udce9")}
    assert describe_left_out(left_out) == (
        "hidden names (1,200, for example '._a.jpg'); "
        r"links that lead nowhere (1, for example 'caf\xe9')"
    )
