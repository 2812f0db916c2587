"""Who may write to a run, and what it says when its training is stopped early or killed."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import pytest
from gcsfs.retry import HttpError
from xla_flags import QUICK

from jaxcls.commands.cli import main
from jaxcls.commands.runs import summarize
from jaxcls.config import Config, encode
from jaxcls.distributed.mesh import make_mesh
from jaxcls.inference.classifier import ImageClassifier
from jaxcls.models import registry
from jaxcls.runs import claim, run_state
from jaxcls.runs.checkpoint import Checkpoints
from jaxcls.runs.directory import RunError, RunLostError, checkpoint_dir
from jaxcls.runs.reporter import Reporter, read_metrics
from jaxcls.runs.run_state import RunState, record_early_stop, record_state, recorded_state
from jaxcls.training.loop import Outcome, train
from jaxcls.training.step_loop import StepLoop


def leave_claim(run: Path, *, number: int, process: int) -> None:
    writer = dataclasses.replace(
        claim._this_process(run), process=process, started=claim._start_of(process)
    )
    (run / f"writer.{number}.json").write_text(json.dumps(dataclasses.asdict(writer)))


@pytest.fixture
def finished(tiny_run: tuple[Path, Outcome], tmp_path: Path) -> Path:
    return shutil.copytree(tiny_run[0], tmp_path / "run")


def contents(run: Path) -> Mapping[Path, bytes]:
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_a_second_training_is_refused_and_leaves_all_as_it_is(
    finished: Path, tiny_config: Config
) -> None:
    leave_claim(finished, number=2, process=os.getppid())
    record_state(finished, RunState(state="running", num_steps=12))
    before = contents(finished)
    longer = dataclasses.replace(tiny_config, num_steps=16)
    with pytest.raises(RunError, match=f"already being trained, by process {os.getppid()} on"):
        train(longer, finished, mesh=make_mesh(jax.devices()[:1]), allow_changes=True)
    assert contents(finished) == before
    assert summarize(finished, name="run").state == "running"


def test_who_only_reads_is_not_refused(finished: Path) -> None:
    leave_claim(finished, number=2, process=os.getppid())
    assert ImageClassifier.from_run(finished).step == 12


def test_a_run_whose_process_is_gone_was_killed(finished: Path) -> None:
    record_state(finished, RunState(state="running", num_steps=12))
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        leave_claim(finished, number=2, process=process.pid)
    assert summarize(finished, name="run").state == "killed"
    (finished / "state.json").unlink()  # killed before it could write that
    assert summarize(finished, name="run").state == "killed"


def test_the_run_is_given_back_at_the_end(
    finished: Path, tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    mesh = make_mesh(jax.devices()[:1])
    train(tiny_config, finished, mesh=mesh)  # it is finished, and that takes no step
    writer = claim.last_writer(finished)
    assert writer is not None
    assert writer.ended is not None

    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(StepLoop, "run", fail)
    longer = dataclasses.replace(tiny_config, num_steps=16)
    with pytest.raises(KeyboardInterrupt):
        train(longer, finished, mesh=mesh, allow_changes=True)
    assert recorded_state(finished) == RunState(state="stopped", num_steps=16, why="SIGINT")
    writer = claim.last_writer(finished)
    assert writer is not None
    assert writer.ended is not None


def test_a_training_whose_run_was_taken_over_stops_and_saves_nothing_more(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Reporter.log

    def log_and_lose(self: Reporter, step: int, metrics: Mapping[str, float]) -> None:
        log(self, step, metrics)
        if step == 6:
            leave_claim(tmp_path, number=2, process=os.getppid())
            record_state(tmp_path, RunState(state="running", num_steps=99))

    monkeypatch.setattr(Reporter, "log", log_and_lose)
    monkeypatch.setattr(claim, "RENEW_SECONDS", 0.01)
    with pytest.raises(RunLostError, match="another training, process"):
        train(tiny_config, tmp_path, mesh=make_mesh(jax.devices()[:1]))
    assert recorded_state(tmp_path) == RunState(state="running", num_steps=99)
    with Checkpoints(checkpoint_dir(tmp_path)) as checkpoints:
        assert checkpoints.steps() == [4]
    assert max(int(row["step"]) for row in read_metrics(tmp_path / "metrics.csv")) <= 8


def test_nothing_is_recorded_after_an_early_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = threading.Lock()
    monkeypatch.setattr(run_state, "_recording", lock)
    record_state(tmp_path, RunState(state="running", num_steps=12))
    record_early_stop(tmp_path, "SIGTERM")
    stopped = RunState(state="stopped", num_steps=12, why="SIGTERM before its first step")
    assert recorded_state(tmp_path) == stopped
    late = threading.Thread(
        target=record_state, args=[tmp_path, RunState(state="running", num_steps=12)]
    )
    late.start()
    late.join(0.1)
    assert recorded_state(tmp_path) == stopped
    lock.release()
    late.join()


@pytest.mark.parametrize("state", ["finished", "failed", "stopped"])
def test_a_stop_before_the_training_goes_on_changes_no_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    monkeypatch.setattr(run_state, "_recording", threading.Lock())
    before = RunState(state=state, num_steps=12)  # type: ignore[arg-type]
    run_state._write_state(tmp_path, before)
    record_early_stop(tmp_path, "SIGTERM")
    assert recorded_state(tmp_path) == before


def test_an_early_stop_does_not_need_an_answer_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: Any, **__: Any) -> str:
        raise HttpError({"code": 503, "message": "the server is busy"})

    monkeypatch.setattr(run_state, "_recording", threading.Lock())
    monkeypatch.setattr(Path, "read_text", read)
    record_early_stop(tmp_path, "SIGTERM")
    assert recorded_state(tmp_path) is None


COMPILES_FOR_EVER = """
import sys, time
from jaxcls.models import registry
from jaxcls.models.efficientnet import ModelSpec, BlockSpec
from jaxcls.training.build import Training
spec, *sys.argv[1:] = sys.argv[1:]
registry.SPECS["tiny"] = eval(spec)
def compile_step(*_):
    print("compiling", flush=True)
    time.sleep(60)
