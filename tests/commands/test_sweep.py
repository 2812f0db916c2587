import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from command_line import TINY_CONFIG

from jaxcls.commands.cli import main
from jaxcls.commands.sweep import OneChild
from jaxcls.config import Config
from jaxcls.runs.directory import RunInfo, checkpoint_dir, record_run
from jaxcls.runs.run_state import RunState, record_state
from jaxcls.training import loop
from jaxcls.training.loop import Outcome

HEAD = f"""\
import dataclasses
{TINY_CONFIG.replace("num_steps=12", "num_steps=2")}

"""
SEEDS = f"""{HEAD}def sweep():
    for seed in (0, 1, 2):
        yield f"seed={{seed}}", dataclasses.replace(get_config(), seed=seed)
"""


@pytest.fixture(autouse=True)
def config_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("seeds.py").write_text(SEEDS)
    return Path("seeds.py")


class FakeChildren:
    """In place of the processes: notes what they are asked, and ends as it is told."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.statuses: dict[int, int] = {}

    def run(self, command: Sequence[str]) -> int:
        self.commands.append(list(command))
        return self.statuses.get(int(command[-1]), 0)

    @property
    def indices(self) -> list[int]:
        return [int(command[-1]) for command in self.commands]


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> FakeChildren:
    fake = FakeChildren()
    monkeypatch.setattr(OneChild, "run", lambda _, command: fake.run(command))
    return fake


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Config, str]]:
    calls = []

    def train(config: Config, workdir: str, **_: bool) -> Outcome:
        calls.append((config, workdir))
        return Outcome(2, 2, metrics={}, stopped_by=None)

    monkeypatch.setattr(loop, "train", train)
    return calls


@pytest.fixture
def message(capsys: pytest.CaptureFixture[str], children: FakeChildren) -> Callable[..., str]:
    """What a sweep says that must fail before anything is trained."""

    def message(*arguments: str) -> str:
        assert main(["sweep", *arguments]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert children.commands == []
        return captured.err

    return message


def finish(run: Path, config: Config, *, state: str = "finished") -> None:
    """Leaves what a training would."""
    from jaxcls.data.sources import open_source
    from jaxcls.pretrained.resolve import resolve

    source = open_source(config.data, "train")
    checkpoint_dir(run).mkdir(parents=True)
    info = RunInfo(config=resolve(config), class_names=source.class_names, data=source.identity)
    record_run(run, info)
    record_state(run, RunState(state=state, num_steps=2))  # type: ignore[arg-type]


def variation(index: int, *arguments: str) -> tuple[Config, str]:
    """The config and the directory of a variation, as its process trains it."""
    with pytest.MonkeyPatch.context() as patch:
        found = []

        def train(config: Config, workdir: str, **_: bool) -> Outcome:
            found.append((config, workdir))
            return Outcome(2, 2, metrics={}, stopped_by=None)

        patch.setattr(loop, "train", train)
        assert main(["sweep", "seeds.py", *arguments, "--index", str(index)]) == 0
    return found[0]


def test_each_variation_has_a_process_of_its_own(
    children: FakeChildren, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", "seeds.py", "--num-steps", "3"]) == 0
    assert children.commands == [
        [
            *(sys.executable, "-m", "jaxcls", "sweep", "seeds.py", "--num-steps", "3"),
            *("--index", str(number)),
        ]
        for number in range(3)
    ]
    assert "jaxcls runs runs/seeds-num_steps=3" in capsys.readouterr().out


def test_index_trains_one_variation_with_the_overrides(trained: list[tuple[Config, str]]) -> None:
    assert main(["sweep", "seeds.py", "--index", "1", "--optimizer.learning-rate", "0.5"]) == 0
    ((config, workdir),) = trained
    assert (config.seed, config.optimizer.learning_rate) == (1, 0.5)
    assert workdir == "runs/seeds-learning_rate=0.5/seed=1"
    assert main(["sweep", "seeds.py", "--index", "2", "--workdir", "elsewhere/"]) == 0
    assert trained[1][1] == "elsewhere/seed=2"


def test_list_trains_nothing(children: FakeChildren, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "seeds.py", "--list"]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["index", "variation", "seed"],
        ["0", "seed=0", "0"],
        ["1", "seed=1", "1"],
        ["2", "seed=2", "2"],
    ]
    assert children.commands == []


def test_finished_runs_are_skipped_and_stopped_ones_resume(
    children: FakeChildren, capsys: pytest.CaptureFixture[str]
) -> None:
    for index, state in ((0, "finished"), (1, "stopped")):
        config, workdir = variation(index)
        finish(Path(workdir), config, state=state)
    capsys.readouterr()
    assert main(["sweep", "seeds.py"]) == 0
    assert children.indices == [1, 2]
    assert capsys.readouterr().out.startswith("[1/3] seed=0: finished, in runs/seeds/seed=0\n")


def test_a_failed_variation_does_not_take_the_others(
    children: FakeChildren, capsys: pytest.CaptureFixture[str]
) -> None:
    children.statuses = {0: 2, 1: -signal.SIGKILL}
    assert main(["sweep", "seeds.py"]) == 1
    assert children.indices == [0, 1, 2]
    assert capsys.readouterr().err == (
        "2 of 3 variations failed: seed=0 (status 2), seed=1 (killed by SIGKILL); the same command "
        "tries them again\n"
    )


def test_a_stop_ends_the_sweep(children: FakeChildren, capsys: pytest.CaptureFixture[str]) -> None:
    children.statuses = {1: 75}
    assert main(["sweep", "seeds.py"]) == 75
    assert children.indices == [0, 1]
    assert capsys.readouterr().err == (
        "the sweep was stopped at seed=1; the same command resumes it\n"
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_handed_to_the_process_that_runs(number: int, tmp_path: Path) -> None:
    script = (
        "import os, pathlib, signal, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: os._exit(75))\n"
        f"pathlib.Path({str(tmp_path / 'ready')!r}).touch()\n"
        "time.sleep(60)\n"
    )

    def send() -> None:
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with OneChild() as child:
        sender = threading.Thread(target=send)
        sender.start()
        assert child.run([sys.executable, "-c", script]) == 75
        sender.join()
        assert child.stopped
    assert signal.getsignal(number) is before


def test_after_a_signal_a_process_that_was_just_started_is_ended() -> None:
    with OneChild() as child:
        os.kill(os.getpid(), signal.SIGTERM)
        assert child.run([sys.executable, "-c", "import time; time.sleep(60)"]) == -signal.SIGTERM


def test_a_signal_between_two_processes_is_for_the_next_one() -> None:
    with OneChild() as child:
        assert child.run([sys.executable, "-c", ""]) == 0
        os.kill(os.getpid(), signal.SIGTERM)
        assert child.run([sys.executable, "-c", "import time; time.sleep(60)"]) == -signal.SIGTERM


@pytest.mark.parametrize(
    ("body", "arguments", "expected"),
    [
        ("", [], "bad.py: define sweep() -> Iterator[tuple[str, jaxcls.config.Config]]"),
        ("return []", [], "bad.py: sweep() yields no variation"),
        ("yield 'a', 3", [], "bad.py: sweep() must yield a name and a Config, got ('a', 3)"),
        ("yield 'a/b', get_config()", [], "bad.py: variation 'a/b': its name becomes that of a"),
        ("yield '..', get_config()", [], "bad.py: variation '..': its name becomes that of a"),
        (
            "for seed in (0, 1): yield 'a', dataclasses.replace(get_config(), seed=seed)",
            [],
            "bad.py: sweep() yields two variations with the name 'a'",
        ),
        (
            "for name in 'ab': yield name, get_config()",
            [],
            "sweep: 'a' and 'b' have the same config",
        ),
        (
            "yield 'a', get_config(); yield 'b', dataclasses.replace(get_config(), seed=-1)",
            [],
            "bad.py: variation 'b': seed: must be between 0 and",
        ),
        ("yield 'a', get_config(); 1 / 0", [], "bad.py:15: ZeroDivisionError: division by zero"),
        ("yield 'a', get_config()", ["--index", "1"], "--index: bad.py has 1 variations"),
        ("yield 'a', get_config()", ["--index", "-1"], "--index: bad.py has 1 variations"),
        ("yield 'a', get_config()", ["--optimizer.name", "sgdd"], "variation 'a': optimizer.name"),
        ("yield 'a', get_config()", ["--model.name", "b0"], "variation 'a': model.name"),
        (
            "yield 'a', get_config()",
            ["--data.source", "folder:gone"],
            "variation 'a': data.source: folder 'gone' does not exist",
        ),
        (
            "for size in (0, 32): yield f'size={size}', dataclasses.replace(get_config(),"
            " data=DataConfig(image_size=size))",
            [],
            "sweep: 'size=0' and 'size=32' have the same config",
        ),
    ],
)  # fmt: skip
def test_mistakes_are_found_before_anything_is_trained(
    message: Callable[..., str], body: str, arguments: list[str], expected: str
) -> None:
    Path("bad.py").write_text(HEAD + (f"def sweep():\n    x = 0\n    {body}\n" if body else ""))
    assert message("bad.py", *arguments).startswith(f"jaxcls: {expected}")


def test_an_override_of_what_is_varied_makes_variations_equal(message: Callable[..., str]) -> None:
    assert message("seeds.py", "--seed", "1").startswith(
        "jaxcls: sweep: 'seed=0' and 'seed=1' have the same config"
    )


def test_a_run_of_another_config_is_found_before_anything_is_trained(
    message: Callable[..., str], children: FakeChildren, capsys: pytest.CaptureFixture[str]
) -> None:
    config, workdir = variation(2)
    finish(Path(workdir), config)
    capsys.readouterr()
    text = message("seeds.py", "--num-steps", "3", "--workdir", "runs/seeds")
    assert text.startswith(
        "jaxcls: variation 'seed=2': run 'runs/seeds/seed=2' was started with another config; "
        "changed:\n  num_steps: 2 -> 3\n"
    )
    changed = ["--num-steps", "3", "--workdir", "runs/seeds", "--allow-changes"]
    assert main(["sweep", "seeds.py", *changed]) == 0
    assert children.indices == [0, 1, 2], "a finished run that has become longer resumes"


TINY_FOR_ALL_PROCESSES = """\
from jaxcls.models import registry
from jaxcls.models.efficientnet import ModelSpec, BlockSpec

