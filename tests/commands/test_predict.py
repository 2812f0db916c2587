"""`jaxcls predict`: which images it takes, and how it prints their classes."""

import csv
import dataclasses
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from command_line import Message, Run

from jaxcls.data.listing import Listing
from jaxcls.inference.classifier import Guess, ImageClassifier


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (["gone.png"], "'gone.png': no such file or folder, and as a pattern it matches nothing"),
        (
            ["tiny.py", "*.jpg"],
            "'*.jpg': no such file or folder, and as a pattern it matches nothing",
        ),
        (
            ["empty"],
            "image 'empty': there is no image in this folder (not used: files without an "
            "image extension (1, for example 'notes.txt'))",
        ),
        (["emp*"], "'emp*': no such file or folder, and as a pattern it matches nothing"),
        ([], "give image files, folders or patterns after the model"),
    ],
)
def test_images_that_are_not_there_are_named(
    message: Message, images: list[str], expected: str
) -> None:
    Path("empty/folder.png").mkdir(parents=True)
    Path("empty/notes.txt").write_text("")
    assert message("predict", "gone", *images) == f"jaxcls: {expected}\n"


@pytest.mark.parametrize("top", ["0", "-3"])
def test_at_least_one_class_is_shown(message: Message, top: str) -> None:
    text = message("predict", "gone", "tiny.py", "--top", top)
    assert text == f"jaxcls: --top: must be at least 1, got {top}\n"


def test_an_unknown_output_format_is_explained(message: Message) -> None:
    text = message("predict", "gone", "tiny.py", "--format", "xml")
    assert "--format" in text
    assert "table" in text


def test_a_bound_on_pixels_is_positive(message: Message) -> None:
    text = message("predict", "gone", "tiny.py", "--max-pixels", "0")
    assert text == "jaxcls: --max-pixels: must be at least 1, got 0\n"


class FakeClassifier:
    """Gives every image the same two classes, and cannot read those that are called broken."""

    multi_label = False

    def with_max_pixels(self, max_pixels: int) -> "FakeClassifier":
        print(f"at most {max_pixels} pixels")
        return self

    def predict(self, paths: list[str], *, broken: dict[int, str]) -> np.ndarray:
        broken |= {i: f"{path!r} is bad" for i, path in enumerate(paths) if "broken" in path}
        return np.zeros((len(paths), 2))

    def rank(self, images: np.ndarray, *, top: int, threshold: float) -> list[list[Guess]]:
        assert threshold == 0
        return [[Guess(7, "cat, tabby", 0.75), Guess(2, "dog", 0.25)][:top] for _ in images]


