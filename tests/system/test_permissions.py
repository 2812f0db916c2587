"""Whatever the umask, no other user can change what jaxcls writes, and caches are private."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import TINY_CONFIG, Run

from jaxcls.data.folder_index import index_folder
from jaxcls.system.caches import make_cache_dir
from jaxcls.system.permissions import make_private, restrict_umask


@pytest.fixture
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def open_to_others(folder: Path, *, bits: int = stat.S_IWOTH) -> list[str]:
    return [
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if not path.is_symlink() and path.stat().st_mode & bits
    ]


@pytest.mark.parametrize(("umask", "becomes"), [(0, 0o002), (0o022, 0o022), (0o077, 0o077)])
@pytest.mark.usefixtures("no_umask")
def test_every_user_loses_the_right_to_write_and_nobody_gets_one(umask: int, becomes: int) -> None:
    os.umask(umask)
    restrict_umask()
    assert os.umask(0) == becomes


@pytest.mark.usefixtures("no_umask")
def test_a_private_folder_and_its_new_parents_are_this_users(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir(mode=0o755)
    for _ in range(2):
        make_private(tmp_path / "there/a/b")
    modes = [stat.S_IMODE((tmp_path / p).stat().st_mode) for p in ("there", "there/a", "there/a/b")]
    assert modes == [0o755, 0o700, 0o700]
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"exists|Not a directory"):
        make_private(tmp_path / "file/a")


@pytest.mark.usefixtures("no_umask")
def test_caches_are_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home/.cache"))
    (tmp_path / "photos/cat").mkdir(parents=True)
    index_folder(tmp_path / "photos")
    assert list((make_cache_dir() / "folders").iterdir())
    for folder in (
        tmp_path / "home",
        tmp_path / "home/.cache",
        make_cache_dir(),
        make_cache_dir() / "folders",
    ):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700, folder


@pytest.mark.usefixtures("no_umask")
def test_a_command_writes_nothing_that_others_can_change(tmp_path: Path) -> None:
    (tmp_path / "small.py").write_text(TINY_CONFIG.replace('"tiny"', '"efficientnetv2_b0"'))
    command = [sys.executable, "-m", "jaxcls", "show", "schedule", "small.py", "-o", "rate.png"]
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    subprocess.run(command, cwd=tmp_path, env=os.environ | cache, check=True, capture_output=True)
    assert (tmp_path / "rate.png").is_file()
    (tmp_path / "small.py").unlink()  # which this test wrote
    assert open_to_others(tmp_path) == []


@pytest.mark.usefixtures("no_umask")
def test_a_training_writes_nothing_that_others_can_change(run: Run, tmp_path: Path) -> None:
    Path("tiny.py").chmod(0o644)
    commands = (
        ("train", "tiny.py", "--workdir", "deep/run"),  # also as a function of the library
        ("evaluate", "deep/run", "--predictions", "new.csv"),
        ("export", "deep/run", "-o", "exports/one", "--platforms", "cpu"),
        ("convert", "deep/run", "-o", "weights/w.safetensors"),
        ("show", "run", "deep/run", "-o", "run.png"),
    )
    for command in commands:
        result = run(*command)
        assert result.status == 0, result.err
    assert {path.name for path in tmp_path.rglob("*")} >= {
        *("config.json", "metrics.csv", "log.txt", "state.json", "_CHECKPOINT_METADATA"),
        *("new.csv", "model.stablehlo", "w.safetensors", "run.png"),
    }
    assert open_to_others(tmp_path) == []