block = BlockSpec(fused=True, repeats=1, filters=8, expansion=1, stride=2, se_ratio=0.0)
registry.SPECS["tiny"] = ModelSpec(
    name="tiny", stem_filters=8, blocks=(block,), head_filters=8, image_size=16,
    mean=(0.5,) * 3, std=(0.5,) * 3,
)
"""
ONE_BREAKS = f"""{TINY_FOR_ALL_PROCESSES}{HEAD}def sweep():
    good = get_config()
    yield "diverges", dataclasses.replace(good, optimizer=OptimizerConfig(learning_rate=1e38))
    yield "good", good
"""


@pytest.mark.long
def test_a_sweep_with_real_processes(capsys: pytest.CaptureFixture[str]) -> None:
    Path("real.py").write_text(ONE_BREAKS.replace("num_steps=2", "num_steps=4"))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "jaxcls", "sweep", "real.py", "--schedule.warmup", "0"),
            *("--workdir", "out"),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "1 of 2 variations failed: diverges (status 2)" in done.stderr
    assert main(["runs", "out", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["runs"]
    assert [(run["name"], run["state"]) for run in found] == [
        ("diverges", "failed"),
        ("good", "finished"),
    ]
    assert found[1]["step"] == found[1]["num_steps"] == 4


def test_the_checks_leave_the_devices_to_the_trainings() -> None:
    """A process that took an accelerator's memory would leave none to its children."""
    code = (
        "import sys\n"
        "from jaxcls.commands import sweep\n"
        "options, variations = sweep._read('seeds.py', ['--model.name', 'efficientnetv2_b0'])\n"
        "sweep._check(variations, allow_changes=False)\n"
        "from jax._src import xla_bridge\n"
        "sys.exit(bool(set(xla_bridge._backends) - {'cpu'}))\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
