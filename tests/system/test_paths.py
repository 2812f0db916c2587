import os
from pathlib import Path

import pytest

from jaxcls.config import load_config
from jaxcls.data.tfds_folders import data_root
from jaxcls.pretrained.files import read_weights
from jaxcls.pretrained.weights import kind_of_weights
from jaxcls.system.errors import UserError
from jaxcls.system.paths import expand_home, local_path, run_path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def test_only_a_leading_tilde_is_the_home_folder(home: Path) -> None:
    assert expand_home("~") == str(home)
    assert expand_home("~/a b/$HOME") == f"{home}/a b/$HOME"
    for text in ("", "a/~", "./~", "$HOME/x", "gs://bucket/~", "a~", "/~/x"):
        assert expand_home(text) == text
    assert local_path(Path("~/x")) == home / "x"


def test_the_home_of_another_user(home: Path) -> None:
    import pwd

    user = pwd.getpwuid(os.getuid())
    assert expand_home(f"~{user.pw_name}/x") == f"{user.pw_dir.rstrip('/')}/x"
    with pytest.raises(UserError, match="'~no-such-user/x': there is no home folder ~no-such-user"):
        expand_home("~no-such-user/x")
    Path("~$word.docx").touch()
    assert expand_home("~$word.docx") == "~$word.docx"


def test_without_a_home_folder_it_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 12345678)
    with pytest.raises(UserError, match="'~/x': there is no home folder ~; give the whole path"):
        run_path("~/x")


@pytest.mark.usefixtures("home")
def test_a_run_has_a_name() -> None:
    with pytest.raises(UserError, match="an empty name"):
        run_path("")


def test_paths_of_the_library_begin_at_home(home: Path) -> None:
    assert run_path("~/runs/x") == home / "runs/x"
    assert str(data_root("~/sets")) == str(home / "sets")
    (home / "w.h5").touch()
    assert kind_of_weights("~/w.h5") == "file"
    assert kind_of_weights("~") == "run"
    with pytest.raises(UserError, match=f"{home}/w.h5"):
        read_weights("~/w.h5")
    (home / "c.py").write_text(
        "from jaxcls.config import *\nget_config = lambda: Config(num_steps=3)"
    )
    assert load_config("~/c.py").num_steps == 3
