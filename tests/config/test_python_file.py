"""A config imports modules beside it, and leaves no trace."""

import contextlib
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxcls.config import load_config, load_sweep
from jaxcls.config.decoding import ConfigError

USES = "from jaxcls.config import Config\ndef get_config(): return Config(num_steps={})\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is not the one where the test runs."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return tmp_path


def write(folder: Path, **files: str) -> None:
    """Writes files of Python in a folder, `parts_x` as parts/x.py."""
    for name, text in files.items():
        path = folder / f"{name.replace('_', '/', 1)}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def steps(path: Path) -> int | None:
    before = list(sys.path), list(sys.meta_path), set(sys.modules)
    config = load_config(path)
    after = list(sys.path), list(sys.meta_path), set(sys.modules)
    assert after[:2] == before[:2]
    assert not [name for name in after[2] - before[2] if name.partition(".")[0] != "jaxcls"]
    return config.num_steps


def test_a_module_a_package_and_what_they_import(folder: Path) -> None:
    write(
        folder / "a",
        mine="import common\nfrom parts.long import LENGTH\n"
        + USES.format("common.STEPS + LENGTH"),
        common="import deeper\nSTEPS = deeper.ONE",
        deeper="ONE = 1",
        parts__init__="",
        parts_long="from . import other\nfrom common import STEPS\nLENGTH = other.TEN * STEPS",
        parts_other="TEN = 10",
    )
    (folder / "a/parts___init__.py").unlink(missing_ok=True)
    (folder / "a/parts/__init__.py").touch()
    assert steps(folder / "a/mine.py") == 11
    assert steps(Path("../a/mine.py")) == 11, "and again, from another place"


def test_imports_inside_get_config_and_by_name(folder: Path) -> None:
    text = (
        "import importlib\nfrom jaxcls.config import Config\ndef get_config():\n"
        "    from late import STEPS\n"
        "    return Config(num_steps=STEPS + importlib.import_module('later').STEPS)\n"
    )
    write(folder, mine=text, late="STEPS = 1", later="STEPS = 2")
    assert steps(folder / "mine.py") == 3


def test_two_configs_each_have_their_own(folder: Path) -> None:
    for name, number in (("a", 1), ("b", 2)):
        write(
            folder / name, mine="import common\n" + USES.format("common.S"), common=f"S = {number}"
        )
    assert [steps(folder / name / "mine.py") for name in "aba"] == [1, 2, 1]
    write(folder / "a", common="S = 30")
    assert steps(folder / "a/mine.py") == 30, "a module that was edited is read again"


def test_a_folder_of_modules_needs_no_init(folder: Path) -> None:
    write(folder, mine="from parts import x\n" + USES.format("x.S"), parts_x="S = 4")
    assert steps(folder / "mine.py") == 4


def test_files_that_are_called_like_packages_are_in_nobodys_way(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is what the config means; the installed one is what its users mean."""
    installed = folder / "installed"
    write(installed, library="import helper\nS = helper.S", helper="S = 1", wandb2="S = 100")
    monkeypatch.syspath_prepend(installed)
    wrong = "raise RuntimeError('not this one')"
    (folder / "wandb2").mkdir()  # a folder is no module, where there is one
    write(folder, mine="import library, wandb2\n" + USES.format("library.S + wandb2.S"))
    write(folder, helper=wrong, jax=wrong, optax=wrong, tyro=wrong, random=wrong)
    with without_modules("library", "helper", "wandb2"):
        assert load_config(folder / "mine.py").num_steps == 101
    write(folder, helper="S = 7", mine="import helper\n" + USES.format("helper.S"))
    with without_modules("library", "helper"):
        assert load_config(folder / "mine.py").num_steps == 7
        assert importlib.import_module("helper").S == 1


@contextlib.contextmanager
def without_modules(*names: str) -> Iterator[None]:
    """Forgets them after the test."""
    yield
    for name in names:
        sys.modules.pop(name, None)


def test_a_sweep_imports_modules_beside_it(folder: Path) -> None:
    base = "from jaxcls.config import Config\ndef get_config(): return Config(num_steps=2)\n"
    text = (
        "import dataclasses\nfrom base import get_config\n"
        "def sweep():\n    from seeds import SEEDS\n"
        "    for s in SEEDS: yield str(s), dataclasses.replace(get_config(), seed=s)\n"
    )
    write(folder, mine=text, base=base, seeds="SEEDS = (3, 4)")
    assert [config.seed for _, config in load_sweep(folder / "mine.py")] == [3, 4]


@pytest.mark.parametrize(
    ("common", "expected"),
    [
        ("x = 1\n1 / 0", "common.py:2: ZeroDivisionError: division by zero"),
        ("def f(:", "common.py:1: SyntaxError"),
        ("import nowhere_to_be_found", "common.py:1: ModuleNotFoundError: No module named 'nowh"),
        ("from jaxcls.config import *\nDataConfig(sourc='x')", "common.py:2: DataConfig has no fi"),
    ],
)
def test_a_mistake_beside_the_config_is_shown_there(
    folder: Path, common: str, expected: str
) -> None:
    write(folder / "a", mine="import common\n" + USES.format(1), common=common)
    with pytest.raises(ConfigError) as caught:
        load_config("../a/mine.py")
    assert str(caught.value).startswith(f"../a/{expected}")
    assert "common" not in sys.modules


def test_nothing_beside_the_config_is_found_by_others(folder: Path) -> None:
    write(folder, mine=USES.format(1), beside="")
    load_config(folder / "mine.py")
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("beside")
