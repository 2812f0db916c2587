"""tpu_worker.sh as it runs on a worker, with a stand-in for jaxcls; and the launcher over it."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from fakes import ROOT, Fakes, Reply

# Trains until it is told how to end: by its last argument, or by the file `end` in its folder.
JAXCLS = """#!/usr/bin/env bash
echo "arguments: $*"
trap 'echo saved; exit 75' TERM
[[ $2 != --at-once ]] || exit "$3"
until [[ -e end ]]; do sleep 0.02; done
exit "$(cat end)"
"""


@pytest.fixture
def worker(tmp_path: Path) -> Path:
    """The folder that the launcher makes on a worker."""
    folder = tmp_path / "jaxcls"
    (folder / "launch").mkdir(parents=True)
    shutil.copy(ROOT / "launch/tpu_worker.sh", folder / "launch")
    command = folder / ".venv/bin/jaxcls"
    command.parent.mkdir(parents=True)
    command.write_text(JAXCLS)
    command.chmod(0o755)
    return folder


def call(worker: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(worker / "launch/tpu_worker.sh"), *arguments],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=20,
        stdin=subprocess.DEVNULL,
    )


def state(worker: Path) -> str:
    return call(worker, "status").stdout.split(maxsplit=2)[2].strip()


def wait_for(worker: Path, expected: str) -> None:
    deadline = time.monotonic() + 10
    while (found := state(worker)) != expected:
        assert time.monotonic() < deadline, f"{found}, not {expected}"
        time.sleep(0.02)


def log(worker: Path) -> str:
    return (worker / "worker/log.txt").read_text()


@pytest.mark.parametrize("status", ["0", "2", "75", "1"])
def test_the_exit_status_is_kept(worker: Path, status: str) -> None:
    assert state(worker) == "absent"
    assert call(worker, "start", "--at-once", status).returncode == 0
    wait_for(worker, f"exited {status}")
    assert log(worker) == f"arguments: train --at-once {status}\n"


def test_a_second_start_attaches(worker: Path) -> None:
    call(worker, "start", "config.py", "two words")
    assert state(worker) == "running"
    assert "already running" in call(worker, "start", "config.py").stdout
    (worker / "end").write_text("0")
    assert call(worker, "logs", "1").stdout == "arguments: train config.py two words\n"
    wait_for(worker, "exited 0")
    assert call(worker, "logs", "2").stdout == ""
    # Once it has ended it starts again, with a log of its own.
    (worker / "end").unlink()
    assert "started" in call(worker, "start", "config.py").stdout
    assert len(list((worker / "worker").glob("log*.txt"))) == 2
    call(worker, "stop")


def test_stop_lets_the_training_save(worker: Path) -> None:
    call(worker, "start", "config.py")
    while "arguments" not in log(worker):
        time.sleep(0.02)
    assert call(worker, "stop").returncode == 0
    wait_for(worker, "exited 75")
    assert "saved" in log(worker)
    assert call(worker, "stop").returncode == 0


def test_stop_kills_what_does_not_end(worker: Path) -> None:
    (worker / ".venv/bin/jaxcls").write_text(
        "#!/usr/bin/env bash\ntrap '' TERM\necho ready\nsleep 60\nsleep 60\n"
    )
    call(worker, "start", "config.py")
    while not log(worker):  # before, the signal could come earlier than the trap
        time.sleep(0.02)
    result = call(worker, "stop", JAXCLS_GRACE_SECONDS="0")
    assert "did not stop within 0 s; killing it" in result.stderr
    wait_for(worker, "exited 137")


def start_with_setsid(worker: Path, folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Starts a training where the script stands for the program `setsid`."""
    setsid = folder / "bin/setsid"
    setsid.parent.mkdir()
    setsid.write_text(f"#!/usr/bin/env bash\n{script}\n")
    setsid.chmod(0o755)
    return call(worker, "start", "config.py", PATH=f"{setsid.parent}:{os.environ['PATH']}")


def test_a_killed_supervisor_is_no_running_training(worker: Path, tmp_path: Path) -> None:
    # A busy machine: the process group is there late, but when `start` returns it is there.
    start_with_setsid(worker, tmp_path, f'sleep 0.5\nexec {shutil.which("setsid")} "$@"')
    os.killpg(int((worker / "worker/pid").read_text()), signal.SIGKILL)
    wait_for(worker, "exited 137")


def test_a_start_that_fails_says_why(worker: Path, tmp_path: Path) -> None:
    result = start_with_setsid(worker, tmp_path, "echo no more processes\nexit 1")
    assert result.returncode == 1
    assert "no more processes" in result.stderr
    assert state(worker) == "absent"


