"""CONFIG: a Python file, a run, or a JSON file; and what is printed to type next."""

import json
import shlex
from pathlib import Path

import pytest
from command_line import Message, Run

from jaxcls.config import Config, encode, load_config
from jaxcls.runs.directory import RunInfo, prepare_run, record_run
from jaxcls.runs.run_state import RunState, record_state
from jaxcls.training import loop
from jaxcls.training.loop import Outcome

type Calls = list[tuple[Config, str]]


@pytest.fixture
def trained(run: Run, monkeypatch: pytest.MonkeyPatch) -> Calls:
    """What the training was asked, and a run r of tiny.py with another seed."""
    calls: Calls = []

    def train(config: Config, workdir: str, **_: object) -> Outcome:
        calls.append((config, str(workdir)))
        return Outcome(12, 12, metrics={}, stopped_by=None)

    monkeypatch.setattr(loop, "train", train)
    make_run("r", seed=5)
    return calls


def make_run(name: str, **fields: object) -> None:
    values = encode(load_config("tiny.py")) | fields
    from jaxcls.config import decode

    info = RunInfo(config=decode(values), class_names=tuple("0123456789"))
    prepare_run(Path(name), info, allow_changes=False)
    record_run(Path(name), info)
    record_state(Path(name), RunState(state="stopped", num_steps=12))


@pytest.mark.parametrize("name", ["r", "r/", "./r", "r/config.json", "{cwd}/r"])
def test_a_run_resumes_by_its_own_name(run: Run, trained: Calls, name: str) -> None:
    name = name.format(cwd=Path.cwd())
    result = run("train", name, "--log-every-steps", "3")
    assert result.status == 0, result.err
    ((config, workdir),) = trained
    assert (config.seed, config.log_every_steps) == (5, 3)
    assert Path(workdir) == Path(name.removesuffix("/config.json"))
    assert run("train", "tiny.py", "--seed", "5").status == 0
    assert config.seed == trained[1][0].seed


def test_a_run_is_trained_again_elsewhere_and_with_other_fields(run: Run, trained: Calls) -> None:
    assert run("train", "r", "--workdir", "again", "--seed", "6").status == 0
    assert run("train", "r/config.json", "--workdir=again", "--seed=6").status == 0
    assert [(config.seed, workdir) for config, workdir in trained] == [(6, "again")] * 2


def test_what_was_copied_from_a_run_is_in_runs(run: Run, trained: Calls) -> None:
    Path("mine.json").write_text(Path("r/config.json").read_text())
    Path("bare.json").write_text(json.dumps(encode(load_config("tiny.py"))))
    Path("exported").mkdir()  # as `jaxcls export` leaves it
    Path("exported/config.json").write_text(Path("r/config.json").read_text())
    for name in ("mine.json", "bare.json", "exported", "exported/config.json"):
        assert run("train", name, "--num-steps", "3").status == 0
    assert [workdir for _, workdir in trained] == [
        "runs/mine-num_steps=3", "runs/bare-num_steps=3",
        "runs/exported-num_steps=3", "runs/exported-num_steps=3",
    ]  # fmt: skip
    assert [config.seed for config, _ in trained] == [5, 0, 5, 5]


def test_a_run_does_not_resume_with_other_fields(message: Message) -> None:
    Path("r").mkdir(exist_ok=True)
    make_run("r", seed=5)
    text = message("train", "r", "--seed", "6")
    assert text.startswith(
        "jaxcls: run 'r' was started with another config; changed:\n  seed: 5 ->"
    )


def test_other_commands_take_a_run(run: Run, trained: Calls) -> None:
    result = run("show", "schedule", "r", "-o", "rate.png")
    assert (result.status, result.out) == (0, "wrote rate.png\n"), result.err
    result = run("data", "r/config.json", "--limit", "3")
    assert result.out.startswith("digits 'train': 1,442 images")
    for config in ("r", "tiny.py"):
        result = run("prepare", config, "--data-dir", "sets")
        assert result.out == "digits is ready in sets/digits/1.0.0: train 1,442, test 355\n"
    result = run("benchmark", "r", "--data.batch-size", "30", "--synthetic")
    assert "data.batch_size: 30 does not split evenly over 8 devices" in result.err
    result = run("compile", "r", "--num-classes", "0")
    assert result.err == "jaxcls: --num-classes: must be at least 1 and at most 2147483647, got 0\n"


