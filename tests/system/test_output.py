import contextlib
import fcntl
import io
import json
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

from jaxcls.system.output import drop_reason, may_draw, safe_stream, table

SMALL = '''\
"""A network of seconds, so that a whole training fits into a test."""
from jaxcls.config import *
from jaxcls.models import specs
from jaxcls.models.efficientnet import ModelSpec, BlockSpec

specs.SPECS["small"] = ModelSpec(
    name="small", stem_filters=8,
    blocks=(BlockSpec(fused=True, repeats=1, filters=8, expansion=1, stride=1, se_ratio=0.0),),
    head_filters=16, image_size=32, mean=(0.5,) * 3, std=(0.5,) * 3)


def get_config():
    return Config(
        model=ModelConfig(name="small"),
        data=DataConfig(batch_size=32, image_size=16, canvas_size=8, eval_split="test[:32]"),
        checkpoint=CheckpointConfig(every_steps=1000, keep_best=0),
        num_steps=10**6, eval_every_steps=10, log_every_steps=1, log_images=0)
'''

IN_ITS_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "os.execv(sys.argv[1], sys.argv[1:])"
)


@contextlib.contextmanager
def pipe(encoding: str = "utf-8") -> Iterator[tuple[int, TextIO]]:
    """A reader's number, and the stream that it reads."""
    reader, writer = os.pipe()
    with open(writer, "w", encoding=encoding) as stream:
        yield reader, stream
    with contextlib.suppress(OSError):
        os.close(reader)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_text_reaches_its_reader() -> None:
    with pipe() as (reader, stream):
        print("step 1", file=safe_stream(stream), flush=True)
        assert os.read(reader, 100) == b"step 1\n"
        assert drop_reason(safe_stream(stream)) is None


def test_a_reader_who_leaves_is_noted_and_nothing_more() -> None:
    with pipe() as (reader, stream):
        safe = safe_stream(stream)
        os.close(reader)
        for _ in range(3):
            print("x" * 10**5, file=safe, flush=True)
        safe.close()  # has nothing left to write
        assert drop_reason(safe) == "Broken pipe"


def test_a_disk_that_is_full_is_noted() -> None:
    with open("/dev/full", "w") as stream:
        safe = safe_stream(stream)
        print("lost", file=safe, flush=True)
        assert drop_reason(safe) == "No space left on device"


@pytest.mark.parametrize("problem", [BrokenPipeError(32, "Broken pipe"), ValueError("closed")])
def test_a_stream_that_is_no_file_lasts_too(problem: Exception) -> None:
    class Gone(io.StringIO):
        def write(self, _: str) -> int:
            raise problem

    safe = safe_stream(Gone())
    print("lost", file=safe, flush=True)
    assert (drop_reason(safe) or "nothing") in str(problem)


def test_a_stream_that_ends_elsewhere_is_not_written_by_its_number(tmp_path: Path) -> None:
    class Notebook(io.StringIO):
        def fileno(self) -> int:
            return terminal.fileno()

    with (tmp_path / "terminal").open("w") as terminal:
        cell = Notebook()
        print("写", file=safe_stream(cell), flush=True)
    assert cell.getvalue() == "写\n"
    assert (tmp_path / "terminal").read_text() == ""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_what_an_encoding_lacks_is_escaped(encoding: str) -> None:
    with pipe(encoding) as (reader, stream):
        print("写.jpg", file=safe_stream(stream), flush=True)
        assert os.read(reader, 100) == b"\\u5199.jpg\n"


def test_a_name_that_is_no_text_is_escaped() -> None:
    with pipe() as (reader, stream):
        print(os.fsdecode(b"\xff.jpg"), file=safe_stream(stream), flush=True)
        assert os.read(reader, 100) == b"\\udcff.jpg\n"


def test_a_reader_who_does_not_read_is_waited_for_once() -> None:
    with pipe() as (reader, stream):
        safe = safe_stream(stream, patience=0.2)
        start = time.monotonic()
        for _ in range(50):
            print("x" * 10**5, file=safe, flush=True)
        assert 0.2 < time.monotonic() - start < 5
        assert drop_reason(safe) == "nobody reads it"
        while select.select([reader], [], [], 0)[0]:
            os.read(reader, 10**6)
        print("there again", file=safe, flush=True)
        assert os.read(reader, 100).endswith(b"there again\n")


def test_a_file_that_does_not_block_is_written_whole() -> None:
    with pipe() as (reader, stream):
        os.set_blocking(stream.fileno(), False)
        code = "import sys; print(len(sys.stdin.read()))"
        with subprocess.Popen([sys.executable, "-c", code], stdin=reader, stdout=-1) as process:
            safe = safe_stream(stream)
            print("x" * 10**6, file=safe, flush=True)
            stream.close()
            assert process.stdout is not None
            assert process.stdout.read() == b"1000001\n"
    assert drop_reason(safe) is None


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, True),
        ({"NO_COLOR": "1"}, True),  # of a bar without colours
        ({"FORCE_COLOR": "1"}, True),
        ({"CI": "false"}, True),
        ({"CI": "true"}, False),
        ({"TERM": "dumb"}, False),
        ({"TERM": ""}, False),
        ({"COLUMNS": "0"}, False),
        ({"COLUMNS": "1"}, False),
        ({"COLUMNS": "59"}, False),
        ({"TTY_COMPATIBLE": "0"}, False),
        ({"TTY_INTERACTIVE": "0"}, False),
        ({"TTY_INTERACTIVE": "1", "CI": "true"}, True),
    ],
)
def test_a_bar_is_drawn_for_a_person(environ: dict[str, str], expected: bool) -> None:
    assert may_draw(Terminal(), {"TERM": "xterm", "COLUMNS": "100"} | environ) is expected


