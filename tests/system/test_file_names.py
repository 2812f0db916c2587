"""Names that are not text, and names that look the same."""

import csv
import dataclasses
import json
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from command_line import Run

from jaxcls.config import Config, DataConfig
from jaxcls.data.sources import open_source
from jaxcls.pretrained.resolve import same_classes
from jaxcls.runs.directory import RunInfo, changes_of, record_run
from jaxcls.system.errors import UserError
from jaxcls.system.file_names import composed, is_text, printable, require_text
from jaxcls.system.paths import run_path
from jaxcls.training.loop import Outcome


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("café", "café"),
        ("日本", "日本"),
        ("caf\udce9", r"caf\xe9"),
        ("\udcff\udc80/é", r"\xff\x80/é"),
        (json.loads(r'"\ud800"'), r"\ud800"),
        ("a\nb\tc", r"a\nb\tc"),
        ("\x1b]0;x\x07", r"\x1b]0;x\x07"),
        ("می\u200cخواهم", "می\u200cخواهم"),  # an invisible letter that belongs to the word
    ],
)
def test_every_name_can_be_printed(name: str, shown: str) -> None:
    assert printable(name) == shown
    assert printable(name).encode()
    assert is_text(name) == (not any(0xD800 <= ord(c) < 0xE000 for c in name))


def test_names_are_composed_but_letters_stay_the_same() -> None:
    assert composed("cafe\N{COMBINING ACUTE ACCENT}") == "café"
    assert composed("ﬁve² Straße") == "ﬁve² Straße"


def test_a_name_that_must_be_text_is_refused() -> None:
    require_text("café", what="run")
    with pytest.raises(UserError, match=r"^run 'caf\\xe9': this name is not UTF-8; use another"):
        require_text("caf\udce9", what="run")


def test_runs_have_names_that_checkpoints_can_be_written_under(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"^run '.*/runs/caf\\xe9': this name is not UTF-8"):
        run_path("runs/caf\udce9")
    with pytest.raises(UserError, match=r"reads a backslash as a slash; use another name"):
        run_path("runs\\mine")
    (tmp_path / "caf\udce9").mkdir()
    monkeypatch.chdir(tmp_path / "caf\udce9")
    with pytest.raises(UserError, match=r"^run '.*caf\\xe9/runs/mine': this name is not UTF-8"):
        run_path("runs/mine")


CAFE = "caf\N{LATIN SMALL LETTER E WITH ACUTE}"
FROM_MAC = unicodedata.normalize("NFD", CAFE)


def test_a_run_resumes_with_class_names_stored_in_another_form(tmp_path: Path) -> None:
    old = RunInfo(config=Config(num_steps=1), class_names=("cat", FROM_MAC))
    record_run(tmp_path, old)
    new = dataclasses.replace(old, class_names=("cat", CAFE))
    assert changes_of(tmp_path, new, allow_changes=False) == []
    assert same_classes(old.class_names, new.class_names)
    assert not same_classes(old.class_names, ("cat", "cafe"))


def test_class_names_that_an_older_version_recorded_become_text(tmp_path: Path) -> None:
    old = RunInfo(config=Config(num_steps=1), class_names=("cat", "caf\udce9"))
    assert RunInfo.from_json(old.to_json()).class_names == ("cat", r"caf\xe9")


def test_every_command_copes_with_any_name(
    run: Run, tiny_run: tuple[Path, Outcome], tmp_path: Path
) -> None:
    """Of classes, images, and the files that are written."""
    for number, name in enumerate((*"abcdefgh", "caf\udce9", CAFE)):
        for split in ("train", "test"):
            shown = name if split == "train" else unicodedata.normalize("NFD", name)
            folder = tmp_path / "photos" / split / shown
            folder.mkdir(parents=True)
            for index in range(4):
                pixels = np.full((8, 8, 3), 20 * number + index, np.uint8)
                PIL.Image.fromarray(pixels).save(folder / f"{index}\udce9.png")
    classes = open_source(DataConfig(source="folder:photos"), "train").class_names
    assert {r"caf\xe9", CAFE} < set(classes)
    shutil.copytree(tiny_run[0], "run")  # as if it had been trained on these photos
    record = json.loads(Path("run/config.json").read_text())
    record["config"]["data"]["source"] = "folder:photos"
    Path("run/config.json").write_text(json.dumps(record | {"class_names": classes}))
    Path("caf\udce9.py").write_text(Path("tiny.py").read_text())
    of_photos = ("caf\udce9.py", "--data.source", "folder:photos")
    odd = "caf\udce9"
    for command, written in (
        (("evaluate", "run", "--per-class", "--json", "--predictions", f"{odd}.csv"), f"{odd}.csv"),
        (("export", "run", "-o", odd, "--platforms", "cpu"), f"{odd}/README.md"),
        (("show", "run", "run", "-o", f"{odd}1.png"), f"{odd}1.png"),
        (("show", "data", *of_photos, "-o", f"{odd}2.png"), f"{odd}2.png"),
        (("convert", "run", "-o", f"{odd}.safetensors"), f"{odd}.safetensors"),
        (("data", *of_photos, "--json"), ""),
        (("prepare", "folder:photos"), ""),
        (("predict", f"{odd}.safetensors", f"photos/train/{odd}"), ""),
        (("runs", "."), ""),
    ):
        result = run(*command)
        assert result.status == 0, (command, result.err)
        assert result.out
        assert not written or Path(written).is_file()
    rows = csv.DictReader(Path(f"{odd}.csv").read_text(errors="surrogateescape").splitlines())
    assert {Path(row["example"]).name for row in rows} == {f"{i}\udce9.png" for i in range(4)}
    for command in (
        ("train", *of_photos, "--workdir", odd),
        ("train", "tiny.py", "--data.source", f"folder:{odd}"),
        ("evaluate", "run", "--data.data-dir", odd),
    ):
        result = run(*command)
        assert result.status == 2
        assert result.err.startswith("jaxcls: ")
        assert r"caf\xe9" in result.err
        assert "is not UTF-8" in result.err
