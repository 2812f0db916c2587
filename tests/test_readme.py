"""Runs every command and every block of Python that the README shows."""

import dataclasses
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jaxcls.commands.cli import main
from jaxcls.commands.sweep import OneChild
from jaxcls.config import Config, decode, encode
from jaxcls.data.sources import open_source
from jaxcls.training.loop import Outcome

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^(?:pip install uv && )?uv run (?:--extra \w+ )*(jaxcls .*)$", README, re.M)
COMMANDS = [command for command in COMMANDS if "gs://" not in command]  # tests/launch runs those
SMALL = """
import dataclasses
from jaxcls.config import ModelConfig
_full = get_config
def get_config():
    config = _full()
    data = dataclasses.replace(config.data, image_size=16)
    return dataclasses.replace(
        config, data=data, model=ModelConfig(name="tiny"), num_epochs=None, num_steps=2)
"""


SMALL_SWEEP = """
def sweep():
    for seed in (0, 1):
        yield f"seed={seed}", dataclasses.replace(get_config(), seed=seed)
"""


SMALL_FINETUNE = """
import dataclasses
_full = get_config
def get_config():
    config = _full()
    data = dataclasses.replace(config.data, image_size=32, batch_size=8)
    optimizer = dataclasses.replace(config.optimizer, freeze={"(stem|block|head).*": 1.0})
    return dataclasses.replace(
        config, data=data, optimizer=optimizer, num_epochs=None, num_steps=1)
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.M | re.S)


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
        place = folder / f"photos/{split}/{'even' if record.label % 2 == 0 else 'odd'}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{index}.png").write_bytes(record.image)
    for index in range(2):
        (folder / f"photos/{index}.png").write_bytes(source[index].image)
    assert main(["export", str(folder / "runs/digits"), "-o", str(folder / "exported")]) == 0
    weights = folder / "lite0.safetensors"
    assert main(["convert", "efficientnet_lite0_imagenet", "-o", str(weights)]) == 0
    return folder


def test_the_commands_are_found() -> None:
    assert len(COMMANDS) >= 10
    assert COMMANDS[0] == "jaxcls train configs/digits.py"
    names = (
        "train",
        "evaluate",
        "predict",
        "export",
        "convert",
        "prepare",
        "data",
        "show",
        "benchmark",
    )
    for name in (*names, "compile", "sweep", "runs"):
        assert any(command.split()[1] == name for command in COMMANDS)


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
        small = ["--seconds", "0.1"] if arguments[0] == "benchmark" else []
        assert main([*arguments, *small]) == 0


def test_python_blocks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    namespaces: list[dict] = []
    for block in blocks("python"):
        namespaces.append({})
        exec(compile(block, "README.md", "exec"), namespaces[-1])
    configs = [namespace["get_config"]() for namespace in namespaces if "get_config" in namespace]
    assert configs
    lists = [namespace["augment"] for namespace in namespaces if "augment" in namespace]
    assert lists
    for config in configs:
        assert isinstance(config, Config)
        for augment in lists:
            decode(encode(dataclasses.replace(config, augment=augment)))


def test_the_linked_files_are_there() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


@pytest.mark.parametrize("module", ["jaxcls", "jaxcls.commands.cli"])
def test_imports_are_light(module: str) -> None:
    """Help must not wait for jax or for TensorFlow Datasets."""
    code = f"import sys, {module}; assert not {{'jax', 'tensorflow_datasets'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
