"""Signals to processes of their own, before and after the work of a command."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

# The program, with WORK in place of the command line.
PROGRAM = """
import contextlib, signal, sys, threading, types
{before}
cli = types.ModuleType("jaxcls.commands.cli")
sys.modules["jaxcls.commands.cli"] = cli
def work():
    import atexit, os, signal, sys, time
    from jaxcls.system.early_signals import work_is_done
    {work}
cli.ending = lambda arguments: contextlib.nullcontext(types.SimpleNamespace())
cli.find_command = lambda arguments: work
cli.say_fault_in_thread = threading.excepthook
from jaxcls.__main__ import run
run()
"""
READY = 'print("ready", flush=True); '


def start(work: str, *, before: str = "") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(work=work, before=before)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def status_after(process: subprocess.Popen[str], *numbers: int) -> tuple[int, str]:
    """Sends signals once the process is ready; its status and what it says."""
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for number in numbers:
            process.send_signal(number)
        try:
            _, err = process.communicate(timeout=30)
        finally:
            process.kill()
    return process.returncode, err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "work",
    [
        "time.sleep(60)",
        # As a compile does, this comes back to Python late.
        "import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)",
        # As an import of a library may, this would take KeyboardInterrupt for its own failure.
        "\n    while True:\n        try: time.sleep(60)\n        except BaseException: pass",
        "sys.stderr = None; time.sleep(60)",
    ],
    ids=["waits", "computes", "catches all", "says nothing"],
)
def test_a_signal_ends_the_program_with_status_75_and_one_line(number: int, work: str) -> None:
    status, err = status_after(start(READY + work), number)
    name = signal.Signals(number).name
    assert status == 75
    assert err == f"stopped by {name} before it was done; run the same command to start over\n"


def test_a_signal_that_came_while_the_program_started_again_ends_it() -> None:
    before = "import os; signal.pthread_sigmask(signal.SIG_BLOCK, [15]); os.kill(os.getpid(), 15)"
    with start("time.sleep(60)", before=before) as process:
        _, err = process.communicate(timeout=30)
    assert process.returncode == 75
    assert err.startswith("stopped by SIGTERM before it was done")


@pytest.mark.parametrize("done", [0, 75, 2])
def test_once_the_work_is_done_a_signal_does_not_change_the_status(done: int) -> None:
    work = f"work_is_done({done}); {READY}time.sleep(0.2); sys.exit({done})"
    assert status_after(start(work), signal.SIGINT) == (done, "")


def test_an_end_that_hangs_is_cut_short_by_a_second_signal() -> None:
    work = f"work_is_done(0); atexit.register(time.sleep, 60); {READY}"
    process = start(work)
    with process:
        assert process.stdout is not None
        process.stdout.readline()
        while process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(0.2)
            except subprocess.TimeoutExpired:
                continue
        assert process.returncode == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_a_signal_that_the_parent_ignores_stays_ignored() -> None:
    ignored = "signal.signal(signal.SIGINT, signal.SIG_IGN)"
    process = start(READY + "time.sleep(60)", before=ignored)
    status, err = status_after(process, signal.SIGINT, signal.SIGTERM)
    assert (status, err.split()[:3]) == (75, ["stopped", "by", "SIGTERM"])


def test_who_sets_another_handler_gets_the_signal() -> None:
    work = f"signal.signal(signal.SIGTERM, lambda *_: sys.exit(3)); {READY}time.sleep(60)"
    assert status_after(start(work), signal.SIGTERM) == (3, "")


def test_a_signal_to_a_forked_child_does_not_end_its_parent() -> None:
    work = (
        "\n    child = os.fork() or time.sleep(60)"
        "\n    os.kill(child, signal.SIGTERM)"
        "\n    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])"
        "\n    assert status == -signal.SIGTERM, status"
        '\n    time.sleep(0.1); print("ready", flush=True)'
    )
    status, err = status_after(start("import warnings; warnings.simplefilter('ignore')" + work))
    assert (status, err) == (0, "")


def test_it_is_there_before_anything_that_takes_long_to_import() -> None:
    code = "import sys; import jaxcls.__main__; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True,
        cwd=Path(__file__).parents[2], check=True)  # fmt: skip
    loaded = set(done.stdout.split())
    assert loaded >= {"jaxcls", "jaxcls.system.early_signals", "jaxcls.__main__"}
    assert not loaded & {
        "typing",
        "dataclasses",
        "inspect",
        "jaxcls.commands.cli",
        "tyro",
        "jax",
    }


WAITING = """
import sys, time
print("ready", flush=True)
time.sleep(60)
"""


SCRIPT = [str(Path(sys.executable).with_name("jaxcls"))]


@pytest.mark.parametrize("program", [SCRIPT, [sys.executable, "-m", "jaxcls"]])
@pytest.mark.parametrize("command", [["train"], ["show", "schedule"]])
def test_the_command_ends_so_while_it_reads_its_config(
    tmp_path: Path, program: list[str], command: list[str]
) -> None:
    (tmp_path / "config.py").write_text(WAITING)
    process = subprocess.Popen(
        [*program, *command, "config.py"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    status, err = status_after(process, signal.SIGINT)
    assert (status, len(err.splitlines())) == (75, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["config.py"]
