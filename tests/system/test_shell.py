import os
import shlex
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import pytest

from jaxcls.system.shell import command, path_word
from jaxcls.system.terminal_text import harmless

NAMES = ["runs/a", "my run", "it's", 'say "x"', "-x", "--top", "~x", "$HOME", "naïve/日本", "a\nb",
         "gs://bucket/my run", "*", "a;b", "$(touch x)", "`touch x`", "!!", "\x1b]0;x\x07",
         "\x1bb'\\", "\x9b", "a\u202eb", "caf\udce9"]  # fmt: skip


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Makes it look as if jaxcls was started in some way; returns the folder that has it."""
    monkeypatch.delenv("UV_RUN_RECURSION_DEPTH", raising=False)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/jaxcls").touch(0o755)

    def start(program: str | Path, *, on_path: bool, uv: bool = False) -> None:
        monkeypatch.setattr(sys, "argv", [str(program)])
        monkeypatch.setenv("PATH", str(tmp_path / "bin") if on_path else "/nowhere")
        if uv:
            monkeypatch.setenv("UV_RUN_RECURSION_DEPTH", "1")

    return start


@pytest.mark.parametrize("name", NAMES)
def test_a_shell_reads_the_words_back(name: str) -> None:
    pasted = command("evaluate", path_word(name))
    assert pasted == harmless(pasted)
    words = subprocess.run(["bash", "-c", f"printf '%s\\0' {pasted}"], check=True, stdout=PIPE)
    program, verb, word = os.fsdecode(words.stdout).removesuffix("\0").split("\0")
    assert (program, verb) == ("jaxcls", "evaluate")
    assert word == name or (word == f"./{name}" and name[0] in "-~")
    assert not word.startswith(("-", "~"))


def test_the_program_is_what_started_it(started, tmp_path: Path) -> None:
    script = tmp_path / "bin/jaxcls"
    module = Path(sys.prefix) / "site-packages/jaxcls/__main__.py"
    started(script, on_path=True)
    assert command("runs") == "jaxcls runs"
    started(script, on_path=False)
    assert command("runs") == f"{script} runs"
    started(os.path.join(".venv", "bin", "jaxcls"), on_path=True)  # another one is found first
    assert command("runs") == ".venv/bin/jaxcls runs"
    started(module, on_path=True)
    assert command("runs") == "jaxcls runs"
    started(module, on_path=False)
    assert command("runs") == f"{shlex.quote(sys.executable)} -m jaxcls runs"


@pytest.mark.parametrize("on_path", [True, False])
def test_what_uv_started_is_started_by_uv(started, tmp_path: Path, on_path: bool) -> None:
    started(tmp_path / "bin/jaxcls", on_path=on_path, uv=True)
    assert command("evaluate", "my run") == "uv run jaxcls evaluate 'my run'"
    started("/x/jaxcls/__main__.py", on_path=on_path, uv=True)
    assert command("runs") == "uv run jaxcls runs"
    started("/x/train_my_own.py", on_path=on_path, uv=True)
    assert command("runs") == "jaxcls runs"


def test_an_extra_is_uvs(started, tmp_path: Path) -> None:
    started(tmp_path / "bin/jaxcls", on_path=True)
    assert command("prepare", "tfds:x", extra="prepare") == (
        "uv run --extra prepare jaxcls prepare tfds:x"
    )
