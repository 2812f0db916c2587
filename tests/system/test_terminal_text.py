"""Nothing that a file contains does anything to a terminal."""

import ast
import logging
import pickle
import sys
import time
from pathlib import Path

import pytest
from secret_texts import SECRETS

import jaxcls
from jaxcls.system.errors import DataError, UserError, one_line
from jaxcls.system.output import PublicFormatter, say, table
from jaxcls.system.terminal_text import harmless, masked, public

TITLE = "\x1b]0;x\x07"
HOSTILE = f"cat{TITLE}\x9b2J\u202e\ud800\x7f\r"
SHOWN = r"cat\x1b]0;x\x07\x9b2J\u202e\ud800\x7f\r"


def test_what_moves_a_terminal_is_escaped_and_letters_stay() -> None:
    assert harmless(HOSTILE) == SHOWN
    assert (
        harmless("two\nlines\tand 日本 é \u200d 🦊 \u00ad")
        == "two\nlines\tand 日本 é \u200d 🦊 \u00ad"
    )
    assert harmless("two\nlines", keep="") == r"two\nlines"
    every = "".join(map(chr, range(sys.maxunicode + 1)))
    changed = [c for c in every if harmless(c, keep="") != c]
    assert len(changed) == 65 + 2048 + 2 + 9  # controls, surrogates, ends of lines, directions
    assert harmless(every, keep="").encode()


def test_commands_logs_tables_and_errors_are_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    say(HOSTILE)
    say(HOSTILE, sys.stderr)
    assert capsys.readouterr() == (SHOWN + "\n", SHOWN + "\n")
    record = logging.LogRecord("jaxcls", logging.WARNING, "", 0, "of %s", (HOSTILE,), None)
    assert PublicFormatter("%(message)s").format(record) == f"of {SHOWN}"
    assert table([["a", "b"], [HOSTILE, "x\ny"]]).splitlines()[1] == f"{SHOWN}  {r'x\ny'}"
    for error in (UserError(HOSTILE), pickle.loads(pickle.dumps(DataError(HOSTILE)))):
        assert str(error) == SHOWN


@pytest.mark.parametrize("text", SECRETS)
def test_secrets_of_addresses_are_masked(
    text: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert masked(text) == masked(masked(text)) == SECRETS[text]
    assert str(UserError(text)) == one_line(OSError(text)) == public(text) == SECRETS[text]
    say(text)
    assert capsys.readouterr().out == SECRETS[text] + "\n"
    record = logging.LogRecord("jaxcls", logging.WARNING, "", 0, "of %s", (text,), None)
    assert PublicFormatter("%(message)s").format(record) == f"of {SECRETS[text]}"


def test_commands_print_with_say_only() -> None:
    prints = [
        path.name
        for path in sorted(Path(jaxcls.__file__).parent.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
    ]
    assert prints == ["output.py", "output.py"]  # say and put


@pytest.mark.parametrize(
    "part",
    ["x-", "a:", "eyJaaaaaaaa.", "?token", "token", "authorization: ", "a://b", "A_", "a:b@"],
)
def test_a_long_hostile_text_is_masked_quickly(part: str) -> None:
    start = time.perf_counter()
    masked("?" + part * (100_000 // len(part)))
    assert time.perf_counter() - start < 3
