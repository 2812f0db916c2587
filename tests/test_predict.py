"""`jaxcls predict`: which images it takes, and how it prints their classes."""

import csv
import io
import json
from pathlib import Path

import pytest
from commands import Message, Run

from jaxcls.classifier import Guess, ImageClassifier


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (["gone.png"], "image 'gone.png': no such file, folder of images or pattern"),
        (["tiny.py", "*.jpg"], "image '*.jpg': no such file, folder of images or pattern"),
        (["empty"], "image 'empty': no such file, folder of images or pattern"),
        (["emp*"], "image 'emp*': no such file, folder of images or pattern"),
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
    """Gives every image the same two classes."""

    def with_max_pixels(self, max_pixels: int) -> "FakeClassifier":
        print(f"at most {max_pixels} pixels")
        return self

    def predict(self, paths: list[str]) -> list[str]:
        return paths

    def rank(self, images: list[str], *, top: int) -> list[list[Guess]]:
        return [[Guess(7, "cat, tabby", 0.75), Guess(2, "dog", 0.25)][:top] for _ in images]


@pytest.fixture
def photos(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of photos, and a network that knows them."""
    for name in ("photos/b.png", "photos/a.JPG", "photos/deep/c.webp", "photos/notes.txt", "d.gif"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("")
    monkeypatch.setattr(ImageClassifier, "load", lambda *_, **__: FakeClassifier())


@pytest.mark.usefixtures("photos")
@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (["photos"], ["photos/a.JPG", "photos/b.png", "photos/deep/c.webp"]),
        (["d.gif", "photos/b.png"], ["d.gif", "photos/b.png"]),
        (["photos/*"], ["photos/a.JPG", "photos/b.png", "photos/notes.txt"]),
        (["**/*.webp", "d.gif"], ["photos/deep/c.webp", "d.gif"]),
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
def test_the_bound_on_pixels_reaches_the_network(run: Run) -> None:
    assert "at most 9 pixels" in run("predict", "x", "d.gif", "--max-pixels", "9").out
