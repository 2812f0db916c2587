import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from documents import DOCUMENTS, text_of

LOCAL = Path(__file__).parents[2] / "launch" / "local.py"
OWN = "os.environ['JAX_PROCESS_ID']"


def start(*options: str, code: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(LOCAL), *options, "--", sys.executable, "-c", code]
    return subprocess.Popen(
        command,
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    _, err = process.communicate(timeout=60)
    return process.returncode, sorted(err.splitlines())


def test_each_process_gets_its_place_and_a_log(tmp_path: Path) -> None:
    names = ["JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "XLA_FLAGS"]
    code = f"import os; print(*(os.environ[name] for name in {names}))"
    status, lines = finish(
        start("-n", "2", "--devices", "3", "--log-dir", str(tmp_path / "logs"), code=code)
    )
    assert status == 0
    for number, line in enumerate(lines):
        mark, address, count, process, *flags = line.split()
        assert (mark, count, process) == (f"[{number}]", "2", str(number))
        assert address.startswith("localhost:")
        assert "--xla_force_host_platform_device_count=3" in flags
        assert (tmp_path / f"logs/{number}.log").read_text() == line.removeprefix(f"{mark} ") + "\n"
    assert len({line.split()[1] for line in lines}) == 1


def test_each_process_gets_a_gpu() -> None:
    code = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"
    gpus = {"JAX_PLATFORMS": "cuda", "CUDA_VISIBLE_DEVICES": "4,6"}
    assert finish(start("-n", "2", code=code, **gpus)) == (0, ["[0] 4", "[1] 6"])
    status, lines = finish(start("-n", "3", code=code, **gpus))
    assert status != 0
    assert "this machine has 2 GPUs" in lines[0]


@pytest.mark.parametrize(
    ("statuses", "expected"), [((0, 0), 0), ((75, 75), 75), ((75, 0), 75), ((2, 1), 2), ((0, 3), 3)]
)
def test_the_status_tells_how_the_job_ended(statuses: tuple[int, int], expected: int) -> None:
    code = f"import os, sys, time; own = int({OWN}); time.sleep(own); sys.exit({statuses}[own])"
    assert finish(start("-n", "2", code=code))[0] == expected


def test_the_first_that_fails_decides_whichever_it_is() -> None:
    code = f"import os, sys, time; own = int({OWN}); time.sleep(1 - own); sys.exit(4 - own)"
    assert finish(start("-n", "2", code=code))[0] == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_reaches_every_process(number: signal.Signals) -> None:
    code = (
        "import signal, sys, time\n"
        f"signal.signal({int(number)}, lambda *_: sys.exit(75))\n"
        "print('ready', flush=True)\ntime.sleep(60)"
    )
    process = start("-n", "2", "--restart", "3", code=code)
    assert process.stderr is not None
    for _ in range(2):
        assert "ready" in process.stderr.readline()
    process.send_signal(number)
    assert finish(process)[0] == 75  # and is not started again


def test_a_crash_starts_all_again_but_a_mistake_does_not(tmp_path: Path) -> None:
    code = (
        f"import os, pathlib, sys; own = pathlib.Path({str(tmp_path)!r}, {OWN})\n"
        "count = len(own.read_text()) if own.exists() else 0\n"
        "own.write_text('x' * (count + 1)); sys.exit([1, 75, 0][count])"
    )
    assert finish(start("-n", "2", "--restart", "2", code=code))[0] == 0
    assert [(tmp_path / name).read_text() for name in "01"] == ["xxx", "xxx"]
    before = time.monotonic()
    status, lines = finish(start("-n", "2", "--restart", "2", code="import sys; sys.exit(2)"))
    assert (status, lines) == (2, [])
    assert time.monotonic() - before < 30


MANY_LINES = "print(*['x' * 99] * 20001, sep='\\n')"


@pytest.mark.parametrize("after", ["| head -n 1", ">/dev/full 2>&1", "2>&-"])
def test_a_job_outlives_whoever_reads_it(after: str, tmp_path: Path) -> None:
    code = f"import os, pathlib; {MANY_LINES}; pathlib.Path({OWN}).touch()"
    options = ["-n", "2", "--log-dir", "logs"]
    command = shlex.join([sys.executable, str(LOCAL), *options, "--", sys.executable, "-c", code])
    pipe = "" if ">" in after else "2>&1"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} {pipe} {after}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert all((tmp_path / number).exists() for number in "01")
    assert all(len((tmp_path / f"logs/{n}.log").read_text()) == 2000100 for n in "01")


def test_a_log_that_cannot_be_written_is_reported_once(tmp_path: Path) -> None:
    (tmp_path / "0.log").symlink_to("/dev/full")
    status, lines = finish(start("-n", "1", "--log-dir", str(tmp_path), code="print('a\\nb')"))
    assert status == 0
    assert lines == [
        "[0] a",
        "[0] b",
        f"local.py: {tmp_path / '0.log'} cannot be written: No space left on device",
    ]


def test_what_a_process_prints_is_passed_on_byte_for_byte() -> None:
    code = r"import os; os.write(1, b'\xff\xe5\x86\n')"
    done = subprocess.run(
        [sys.executable, str(LOCAL), "-n", "1", "--", sys.executable, "-c", code],
        env=os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        capture_output=True,
        check=True,
    )
    assert done.stderr == b"[0] \xff\xe5\x86\n"


def test_a_job_ignores_a_hangup_where_nohup_does() -> None:
    code = "import os, signal; os.kill(os.getppid(), signal.SIGHUP); print('goes on')"
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = start("-n", "1", code=code)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert finish(process) == (0, ["[0] goes on"])


def test_a_dry_run_prints_the_commands() -> None:
    process = start("-n", "2", "--dry-run", code="raise SystemExit(5)")
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    lines = out.splitlines()
    assert len(lines) == 2
    for number, line in enumerate(lines):
        words = shlex.split(line)
        assert words[0] == "env"
        assert f"JAX_PROCESS_ID={number}" in words
        assert words[-3:] == [sys.executable, "-c", "raise SystemExit(5)"]


def test_a_command_that_is_not_there_is_named() -> None:
    done = subprocess.run(
        [sys.executable, str(LOCAL), "-n", "2", "--", "no-such-command"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "cannot run 'no-such-command'" in done.stderr


def test_the_documents_command_starts_two_processes() -> None:
    lines = [line for document in DOCUMENTS for line in text_of(document).splitlines()]
    [line] = [line for line in lines if line.startswith("uv run python launch/")]
    arguments = line.removeprefix("uv run python launch/local.py ").split()
    done = subprocess.run(
        [sys.executable, str(LOCAL), "--dry-run", *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(done.stdout.splitlines()) == 2
    assert "jaxcls train configs/digits.py" in done.stdout