Training.compile_step = compile_step
from jaxcls.__main__ import run
run()
"""
CONFIG = """
import json
from jaxcls.config import decode

def get_config():
    return decode(json.loads({text!r}))
"""


@pytest.fixture
def command(tiny_config: Config, tmp_path: Path) -> list[str]:
    (tmp_path / "config.py").write_text(CONFIG.format(text=json.dumps(encode(tiny_config))))
    return ["train", str(tmp_path / "config.py"), "--workdir", str(tmp_path / "run")]


@pytest.fixture
def compiling(command: list[str], tmp_path: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Two processes, started one after the other by `next`, each in its first compile."""

    def started() -> Iterator[subprocess.Popen[str]]:
        spec = repr(registry.model_spec("tiny"))
        for number in "12":
            with (tmp_path / number).open("w") as err:
                process = subprocess.Popen(
                    [sys.executable, "-c", COMPILES_FOR_EVER, spec, *command],
                    env={**os.environ, "XLA_FLAGS": QUICK},
                    stdout=subprocess.PIPE,
                    stderr=err,
                    text=True,
                )
            running.append(process)
            assert process.stdout is not None
            assert process.stdout.readline() == "compiling\n", (tmp_path / number).read_text()
            # The main thread goes on while another one compiles.
            while not is_running(process):
                time.sleep(0.1)
            yield process

    def is_running(process: subprocess.Popen[str]) -> bool:
        assert process.poll() is None, (tmp_path / "2").read_text()
        log = run / "log.txt"
        return log.is_file() and log.read_text().count("training: tiny") == len(running)

    run = tmp_path / "run"
    running: list[subprocess.Popen[str]] = []
    yield started()  # type: ignore[misc]
    for process in running:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_what_a_run_says_while_it_compiles_when_killed_and_when_stopped(
    compiling: Iterator[subprocess.Popen[str]],
    command: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def says() -> str:
        capsys.readouterr()
        assert main(["runs", str(tmp_path / "run")]) == 0
        return capsys.readouterr().out

    first = next(compiling)
    assert " running" in says()
    assert main(command) == 2
    assert f"already being trained, by process {first.pid} on" in capsys.readouterr().err
    first.kill()
    first.wait()
    assert " killed" in says()
    second = next(compiling)
    assert f"takes over from process {first.pid} on" in (tmp_path / "run/log.txt").read_text()
    second.send_signal(signal.SIGINT)
    assert second.wait(30) == 75
    assert "\nrun stopped before its first step; nothing is saved\n" in says()
    state = recorded_state(tmp_path / "run")
    assert state == RunState(state="stopped", num_steps=12, why="SIGINT before its first step")
    assert (tmp_path / "2").read_text().splitlines()[-1].startswith("stopped by SIGINT before the")
