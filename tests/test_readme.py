"""Runs every command and every block of Python that the documents show, and checks their links.

tests/launch runs the commands that need a cloud or a cluster, and test_guide.py those of the guide.
"""

import os.path
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from documents import (
    DOCUMENTS,
    GUIDE,
    NOT_RUN,
    ROOT,
    anchors,
    blocks,
    jaxcls_command,
    links,
    needs_fakes,
    prose,
    text_of,
)

from jaxcls.commands.cli import COMMANDS as KNOWN
from jaxcls.commands.cli import main
from jaxcls.commands.sweep import OneChild
from jaxcls.config import Config, decode, encode
from jaxcls.config.decoding import leaves
from jaxcls.data.sources import open_source
from jaxcls.training.loop import Outcome

SHOWN = [
    (document, block, line)
    for document in DOCUMENTS
    for block in blocks(document, "sh")
    for line in block.splitlines()
]
COMMANDS = list(dict.fromkeys(found for *_, line in SHOWN if (found := jaxcls_command(line))))
PYTHON = [
    (document, number)
    for document in DOCUMENTS
    if document != GUIDE
    for number in range(len(blocks(document, "python")))
]
OF_OTHERS = {
    "model.compile",
    "model.fit",
    "model.safetensors",
    "model.stablehlo",
}  # Keras' methods, and a file
SMALL = """
import dataclasses
from documents import small
from jaxcls.config import ModelConfig
_full = get_config
def get_config():
    config = _full()
    canvas = min(config.data.canvas_size, 48)
    data = dataclasses.replace(config.data, image_size=16, canvas_size=canvas)
    return dataclasses.replace(
        config, data=data, augment=small(config.augment), model=ModelConfig(name="tiny"),
        num_epochs=None, num_steps=2)
"""


SMALL_SWEEP = """
def sweep():
    for seed in (0, 1):
        yield f"seed={seed}", dataclasses.replace(get_config(), seed=seed)
"""


SMALL_FINETUNE = """
import dataclasses
from documents import small
_full = get_config
def get_config():
    config = _full()
    data = dataclasses.replace(config.data, image_size=32, canvas_size=48, batch_size=8)
    optimizer = dataclasses.replace(config.optimizer, freeze={"(stem|block|head).*": 1.0})
    return dataclasses.replace(
        config, data=data, augment=small(config.augment), optimizer=optimizer,
        num_epochs=None, num_steps=1)
"""


