"""Signals and lost peers in a job of two real processes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jaxcls.checkpoint import Checkpoints
from jaxcls.config import Config, encode
from jaxcls.models import registry
from jaxcls.rundir import checkpoint_dir

# SLOW names a function and the seconds that each call of it takes longer.
PROCESS = """
import importlib, json, sys, time
import jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
address, process, spec, config, workdir, slow = sys.argv[1:]
jax.distributed.initialize(address, 2, int(process))
from jaxcls.config import decode
from jaxcls.models import registry
from jaxcls.models.efficientnet import ModelSpec, StageSpec
from jaxcls.training import loop
from jaxcls.training.assemble import Training
from jaxcls.training.meter import Meter

registry.SPECS["tiny"] = eval(spec)

def slowed(owner, name, seconds):
    real = getattr(owner, name)
    def wrapper(*args, **kwargs):
        print(name, file=sys.stderr, flush=True)
        time.sleep(seconds)
        return real(*args, **kwargs)
    setattr(owner, name, wrapper)

slowed(Meter, "add", 0.1)
if slow == "compile_step":
    slowed(Training, slow, 60)
if slow == "make_eval_step":
    make = loop.make_eval_step
    def make_slow(*args, **kwargs):
        class Step:
            run = staticmethod(make(*args, **kwargs))
        slowed(Step, "run", 0.3)
        return Step.run
    loop.make_eval_step = make_slow
outcome = loop.train(decode(json.loads(config)), workdir)
print(outcome.step, file=sys.stderr, flush=True)
sys.exit(75 if outcome.stopped_by else 0)
"""

type Start = Callable[..., list[subprocess.Popen[str]]]


@pytest.fixture
def start(tiny_config: Config, tmp_path: Path) -> Iterator[Start]:
    """Starts a job of two processes whose stderr goes to files named by their numbers."""
    running: list[subprocess.Popen[str]] = []

    def run(*, slow: str = "", stuck_after: float = 0) -> list[subprocess.Popen[str]]:
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            address = f"localhost:{probe.getsockname()[1]}"
        config = encode(tiny_config) | {"num_steps": 500, "stuck_after_seconds": stuck_after}
        spec = repr(registry.model_spec("tiny"))
        flags = "--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0"
        for process in range(2):
            arguments = [address, str(process), spec, json.dumps(config), str(tmp_path / "run")]
            with (tmp_path / str(process)).open("w") as err:
                command = [sys.executable, "-c", PROCESS, *arguments, slow]
                environment = {**os.environ, "XLA_FLAGS": flags}
                running.append(subprocess.Popen(command, env=environment, stderr=err, text=True))
        return running

    yield run
    for process in running:
        process.kill()
        process.wait()


def await_text(path: Path, text: str, *, count: int = 1) -> None:
    until = time.monotonic() + 120
    while path.read_text().count(text) < count:
        assert time.monotonic() < until, path.read_text()
        time.sleep(0.1)


@pytest.mark.slow
def test_a_signal_in_one_process_stops_both_after_the_same_step(
    start: Start, tmp_path: Path
) -> None:
    job = start()
    await_text(tmp_path / "0", "add", count=3)
    job[1].send_signal(signal.SIGTERM)
    job[1].send_signal(signal.SIGTERM)
    assert [process.wait(60) for process in job] == [75, 75]
    last = [(tmp_path / name).read_text().splitlines()[-1] for name in ("0", "1")]
    assert last[0] == last[1]
    with Checkpoints(checkpoint_dir(tmp_path / "run")) as checkpoints:
        assert checkpoints.steps()[-1] == int(last[0])


@pytest.mark.slow
def test_during_the_first_compile_all_leave_at_once(start: Start, tmp_path: Path) -> None:
    job = start(slow="compile_step")
    for process in range(2):
        await_text(tmp_path / str(process), "compile_step")
    job[1].send_signal(signal.SIGINT)
    assert [process.wait(30) for process in job] == [75, 75]
    assert "nothing was trained" in (tmp_path / "0").read_text()


@pytest.mark.long
def test_an_evaluation_is_cut_short(start: Start, tmp_path: Path) -> None:
    job = start(slow="make_eval_step")
    await_text(tmp_path / "0", "run\n")
    job[0].send_signal(signal.SIGTERM)
    assert [process.wait(60) for process in job] == [75, 75]
    with Checkpoints(checkpoint_dir(tmp_path / "run")) as checkpoints:
        assert checkpoints.steps() == [4]
    assert "test loss" not in (tmp_path / "0").read_text()


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_peer_ends_the_other_and_is_named(
    start: Start, tmp_path: Path, number: signal.Signals, lost: int
) -> None:
    job = start(stuck_after=8)
    await_text(tmp_path / "0", "add", count=3)
    job[lost].send_signal(number)
    assert job[1 - lost].wait(120) not in (0, 75)
    err = (tmp_path / str(1 - lost)).read_text()
    assert (
        (f"process {lost}" in err) or f"Task {lost}" in err or (lost == 0 and "the leader" in err)
    )
