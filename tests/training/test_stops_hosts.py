"""Signals and lost peers in a job of two real processes, each the command itself."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ports import free_address
from xla_flags import QUICK, xla_flags

from jaxcls.config import Config, encode
from jaxcls.models import registry
from jaxcls.runs.checkpoint import Checkpoints
from jaxcls.runs.directory import checkpoint_dir

# TROUBLE makes something slow, or fail, so that a test can meet it.
PROCESS = """
import os, signal, sys, time
from pathlib import Path
from jaxcls.commands import cli
from jaxcls.runs.checkpoint import Checkpoints
from jaxcls.data.device import DeviceBatches
from jaxcls.system.errors import DataError
from jaxcls.models import registry
from jaxcls.models.efficientnet import ModelSpec, BlockSpec
from jaxcls.training import evaluation
from jaxcls.training.build import Training
from jaxcls.training.meter import Meter

spec, trouble, process, *arguments = sys.argv[1:]
registry.SPECS["tiny"] = eval(spec)

def before(owner, name, act):
    real, calls = getattr(owner, name), []
    def wrapper(*args, **kwargs):
        calls.append(name)
        print(name, file=sys.stderr, flush=True)
        act(len(calls))
        return real(*args, **kwargs)
    setattr(owner, name, wrapper)

def broken(call):
    if call == 3:
        raise DataError("image 7 is broken")

if trouble:
    before(Meter, "add", lambda _: time.sleep(0.2))
if trouble == "compile":
    before(Training, "compile_step", lambda _: time.sleep(60))
if trouble == "evaluation":
    make = evaluation.make_eval_step
    def make_slow(*args, **kwargs):
        class Step:
            run = staticmethod(make(*args, **kwargs))
        before(Step, "run", lambda _: time.sleep(0.3))
        return Step.run
    evaluation.make_eval_step = make_slow
if trouble == "save":
    before(Checkpoints, "_finish", lambda _: time.sleep(3))
if trouble == "full disk":
    from orbax.checkpoint.experimental.v1._src.path.async_utils import PathAwaitingCreation
    def fail(call):
        if call == 1 if process == "0" else call == 7:
            raise OSError(28, f"no space for process {process}")
    before(PathAwaitingCreation, "create", fail)
if trouble == "stuck" and process == "1":
    before(DeviceBatches, "__next__", lambda call: time.sleep(600 if call == 3 else 0))
if trouble == "broken" and process == "1":
    before(DeviceBatches, "__next__", broken)