@pytest.fixture
def photos(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of photos, and a network that knows them."""
    for name in ("photos/b.png", "photos/a.JPG", "photos/deep/c.webp", "photos/notes.txt", "d.gif"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("")
    for name in ("a.jpg", "._a.jpg", "@eaDir/a.jpg", "deep/b.TIFF", "__MACOSX/._b.jpg"):
        Path("mac", name).parent.mkdir(parents=True, exist_ok=True)
        Path("mac", name).write_text("")
    Path("mac/deep/back").symlink_to("..")
    Path(".hidden").write_text("")
    monkeypatch.setattr(ImageClassifier, "load", lambda *_, **__: FakeClassifier())


@pytest.mark.usefixtures("photos")
@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (["photos"], ["photos/a.JPG", "photos/b.png", "photos/deep/c.webp"]),
        (["d.gif", "photos/b.png"], ["d.gif", "photos/b.png"]),
        (["photos/*"], ["photos/a.JPG", "photos/b.png", "photos/notes.txt"]),
        (["**/*.webp", "d.gif"], ["photos/deep/c.webp", "d.gif"]),
        ([".hidden", "photos/notes.txt"], [".hidden", "photos/notes.txt"]),
        (["mac"], ["mac/a.jpg", "mac/deep/b.TIFF"]),
        (["mac/**/*.jpg"], ["mac/a.jpg"]),
        (["mac/@eaDir/*.jpg"], ["mac/@eaDir/a.jpg"]),
    ],
)
def test_files_folders_and_patterns_are_found_in_a_stable_order(
    run: Run, images: list[str], expected: list[str]
) -> None:
    result = run("predict", "x", *images, "--format", "json", "--top", "1")
    assert result.status == 0
    assert json.loads(result.out) == [
        {"image": path, "classes": [{"id": 7, "name": "cat, tabby", "probability": 0.75}]}
        for path in expected
    ]


@pytest.mark.usefixtures("photos")
def test_a_table_names_each_image_once_and_lines_up(run: Run) -> None:
    assert run("predict", "x", "d.gif", "photos/b.png").out == (
        "image         class       probability\n"
        "d.gif         cat, tabby      75.00%\n"
        "              dog             25.00%\n"
        "photos/b.png  cat, tabby      75.00%\n"
        "              dog             25.00%\n"
    )


@pytest.mark.usefixtures("photos")
def test_csv_has_a_row_for_each_class(run: Run) -> None:
    out = run("predict", "x", "d.gif", "--format", "csv").out
    assert "\r" not in out
    assert list(csv.reader(io.StringIO(out))) == [
        ["image", "rank", "id", "class", "probability"],
        ["d.gif", "1", "7", "cat, tabby", "0.750000"],
        ["d.gif", "2", "2", "dog", "0.250000"],
    ]


@pytest.mark.usefixtures("photos")
def test_a_pipe_that_is_named_is_no_image(run: Run) -> None:
    os.mkfifo("pipe.jpg")  # nobody writes to it: who opens it waits for ever
    result = run("predict", "x", "d.gif", "pipe.jpg", "--top", "1")
    assert result.status == 2
    assert "d.gif  cat, tabby" in result.out
    assert "'pipe.jpg' is a pipe or a socket, not an image file" in result.err


@pytest.mark.usefixtures("photos")
def test_what_a_folder_has_beside_its_images_is_reported(run: Run) -> None:
    assert run("predict", "x", "mac").err == (
        "mac: not used: hidden names (3, for example '._a.jpg')\n"
        "mac: not used: symbolic links to a parent "
        "folder or to a folder that is already listed (1, for example 'deep/back')\n"
    )
    assert run("predict", "x", "photos/deep", "mac/a.jpg").err == ""


@pytest.mark.usefixtures("photos")
@pytest.mark.parametrize("form", ["table", "json", "csv"])
def test_broken_images_are_named_and_the_others_kept(run: Run, form: str) -> None:
    Path("photos/broken.png").write_text("")
    result = run("predict", "x", "photos", "d.gif", "broken.gif*", "--format", form, "--top", "1")
    assert result.status == 2
    assert "no such file or folder, and as a pattern it matches nothing" in result.err
    Path("broken.gif").write_text("")
    result = run("predict", "x", "photos", "broken.gif", "d.gif", "--format", form, "--top", "1")
    assert result.status == 2
    assert result.err.endswith(
        "jaxcls: 2 of 6 images could not be read\n"
        "  'photos/broken.png' is bad\n"
        "  'broken.gif' is bad\n"
    )
    good = ["photos/a.JPG", "photos/b.png", "photos/deep/c.webp", "d.gif"]
    if form == "json":
        entries = {entry["image"]: entry for entry in json.loads(result.out)}
        assert entries.pop("broken.gif") == {
            "image": "broken.gif",
            "classes": [],
            "error": "'broken.gif' is bad",
        }
        assert "error" in entries.pop("photos/broken.png")
        assert list(entries) == good
        assert all(len(entry["classes"]) == 1 for entry in entries.values())
    else:
        _, *lines = result.out.splitlines()
        assert [line.replace(",", " ").split()[0] for line in lines] == good


@pytest.mark.usefixtures("photos")
@pytest.mark.parametrize("form", ["table", "json", "csv"])
def test_when_all_are_broken_nothing_is_printed_but_the_head(run: Run, form: str) -> None:
    Path("broken.gif").write_text("")
    result = run("predict", "x", "broken.gif", "--format", form)
    assert (result.status, len(result.out.splitlines())) == (2, 1)
    assert result.err.startswith("jaxcls: 1 of 1 images could not be read\n  'broken.gif' is bad")


@pytest.mark.usefixtures("photos")
def test_folders_that_cannot_be_read_are_named_and_the_others_kept(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    shut = Listing(("shut",), ("a.jpg",), {}, {"shut": "Permission denied"})
    monkeypatch.setattr("jaxcls.data.listing.list_images", lambda _: shut)
    result = run("predict", "x", "photos", "--top", "1")
    assert result.status == 2
    assert "photos/a.jpg  cat, tabby" in result.out
    assert result.err == (
        "jaxcls: 0 of 1 images could not be read, and 1 folders or links\n"
        "  'photos/shut' cannot be read: Permission denied\n"
    )
    shut = dataclasses.replace(shut, files=())
    text = run("predict", "x", "photos").err
    assert "there is no image in this folder ('photos/shut' cannot be read: Permission" in text


@pytest.mark.usefixtures("photos")
@pytest.mark.parametrize("form", ["table", "json", "csv"])
def test_names_that_are_not_utf8_are_printed(run: Run, form: str) -> None:
    Path("caf\udce9.jpg").write_text("")
    result = run("predict", "x", "caf\udce9.jpg", "--format", form, "--top", "1")
    assert result.status == 0
    if form == "json":
        assert json.loads(result.out)[0]["image"] == "caf\udce9.jpg"
    else:
        assert r"caf\xe9.jpg" in result.out


@pytest.mark.usefixtures("photos")
def test_the_bound_on_pixels_reaches_the_network(run: Run) -> None:
    assert "at most 9 pixels" in run("predict", "x", "d.gif", "--max-pixels", "9").out