@pytest.mark.parametrize(
    "environ", [{}, {"FORCE_COLOR": "1"}, {"TTY_COMPATIBLE": "1"}, {"FORCE_COLOR": "3", "CI": "1"}]
)
def test_no_bar_is_drawn_into_a_file(environ: dict[str, str]) -> None:
    assert not may_draw(io.StringIO(), {"TERM": "xterm", "COLUMNS": "100"} | environ)


@pytest.mark.parametrize(("columns", "expected"), [(0, False), (1, False), (100, True)])
def test_a_terminal_tells_its_width(columns: int, expected: bool) -> None:
    master, terminal = pty.openpty()
    try:
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        with open(terminal, "w") as stream:
            assert may_draw(stream, {"TERM": "xterm"}) is expected
    finally:
        os.close(master)


def shell(command: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    """What a shell says of a command line with `jaxcls` in it."""
    command = command.replace("jaxcls", f"{sys.executable} -m jaxcls")
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        env=os.environ | environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("command", "status", "says"),
    [
        ("jaxcls --help | true", 0, ""),  # whose reader wanted no more
        ("jaxcls runs --help | head -n 1 >&2", 0, "usage: jaxcls runs"),
        (
            "jaxcls --help >/dev/full",
            2,
            "output is incomplete: cannot write to standard output (No space left on device)",
        ),
        ("jaxcls --version >&- <&-", 0, ""),
        ("jaxcls nonsense 2>&-", 2, ""),
        ("jaxcls nonsense 2>/dev/full", 2, ""),
        ("COLUMNS=1 jaxcls runs --nonsense", 2, "Unrecognized"),
        ("PYTHONIOENCODING=ascii jaxcls runs runs/写真", 2, "there is no such folder"),
    ],
)
def test_a_command_ends_with_the_status_of_its_work(command: str, status: int, says: str) -> None:
    done = shell(command)
    assert done.returncode == status
    assert says in done.stderr
    assert bool(says) == bool(done.stderr), "nothing else, as tracebacks are"
    assert "Traceback" not in done.stderr


def test_progress_bars_of_libraries_are_off_where_nobody_looks(tmp_path: Path) -> None:
    (tmp_path / "bar.py").write_text(
        "import sys\nfrom jaxcls.system.output import protect_output\nprotect_output()\n"
        "import tqdm\nfor _ in tqdm.tqdm(range(3)): pass\n"
    )
    done = subprocess.run(
        [sys.executable, "bar.py"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""


def small_training(folder: Path, run: str, *options: str) -> list[str]:
    (folder / "small.py").write_text(SMALL)
    return [sys.executable, "-m", "jaxcls", "train", "small.py", "--workdir", run, *options]


def wait_for_steps(run: Path, steps: int) -> None:
    until = time.monotonic() + 240
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            if len((run / "metrics.csv").read_text().splitlines()) > steps:
                return
        time.sleep(0.05)
    raise AssertionError("no steps are taken")


@pytest.mark.slow
def test_a_training_whose_reader_leaves_continues_and_says_why(tmp_path: Path) -> None:
    command = small_training(tmp_path, "写真", "--num-steps", "30")
    with (
        open("/dev/full", "w") as full,
        subprocess.Popen(
            command,
            cwd=tmp_path,
            env=os.environ | {"PYTHONIOENCODING": "ascii", "FORCE_COLOR": "1"},
            stdout=full,
            stderr=subprocess.PIPE,
        ) as process,
    ):
        assert process.stderr is not None
        assert process.stderr.readline().startswith(b"training: small on digits")
        process.stderr.close()
        assert process.wait(240) == 0
    run = tmp_path / "写真"
    assert json.loads((run / "state.json").read_text())["state"] == "finished"
    log = (run / "log.txt").read_text()
    assert log.count("messages could not be printed (Broken pipe); the training continues") == 1
    assert "step 30/30" in log


@pytest.mark.slow
def test_a_training_whose_terminal_closes_saves(tmp_path: Path) -> None:
    master, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", IN_ITS_TERMINAL, *small_training(tmp_path, "run")],
        cwd=tmp_path,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "1"},
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )
    os.close(terminal)
    wait_for_steps(tmp_path / "run", 3)
    shown = os.read(master, 10**5)
    os.close(master)
    assert process.wait(240) == 75
    state = json.loads((tmp_path / "run/state.json").read_text())
    assert (state["state"], state["why"]) == ("stopped", "SIGHUP")
    assert list((tmp_path / "run/checkpoints").iterdir())
    assert b"training: small on digits" in shown
    assert b"\x1b" not in shown, "no bar in a terminal of one column"


def test_columns_of_a_table_line_up() -> None:
    rows = [["name", "count", "note"], ["a", "1,000", ""], ["longer", "7", "x"]]
    assert table(rows, right=[1]).splitlines() == [
        "name    count  note",
        "a       1,000",
        "longer      7  x",
    ]