if trouble == "dies once" and os.environ.get("JAX_PROCESS_ID") == "1":
    def die(call):
        if call == 8 and not Path("died").exists():
            Path("died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
    before(Meter, "add", die)
sys.exit(cli.main(["train", *arguments]))
"""
CONFIG = """
import json
from jaxcls.config import decode

def get_config():
    return decode(json.loads({text!r}))
"""

RUN = "run[1]"  # also a pattern of other names
LAUNCHER = Path(__file__).parents[2] / "launch" / "local.py"

type Start = Callable[..., list[subprocess.Popen[str]]]


def train_command(config: Config, tmp_path: Path, trouble: str, process: str) -> list[str]:
    (tmp_path / "config.py").write_text(CONFIG.format(text=json.dumps(encode(config))))
    spec = repr(registry.model_spec("tiny"))
    arguments = [str(tmp_path / "config.py"), "--workdir", str(tmp_path / RUN)]
    return [sys.executable, "-c", PROCESS, spec, trouble, process, *arguments]


@pytest.fixture
def start(tiny_config: Config, tmp_path: Path) -> Iterator[Start]:
    """Starts a job of two processes whose stderr goes to files named by their numbers."""
    running: list[subprocess.Popen[str]] = []

    def run(trouble: str, *, stuck_after: float = 0) -> list:
        address = free_address()
        config = dataclasses.replace(tiny_config, num_steps=20, stuck_after_seconds=stuck_after)
        job = []
        for process in map(str, range(2)):
            place = ["--coordinator", address, "--num-processes", "2", "--process-id", process]
            command = [*train_command(config, tmp_path, trouble, process), *place]
            environment = {**os.environ, "XLA_FLAGS": xla_flags(devices=1)}
            with (tmp_path / process).open("w") as err:
                job.append(subprocess.Popen(command, env=environment, stderr=err, text=True))
        running.extend(job)
        return job

    yield run
    for process in running:
        process.kill()
        process.wait()


def await_text(path: Path, text: str, *, count: int = 1) -> None:
    until = time.monotonic() + 120
    while path.read_text().count(text) < count:
        assert time.monotonic() < until, path.read_text()
        time.sleep(0.1)


def statuses(job: list[subprocess.Popen[str]]) -> list[int]:
    return [process.wait(180) for process in job]


def stopped_step(tmp_path: Path) -> int:
    """The step after which both say that they stopped, which is the newest one saved."""
    found = [re.findall(r"after step (\d+) of", (tmp_path / name).read_text()) for name in "01"]
    assert found[0] == found[1]
    (step,) = map(int, found[0])
    with Checkpoints(checkpoint_dir(tmp_path / RUN)) as checkpoints:
        assert checkpoints.steps()[-1] == step
    return step


@pytest.mark.slow
def test_a_signal_in_one_process_stops_both_and_the_run_goes_on(
    start: Start, tmp_path: Path
) -> None:
    job = start("steps")
    await_text(tmp_path / "0", "add", count=3)
    job[1].send_signal(signal.SIGTERM)
    job[1].send_signal(signal.SIGTERM)
    assert statuses(job) == [75, 75]
    step = stopped_step(tmp_path)
    assert statuses(start("")) == [0, 0]
    assert f"resuming after step {step}" in (tmp_path / "0").read_text()
    with Checkpoints(checkpoint_dir(tmp_path / RUN)) as checkpoints:
        assert checkpoints.steps()[-1] == 20


@pytest.mark.slow
def test_during_the_first_compile_all_leave_at_once(start: Start, tmp_path: Path) -> None:
    job = start("compile")
    for process in "01":
        await_text(tmp_path / process, "compile_step")
    job[1].send_signal(signal.SIGINT)
    assert statuses(job) == [75, 75]
    assert "nothing new was trained" in (tmp_path / "0").read_text()


@pytest.mark.long
def test_a_process_that_stands_still_ends_the_other_and_is_named(
    start: Start, tmp_path: Path
) -> None:
    job = start("steps", stuck_after=10)
    await_text(tmp_path / "0", "add", count=3)
    job[1].send_signal(signal.SIGSTOP)
    assert job[0].wait(90) == 1  # half a minute if it is thought to compile
    assert "process 1 has been silent" in (tmp_path / "0").read_text()


@pytest.mark.long
def test_an_evaluation_is_cut_short(start: Start, tmp_path: Path) -> None:
    job = start("evaluation")
    await_text(tmp_path / "0", "run\n")
    job[0].send_signal(signal.SIGTERM)
    assert statuses(job) == [75, 75]
    assert stopped_step(tmp_path) == 4
    assert "eval loss" not in (tmp_path / "0").read_text()


@pytest.mark.long
def test_a_save_is_finished(start: Start, tmp_path: Path) -> None:
    job = start("save")
    await_text(tmp_path / "0", "_finish\n")
    job[0].send_signal(signal.SIGTERM)
    assert statuses(job) == [75, 75]
    assert stopped_step(tmp_path) > 4


@pytest.mark.slow
def test_a_save_that_fails_in_either_process_is_made_up_for(start: Start, tmp_path: Path) -> None:
    # Not by Orbax's own limit of ten minutes.
    assert statuses(start("full disk", stuck_after=100)) == [0, 0]
    for process in "01":  # both know of both failures
        text = (tmp_path / process).read_text()
        for failed in "01":
            assert f"no space for process {failed}); older ones are kept" in text
        assert text.count("the current state is saved instead") == 2
        assert "never awaited" not in text
    with Checkpoints(checkpoint_dir(tmp_path / RUN)) as checkpoints:
        assert checkpoints.steps()[-1] == 20


@pytest.mark.long
def test_a_process_whose_data_hang_ends_both_and_is_named(start: Start, tmp_path: Path) -> None:
    job = start("stuck", stuck_after=10)
    assert statuses(job) == [1, 1]
    texts = [(tmp_path / process).read_text() for process in "01"]
    # The first to see it ends; the other may learn it from their connection.
    assert any("process 1 has been at step 2 (reading data)" in text for text in texts)
    assert all("process 1" in text for text in texts)


@pytest.mark.long
def test_data_that_one_process_cannot_read_end_both(start: Start, tmp_path: Path) -> None:
    job = start("broken", stuck_after=60)
    assert statuses(job) == [1, 2]
    assert "image 7 is broken" in (tmp_path / "1").read_text()
    assert re.search("process 1 (failed|had ended with status 2)", (tmp_path / "0").read_text())


@pytest.mark.long
@pytest.mark.parametrize("lost", [0, 1])
def test_a_killed_process_ends_the_other_and_is_named(
    start: Start, tmp_path: Path, lost: int
) -> None:
    job = start("steps", stuck_after=10)
    await_text(tmp_path / "0", "add", count=3)
    job[lost].kill()
    # Where jaxlib's own connection breaks first, it aborts (134) and names it in its way.
    assert job[1 - lost].wait(60) in (1, -signal.SIGABRT)
    names = (f"process {lost}", f"Task {lost}", "the leader" if lost == 0 else f"task:{lost}")
    assert any(name in (tmp_path / str(1 - lost)).read_text() for name in names)


@pytest.mark.long
def test_when_process_0_stands_still_the_other_ends_and_names_it(
    start: Start, tmp_path: Path
) -> None:
    job = start("steps", stuck_after=10)
    await_text(tmp_path / "0", "add", count=3)
    job[0].send_signal(signal.SIGSTOP)
    assert job[1].wait(60) == 1
    assert "process 0" in (tmp_path / "1").read_text()


@pytest.mark.long
def test_the_launcher_starts_a_job_again_that_lost_a_process(
    tiny_config: Config, tmp_path: Path
) -> None:
    config = dataclasses.replace(tiny_config, num_steps=20, stuck_after_seconds=10)
    command = train_command(config, tmp_path, "dies once", "")
    launch = [sys.executable, str(LAUNCHER), "-n", "2", "--restart", "1", "--"]
    environment = {**os.environ, "XLA_FLAGS": QUICK}
    job = subprocess.run(
        [*launch, *command], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert job.returncode == 0, job.stderr
    assert "the job ended with status 137; starting it again" in job.stderr
    assert "resuming after step 4" in job.stderr


@pytest.mark.long
def test_the_launcher_hands_a_stop_on(tiny_config: Config, tmp_path: Path) -> None:
    config = dataclasses.replace(tiny_config, num_steps=20)
    command = train_command(config, tmp_path, "steps", "")
    with (tmp_path / "err").open("w") as err:
        job = subprocess.Popen(
            [sys.executable, str(LAUNCHER), "-n", "2", "--", *command],
            env={**os.environ, "XLA_FLAGS": QUICK},
            stderr=err,
        )
    await_text(tmp_path / "err", "add", count=3)
    job.send_signal(signal.SIGINT)
    assert job.wait(60) == 75
    assert "which is saved" in (tmp_path / "err").read_text()