def test_a_run_has_no_variations(message: Message) -> None:
    make_run("my run")
    text = message("sweep", "my run")
    assert text == (
        "jaxcls: 'my run' holds one config, and no variations of it; give a Python file that "
        "defines sweep(), or train it with: jaxcls train 'my run'\n"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "config file 'r/config.json' is not JSON (Expecting property name"),
        ("[1]", "config file 'r/config.json': config: expected a group of fields, got [1]"),
        ('{"config": {"schema_version": 99}}', "config file 'r/config.json': schema_version: this"),
        (
            '{"config": {"sede": 1}}',
            "config file 'r/config.json': unknown field sede; did you mean",
        ),
        ("{}", "config file 'r/config.json': num_epochs, num_steps: give exactly one of the two"),
    ],
)
@pytest.mark.parametrize("command", [["train"], ["show", "schedule"]])
def test_a_record_that_cannot_be_used_is_named(
    message: Message, command: list[str], text: str, expected: str
) -> None:
    Path("r").mkdir()
    Path("r/config.json").write_text(text)
    assert message(*command, "r").startswith(f"jaxcls: {expected}")


def test_a_run_of_an_older_version_is_read(run: Run, trained: Calls) -> None:
    values = {"schema_version": 1, "num_steps": 3, "augment": {"flip": False}}
    Path("r/config.json").write_text(json.dumps({"config": values, "class_names": ["a"]}))
    assert run("train", "r").status == 0
    assert [type(op).__name__ for op in trained[0][0].augment] == ["RandomCrop"]


def test_a_folder_that_is_no_run_says_what_it_holds(message: Message) -> None:
    Path("empty").mkdir()
    Path("configs").mkdir()
    for name in "ab":
        Path(f"configs/{name}.py").touch()
    assert message("train", "empty") == (
        "jaxcls: 'empty' is a folder, but not a run (it has no config.json); give a .py file or a "
        "run\n"
    )
    assert message("train", "configs") == (
        "jaxcls: 'configs' is a folder; name the file, for example configs/a.py, configs/b.py\n"
    )
    assert message("train", "gone/config.json") == (
        "jaxcls: config file 'gone/config.json' does not exist\n"
    )
    assert "run 's3://bucket/x': Orbax 0.12.8, which writes" in message("train", "s3://bucket/x")


@pytest.mark.parametrize("workdir", ["my run", "it's", "naïve", "$HOME", "-x", "~x"])
def test_the_command_to_type_next_can_be_pasted(run: Run, trained: Calls, workdir: str) -> None:
    Path(workdir).mkdir()  # so that ~x is no user
    result = run("train", "tiny.py", f"--workdir={workdir}")
    assert result.status == 0, result.err
    program, command, word = shlex.split(result.out.splitlines()[-1])
    assert (program, command) == ("jaxcls", "evaluate")
    assert Path(word) == Path(workdir)
    assert not word.startswith(("-", "~"))


def test_workdir_begins_at_home(
    run: Run, trained: Calls, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "my home"))
    result = run("train", "tiny.py", "--workdir=~/x")
    assert trained[0][1] == f"{tmp_path}/my home/x"
    assert result.out.splitlines()[-1] == f"  jaxcls evaluate '{tmp_path}/my home/x'"


@pytest.mark.parametrize("command", [["train", "tiny.py"], ["sweep", "seeds.py"]])
def test_an_empty_workdir_is_a_mistake(message: Message, command: list[str]) -> None:
    """As of a variable that is not set."""
    Path("seeds.py").write_text(
        Path("tiny.py").read_text() + "\n\ndef sweep():\n    yield 'a', get_config()\n"
    )
    assert "expected a folder or gs://BUCKET/FOLDER" in message(*command, "--workdir=")


def test_help_of_a_command_by_its_name(run: Run) -> None:
    result = run("help", "runs")
    assert result.status == 0
    assert result.out == run("runs", "--help").out != ""
    assert "unknown command 'rns'; did you mean 'runs'?" in run("help", "rns").err