def test_another_process_with_the_old_number_is_no_training(worker: Path) -> None:
    (worker / "worker").mkdir()
    (worker / "worker/pid").write_text(f"{os.getpid()}\n")
    assert state(worker) == "exited 137"


def test_install_and_stage(worker: Path, tmp_path: Path) -> None:
    fakes = Fakes(tmp_path / "fakes", ("uv", "gcloud"))
    script = str(worker / "launch/tpu_worker.sh")
    for source in (".", "wheels/jaxcls-0.1.0-py3-none-any.whl", "git+https://host/jaxcls@main"):
        assert fakes.run(script, "install", source).returncode == 0
    shutil.rmtree(worker / ".venv")
    assert fakes.run(script, "install", ".").returncode == 0
    assert fakes.run(script, "stage", "gs://bucket/tfds").returncode == 0
    install = (
        "uv pip install --quiet --python .venv/bin/python "
        "--reinstall-package jaxcls jaxcls[tpu,gcs] @"
    )
    assert fakes.calls() == [
        f"{install} file://{worker}",
        f"{install} file://{worker}/wheels/jaxcls-0.1.0-py3-none-any.whl",
        f"{install} git+https://host/jaxcls@main",
        "uv venv --quiet --python 3.12 .venv",
        f"{install} file://{worker}",
        "gcloud storage rsync --recursive gs://bucket/tfds data",
    ]


@pytest.mark.parametrize("has_pip", [True, False])
def test_uv_is_installed_where_it_is_missing(worker: Path, tmp_path: Path, has_pip: bool) -> None:
    fakes = Fakes(tmp_path / "fakes", ("python3", "curl"))
    for command in ("bash", "sh", "cat", "dirname", "mkdir", "ln"):
        (fakes.bin / command).symlink_to(str(shutil.which(command)))
    home = f"{fakes.folder}/.local/bin"  # a second name of the fake python3 serves as uv
    uv = f"mkdir -p {home}; ln -s {fakes.bin}/python3 {home}/uv"
    fakes.on("-m pip install", Reply(script=uv) if has_pip else Reply(err="No pip\n", status=1))
    fakes.on("uv/install.sh", Reply(out=uv))
    result = fakes.run(str(worker / "launch/tpu_worker.sh"), "install", ".", PATH=str(fakes.bin))
    assert result.returncode == 0, result.stderr
    calls = [call.split()[0] for call in fakes.calls()]
    assert calls == ["python3", *([] if has_pip else ["curl"]), "python3"]


@pytest.mark.parametrize(
    ("launcher", "options"),
    [
        ("tpu_pod.sh", "--accelerator-type v4-8 --runtime-version tpu"),
        (
            "tpu_gce.sh",
            "--machine-type tpu7x-standard-4t --topology 2x2x1 --image-family f --zone z-a",
        ),
    ],
)
def test_the_launcher_over_real_workers(
    worker: Path, tmp_path: Path, launcher: str, options: str
) -> None:
    """Worker 0 is run here; it crashes at first, and its second training goes through."""
    fakes = Fakes(tmp_path / "fakes", ("gcloud", "uv"))
    fakes.on("describe", Reply(out="ACTIVE\n"))
    fakes.on("list-instances", Reply(out="b0-x\tRUNNING\n"))
    copy = f"for word; do case $word in /*) cp \"$word\" '{tmp_path}/jaxcls.tar.gz';; esac; done"
    here = (
        f"for word; do case $word in --command=*) cd '{tmp_path}'; "
        'eval "${word#--command=}"; exit;; esac; done'
    )
    fakes.on("compute (tpus tpu-vm )?scp", Reply(script=copy))
    fakes.on("compute (tpus tpu-vm )?ssh", Reply(script=here))
    (worker / ".venv/bin/jaxcls").write_text(
        "#!/usr/bin/env bash\n"
        "[[ -e crashed ]] && { echo done with $2; exit 0; }\n"
        "touch crashed; echo crashing; exit 1\n"
    )
    result = fakes.run(
        *(f"launch/{launcher}", "run", "--name", "b0", *options.split()),
        *("--", "configs/digits.py", "--workdir", "gs://bucket/run"),
    )
    assert result.returncode == 0, result.stderr
    shown = [line for line in result.stdout.splitlines() if not line.startswith("tpu_worker:")]
    assert shown == ["crashing", "done with configs/digits.py"]
    assert "starting it again (restart 1 of 3)" in result.stderr
    assert (worker / "configs/digits.py").exists()
    assert (worker / "jaxcls/commands/cli.py").exists()
