"""Nothing that a file contains does anything to a terminal."""

import ast
import logging
import pickle
import sys
from pathlib import Path

import pytest

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


SECRETS = {
    "see https://user:p@ss%40word@host.org/a?b=c": "see https://***@host.org/a?b=c",
    "git+https://TOKEN@host/x@main": "git+https://***@host/x@main",
    "git+ssh://git@host/x": "git+ssh://git@host/x",
    "ssh://me:pw@host": "ssh://***@host",
    "http://u:p@proxy:3128 failed": "http://***@proxy:3128 failed",
    "url: /r/x?token=abc&v=1 (Caused by": "url: /r/x?token=***&v=1 (Caused by",
    "'https://h/o?X-Goog-Algorithm=A&X-Goog-Credential=me%2F1&X-Goog-Signature=0f&x=1'": (
        "'https://h/o?X-Goog-Algorithm=A&X-Goog-Credential=***&X-Goog-Signature=***&x=1'"
    ),
    "https://h/o?AWSAccessKeyId=A&Signature=b%2B&Expires=1": (
        "https://h/o?AWSAccessKeyId=***&Signature=***&Expires=1"
    ),
    "https://h/o?sv=2020&sig=a/b+c%3D&se=1)": "https://h/o?sv=2020&sig=***&se=1)",
    "https://h/?Key-Pair-Id=K;password=x": "https://h/?Key-Pair-Id=***;password=***",
    "{'authorization': 'Bearer ab.cd-ef_12'}": "{'authorization': 'Bearer ***'}",
    "gs://bucket/runs/a@b and me@host.org, x?y=1": "gs://bucket/runs/a@b and me@host.org, x?y=1",
    "basic steps: tokens=3 a/b?c": "basic steps: tokens=3 a/b?c",
}


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
