"""Photos and classes whose names attack terminals, spreadsheets, browsers and shells."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from command_line import Run
from hostile_names import HOSTILE_NAMES
from markdown_it import MarkdownIt

from jaxcls.config import DataConfig
from jaxcls.data.sources import open_source
from jaxcls.system.csv_text import read_csv
from jaxcls.system.file_names import printable
from jaxcls.system.terminal_text import harmless
from jaxcls.training.loop import Outcome

NAMES = [name for name in HOSTILE_NAMES if "/" not in name]


@pytest.mark.slow
def test_no_name_does_anything(run: Run, tiny_run: tuple[Path, Outcome], tmp_path: Path) -> None:
    classes = NAMES[:5] + NAMES[-5:]
    for number, name in enumerate(classes):
        for split in ("train", "test"):
            folder = Path("photos") / split / name
            folder.mkdir(parents=True)
            for index, file in enumerate(NAMES):
                pixels = np.full((8, 8, 3), 20 * number + index, np.uint8)
                PIL.Image.fromarray(pixels).save(folder / f"{file}.png")
    (Path("photos/train") / classes[0] / f"{NAMES[-1]}.png").write_bytes(b"broken")
    source = open_source(DataConfig(source="folder:photos"), "train")
    assert set(source.class_names) == set(map(printable, classes))
    shutil.copytree(tiny_run[0], "run")  # as if it had been trained on these photos
    record = json.loads(Path("run/config.json").read_text())
    record["config"]["data"]["source"] = "folder:photos"
    Path("run/config.json").write_text(json.dumps(record | {"class_names": source.class_names}))
    of_photos = ("tiny.py", "--data.source", "folder:photos", "--data.broken", "skip")
    odd = "$(touch x)\x1b]0;x\x07\n=1"
    outputs = {}
    for arguments in (
        ("evaluate", "run", "--per-class", "--predictions", f"{odd}.csv"),
        ("predict", "run", "photos/test", "--top", "1", "--format", "csv"),
        ("predict", "run", "photos/test", "--top", "2"),
        ("data", *of_photos),
        ("export", "run", "-o", odd, "--platforms", "cpu"),
        ("show", "run", "run", "-o", "run.png"),
        ("show", "data", *of_photos, "-o", "data.png"),
        ("convert", "run", "-o", f"{odd}.safetensors"),
        ("predict", f"{odd}.safetensors", "photos/test"),
        ("train", "tiny.py", "--workdir", f"{odd}2", "--num-steps", "1"),
        ("runs", "."),
        ("prepare", "folder:photos"),
    ):
        result = run(*arguments)
        assert result.status == 0, (arguments, result.err)
        for text in (result.out, result.err):
            assert text == harmless(text), arguments
        outputs[arguments[0], arguments[-1]] = result.out
    assert r"\x1b]0;x\x07" in outputs["data", "skip"]

    with open(f"{odd}.csv", newline="", errors="surrogateescape") as file:
        rows = list(read_csv(file))[1:]
    tested = {str(Path("photos/test", name, f"{file}.png")) for name in classes for file in NAMES}
    assert {os.path.relpath(row[0]) for row in rows} == tested
    assert {row[1] for row in rows} == set(source.class_names)
    printed = list(read_csv(outputs["predict", "csv"].splitlines(keepends=True)))[1:]
    assert {row[0] for row in printed} == set(map(printable, tested))

    card = Path(odd, "README.md").read_text()
    page = MarkdownIt("commonmark").enable("table").render(card)
    tags = set(re.findall(r"<(\w+)", page))
    assert tags <= {"h1", "h2", "p", "pre", "code", "table", "thead", "tbody", "tr", "th", "td"}

    pasted = outputs["train", "1"].splitlines()[-1]
    word = subprocess.run(
        ["bash", "-c", f'set -- {pasted}; printf %s "${{!#}}"'], check=True, capture_output=True
    )
    assert word.stdout.decode() == f"{odd}2"
    assert not Path("x").exists()