@pytest.fixture(scope="module")
def folder(
    tiny_run: tuple[Path, Outcome], tiny_config: Config, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Where a reader would be: configs, a run of them, and photos. The network is a small one."""
    folder = tmp_path_factory.mktemp("reader")
    shutil.copytree(ROOT / "configs", folder / "configs")
    for name in ("digits", "photos"):
        with (folder / f"configs/{name}.py").open("a") as file:
            file.write(SMALL)
    with (folder / "configs/finetune.py").open("a") as file:
        file.write(SMALL_FINETUNE)
    shutil.copytree(tiny_run[0], folder / "runs/digits")
    with (folder / "configs/sweep_digits.py").open("a") as file:
        file.write(SMALL + SMALL_SWEEP)
    for rate in ("0.02", "0.1"):
        shutil.copytree(tiny_run[0], folder / f"runs/sweep_digits/rate={rate}-seed=0")
    source = open_source(tiny_config.data, "test")
    for index in range(80):
        record = source[index]
        split = "train" if index < 70 else "test"
        place = folder / f"photos/{split}/{'even' if record.label in (0, 2, 4, 6, 8) else 'odd'}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{index}.png").write_bytes(record.image)
    for index in range(2):
        (folder / f"photos/{index}.png").write_bytes(source[index].image)
    assert main(["export", str(folder / "runs/digits"), "-o", str(folder / "exported")]) == 0
    weights = folder / "lite0.safetensors"
    assert main(["convert", "efficientnet_lite0_imagenet", "-o", str(weights)]) == 0
    return folder


def test_each_command_is_run_by_one_test_or_listed_with_a_reason() -> None:
    for document, block, line in SHOWN:
        runners = {
            "this file": jaxcls_command(line) is not None,
            "tests/test_guide.py": document == GUIDE,
            "tests/launch/test_commands.py": needs_fakes(block),
            "tests/launch/test_local.py": "launch/local.py" in line,
            "nobody": line in NOT_RUN,
        }
        found = [name for name, runs in runners.items() if runs]
        assert len(found) == 1, f"{document}: {line!r}: run by {found or 'no test'}"
    assert set(NOT_RUN) <= {line for *_, line in SHOWN}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_and_python_stand_in_blocks_of_their_language(document: str) -> None:
    """Others are not run."""
    fences = re.findall(r"^ *```(.*)\n((?:.*\n)*?) *```$", text_of(document), re.M)
    assert {language for language, _ in fences} <= {"sh", "python", ""}
    for language, text in fences:
        if not language:
            assert not re.search(r"^\W*(?:uv|jaxcls|pip|bash|python|import) ", text, re.M), text


def test_every_command_of_jaxcls_is_shown() -> None:
    assert {command.split()[1] for command in COMMANDS} == set(KNOWN)
    first = blocks("README.md", "sh")[0]
    assert jaxcls_command(first.strip()) == "jaxcls train configs/digits.py"


@pytest.mark.parametrize("command", COMMANDS)
def test_command(
    command: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    arguments = [
        argument
        for word in shlex.split(command)[1:]
        for argument in (sorted(map(str, Path().glob(word))) if "*" in word else [word])
    ]
    if arguments[0] in ("train", "sweep") and "--workdir" not in arguments:
        shutil.rmtree("runs")  # a reader has none yet
    if arguments[0] == "export":
        shutil.rmtree("exported")
    # The processes of a sweep would not know the small network.
    monkeypatch.setattr(OneChild, "run", lambda _, command: main(command[3:]))
    if "--help" in arguments:
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 0
    else:
        if arguments[0] == "benchmark":
            arguments += ["--seconds", "0.1", "--data.image-size", "16"]
        assert main(arguments) == 0


@pytest.mark.parametrize(("document", "number"), PYTHON)
def test_python_block(
    document: str, number: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(compile(blocks(document, "python")[number], document, "exec"), names)
    if "get_config" in names:
        assert isinstance(names["get_config"](), Config)
    if "sweep" in names:
        assert all(decode(encode(config)) == config for _, config in names["sweep"]())
    if "augment" in names:
        decode(encode(Config(augment=names["augment"], num_epochs=1)))


def test_the_python_blocks_are_found() -> None:
    text = "".join(blocks(document, "python")[number] for document, number in PYTHON)
    for shown in ("def get_config()", "def sweep()", "augment = (", "from_run(", "from_preset("):
        assert shown in text


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_to_files_and_headings(document: str) -> None:
    for link in links(document):
        path, _, anchor = link.partition("#")
        target = os.path.normpath(Path(document).parent / path) if path else document
        assert (ROOT / target).exists(), f"{document}: {link}"
        assert not anchor or anchor in anchors(target), f"{document}: {link}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_fields_and_commands_in_the_text_are_there(document: str) -> None:
    if document == "CHANGELOG.md":  # it tells of former versions, too
        return
    fields = {name for name, _ in leaves(Config, prefix="")}
    groups = "|".join(sorted({name.partition(".")[0] for name in fields if "." in name}))
    for code in re.findall(r"`([^`]+)`", prose(document)):
        for path in re.findall(r"(?:jaxcls|tests|configs|launch)/[\w./-]+\.\w+", code):
            assert (ROOT / path).exists(), f"{document}: {code}"
        for field in re.findall(rf"(?<![\w.])(?:--)?((?:{groups})\.[\w-]+)", code):
            name = field.replace("-", "_").replace(".no_", ".")
            assert name in fields | OF_OTHERS, f"{document}: {code}"
        for command in re.findall(r"\bjaxcls (\w+)", code):
            assert command in KNOWN, f"{document}: {code}"


@pytest.mark.parametrize("module", ["jaxcls", "jaxcls.commands.cli"])
def test_imports_are_light(module: str) -> None:
    """Help must not wait for jax or for TensorFlow Datasets."""
    code = f"import sys, {module}; assert not {{'jax', 'tensorflow_datasets'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
