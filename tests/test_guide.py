"""Runs every block of the walk through KerasCV's guide, from top to bottom, on small stand-ins."""

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from documents import GUIDE, ROOT, links, text_of
from PIL import Image
from skimage import data as photos
from test_configs import prepare_small, write_tiny_weights

from jaxcls.commands.cli import main

TEXT = text_of(GUIDE)
BLOCKS = re.findall(r"^```(python|sh)\n(.*?)^```$", TEXT, re.M | re.S)
SMALL = """
import dataclasses
from documents import small
_full = get_config
def get_config():
    config = _full()
    weights = config.model.weights and "tiny.safetensors"
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, name="tiny", weights=weights),
        data=dataclasses.replace(config.data, batch_size=16, image_size=32, canvas_size=48,
                                 data_dir="tfds"),
        augment=small(config.augment),
        num_epochs=None, num_steps=1)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where a reader would be, with 20 examples of each data set and a tiny network's weights."""
    folder = tmp_path_factory.mktemp("guide")
    Image.fromarray(photos.chelsea()).save(folder / "cat.png")
    for name in ("cats_vs_dogs", "caltech101"):
        prepare_small(name, folder / "tfds")
        path = folder / f"configs/guide/{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text((ROOT / f"configs/guide/{name}.py").read_text() + SMALL)
    write_tiny_weights(str(folder / "tiny.safetensors"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


def test_the_guide_has_blocks_of_both_kinds() -> None:
    kinds = [kind for kind, _ in BLOCKS]
    assert kinds.count("python") >= 6
    assert kinds.count("sh") >= 8


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_block(number: int, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the guide's order: later blocks use what earlier ones left."""
    kind, text = BLOCKS[number]
    if kind == "python":
        exec(compile(text, f"block {number}", "exec"), {})
        for name in re.findall(r"savefig\(\"(.*?)\"\)", text):
            assert (folder / name).stat().st_size > 1000
        return
    for line in text.splitlines():
        program, *arguments = shlex.split(line)
        assert program == "jaxcls"
        if arguments[0] == "prepare":
            arguments += ["--data-dir", "tfds"]
        if arguments[0] == "train":
            shutil.rmtree(folder / "runs" / Path(arguments[1]).stem, ignore_errors=True)
        assert main(arguments) == 0, capsys.readouterr().err
    if "efficientnet_lite0" in text:
        shown = re.search(r"^prints for.*?```\n(.*?)```", TEXT, re.M | re.S)
        assert shown is not None
        assert capsys.readouterr().out == shown[1]


def test_the_guide_shows_pictures() -> None:
    assert {"stages.jpg", "schedule.svg"} <= set(links(GUIDE))
