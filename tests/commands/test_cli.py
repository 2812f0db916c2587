import dataclasses
import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from command_line import TINY_CONFIG, Message, Run

import jaxcls
from jaxcls.commands import train as train_command
from jaxcls.commands.cli import COMMANDS, USAGE
from jaxcls.config import Config, encode, load_config
from jaxcls.config.augment import CenterCrop, Mix, RandAugment, RandomFlip
from jaxcls.config.decoding import leaves
from jaxcls.runs.directory import RunInfo, prepare_run, record_run
from jaxcls.system.errors import UserError
from jaxcls.training import loop
from jaxcls.training.loop import Outcome

DIGITS = Path(__file__).parents[2] / "configs" / "digits.py"


@dataclasses.dataclass
class FakeTrain:
    """Stands in for the training and notes what it was asked."""

    stopped_by: str | None = None
    error: Exception | None = None
    calls: list[tuple[Config, Path, bool]] = dataclasses.field(default_factory=list)

    def __call__(
        self,
        config: Config,
        workdir: str,
        *,
        allow_changes: bool,
        log_all_processes: bool,
        profile_steps: int,
    ) -> Outcome:
        assert not log_all_processes
        assert profile_steps == 0
        self.calls.append((config, Path(workdir), allow_changes))
        if self.error:
            raise self.error
        return Outcome(7 if self.stopped_by else 12, 12, metrics={}, stopped_by=self.stopped_by)


@pytest.fixture
def fake_train(monkeypatch: pytest.MonkeyPatch) -> FakeTrain:
    fake = FakeTrain()
    monkeypatch.setattr(loop, "train", fake)
    monkeypatch.setattr(
        train_command, "ignore_signals", lambda: None
    )  # it would last for all tests
    return fake


def process(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, timeout=120
    )


# Help


@pytest.mark.parametrize("flag", ["--help", "-h", "help"])
def test_help_shows_every_command(run: Run, flag: str) -> None:
    result = run(flag)
    assert (result.status, result.out, result.err) == (0, USAGE, "")
    for command in COMMANDS:
        assert f"  jaxcls {command} " in USAGE


def test_without_a_command_the_usage_is_shown(run: Run) -> None:
    result = run()
    assert (result.status, result.out) == (2, USAGE)


def test_version(run: Run) -> None:
    result = run("--version")
    assert (result.status, result.out) == (0, f"{jaxcls.__version__}\n")


@pytest.mark.parametrize("config", [[], ["tiny.py"]])
@pytest.mark.parametrize(
    "command", [["train"], ["benchmark"], ["data"], ["show", "schedule"], ["show", "data"]]
)
def test_help_of_a_command_explains_every_field_with_its_default(
    run: Run, command: list[str], config: list[str]
) -> None:
    result = run(*command, *config, "--help")
    assert (result.status, result.err) == (0, "")
    for field, _ in leaves(Config, prefix=""):
        assert f"--{field.replace('_', '-')}" in result.out
    assert "Examples per step, over all devices." in result.out
    assert f"(default: {'32' if config else '64'})" in result.out
    assert f"jaxcls {' '.join(command)} CONFIG" in result.out


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("train", ["--workdir", "--allow-changes"]),
        (
            "evaluate",
            [
                "MODEL",
                "--data.source",
                "--step",
                "--split",
                "--per-class",
                "--predictions FILE.csv",
                "--class-names FILE",
            ],
        ),
        (
            "predict",
            [
                "MODEL",
                "IMAGE ...",
                "--step",
                "--top",
                "--format {table,json,csv}",
                "--class-names FILE",
            ],
        ),
        (
            "convert",
            [
                "WEIGHTS",
                "--output",
                "-o",
                "--model",
                "--allow-missing",
                "--allow-unused",
                "--class-names FILE",
                "--no-ema",
                "--step",
            ],
        ),
        ("presets", ["PART", "--json"]),
        ("benchmark", ["--synthetic", "--seconds", "--json"]),
        ("prepare", ["SOURCE", "--data-dir"]),
        ("data", ["--split", "--limit", "--json"]),
        ("show", ["show schedule CONFIG -o FILE.png", "show data CONFIG -o FILE.png"]),
    ],
)
def test_help_of_a_command_shows_its_options(run: Run, command: str, options: list[str]) -> None:
    result = run(command, "--help")
    assert (result.status, result.err) == (0, "")
    for option in options:
        assert option in result.out


def test_help_does_not_wait_for_jax(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom jaxcls.commands.cli import main\n"
        "try: main(['train', sys.argv[1], '--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert not {'jax', 'matplotlib', 'orbax', 'tensorflow_datasets'} & set(sys.modules)"
    )
    done = process("-c", code, str(DIGITS), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "--optimizer.learning-rate" in done.stdout


def test_the_console_script_ends_with_the_status_of_main(monkeypatch: pytest.MonkeyPatch) -> None:
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="jaxcls")
    monkeypatch.setattr("jaxcls.__main__.end_on_signals", lambda: None)  # it lasts to the end
    monkeypatch.setattr("jaxcls.distributed.job.end_with", sys.exit)  # it ends this process, too
    monkeypatch.setattr("sys.argv", ["jaxcls", "trian"])
    with pytest.raises(SystemExit) as ended:
        script.load()()
    assert ended.value.code == 2


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["trian"], "jaxcls: unknown command 'trian'; did you mean 'train'?"),
        (["train", "digit.py"], "jaxcls: config file 'digit.py' does not exist"),
        (["train", str(DIGITS), "--data.batch-sise", "3"], "--data.batch-size"),
    ],
)
def test_as_a_process_a_mistake_ends_in_status_2_without_a_traceback(
    tmp_path: Path, arguments: list[str], expected: str
) -> None:
    done = process("-m", "jaxcls", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


# Commands and configs


def test_an_unknown_command_is_named_with_the_nearest_and_the_usage(message: Message) -> None:
    text = message("evalaute", "runs/x")
    assert text.startswith("jaxcls: unknown command 'evalaute'; did you mean 'evaluate'?\n")
    assert USAGE in text


@pytest.mark.parametrize(
    "command", [["train"], ["benchmark"], ["data"], ["show", "schedule"], ["show", "data"]]
)
def test_a_config_must_come_first(message: Message, command: list[str]) -> None:
    for rest in ([], ["--seed", "3", "tiny.py"]):
        text = message(*command, *rest)
        assert f"usage: jaxcls {' '.join(command)} CONFIG" in text
        assert "give the config file first, for example configs/digits.py" in text


def test_a_missing_config_is_named_with_the_nearest_file(message: Message) -> None:
    assert message("train", "tinny.py") == (
        "jaxcls: config file 'tinny.py' does not exist; did you mean 'tiny.py'?\n"
    )
    Path("configs").mkdir()
    Path("configs/own.py").touch()
    for name in ("configs.own", "configs/own"):
        assert message("train", name) == (
            f"jaxcls: config file {name!r} does not exist; did you mean 'configs/own.py'?\n"
        )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def get_config():\n    raise RuntimeError('no')\n", "bad.py:2: RuntimeError: no\n"),
        ("import sys\nsys.exit('no')\n", "bad.py:2: SystemExit: no\n"),
        ("def get_config()\n", "bad.py:1: SyntaxError: expected ':'"),
        ("def get_config():\n    return 3\n", "bad.py: get_config() must return a Config, got 3"),
        (
            "from jaxcls.config import *\nget_config = lambda: ModelConfig(nam='tiny')\n",
            "bad.py:2: ModelConfig has no field 'nam'; did you mean 'name'?\n",
        ),
        (
            "from jaxcls.config import *\nget_config = lambda: Config(num_steps='3')\n",
            "num_steps: expected a whole number, got '3' (str)\n",
        ),
    ],
    ids=[
        "raises",
        "exits",
        "syntax error",
        "returns a number",
        "misspelled field",
        "mistyped value",
    ],
)
@pytest.mark.parametrize("command", ["train", "benchmark"])
def test_a_config_that_fails_is_explained(
    message: Message, command: str, text: str, expected: str
) -> None:
    Path("bad.py").write_text(text)
    assert message(command, "bad.py").startswith(f"jaxcls: {expected}")


# Overrides


def test_overrides_change_the_config_that_is_trained(run: Run, fake_train: FakeTrain) -> None:
    result = run(
        *("train", "tiny.py", "--optimizer.learning-rate", "1", "--model.remat"),
        *("--optimizer.options", "momentum", "0.9", "nesterov", "True", "n", "3"),
        *("mu_dtype", "bfloat16"),
        *("--model.batch-norm", "8", "--num-steps", "None", "--num-epochs", "2"),
        *("--workdir", "elsewhere", "--allow-changes"),
    )
    assert result.status == 0
    assert result.out.splitlines()[-2:] == [
        "the run is in elsewhere; evaluate it with:",
        "  jaxcls evaluate elsewhere",
    ]
    ((config, workdir, allow_changes),) = fake_train.calls
    expected = encode(load_config("tiny.py"))
    expected["optimizer"] |= {
        "learning_rate": 1.0,
        "options": {"momentum": 0.9, "nesterov": True, "n": 3, "mu_dtype": "bfloat16"},
    }
    expected["model"] |= {"remat": True, "batch_norm": 8}
    expected |= {"num_steps": None, "num_epochs": 2.0}
    assert encode(config) == expected
    assert type(config.optimizer.learning_rate) is float
    assert config.optimizer.options["nesterov"] is True
    assert (workdir, allow_changes) == (Path("elsewhere"), True)


def test_overrides_change_fields_of_an_augmentation(run: Run, fake_train: FakeTrain) -> None:
    text = TINY_CONFIG.replace("import *", "import *\nfrom jaxcls.config.augment import *").replace(
        "num_steps=12", "num_steps=12, augment=(RandomFlip(), CenterCrop(), RandAugment(), Mix())"
    )
    Path("augmented.py").write_text(text)
    arguments = (
        *("--augment.0.horizontal", "0.3", "--augment.2.magnitude", "0.1", "0.4"),
        *(
            "--augment.2.ops",
            "Color",
            "Rotate",
            "--augment.3.cutmix",
            "1",
            "--augment.3.mixup",
            "0",
        ),
    )
    result = run("train", "augmented.py", *arguments)
    assert result.status == 0, result.err
    ((config, _, _),) = fake_train.calls
    assert config.augment == (
        RandomFlip(horizontal=0.3),
        CenterCrop(),
        RandAugment(magnitude=(0.1, 0.4), ops=("Color", "Rotate")),
        Mix(cutmix=1.0, mixup=0.0),
    )
    result = run("train", "augmented.py", "--augment.3.group-size", "3")
    assert result.status == 2
    assert "augment.3.group_size: must be even, got 3" in result.err
    result = run("train", "augmented.py", "--augment.2.ops", "Colour")
    assert result.status == 2
    assert "Colour" in result.err
    assert len(fake_train.calls) == 1


def test_a_run_is_in_runs_by_the_name_of_its_config(run: Run, fake_train: FakeTrain) -> None:
    assert run("train", "tiny.py").status == 0
    assert fake_train.calls == [(load_config("tiny.py"), Path("runs/tiny"), False)]


def test_a_run_is_in_runs_by_the_fields_that_are_changed(run: Run, fake_train: FakeTrain) -> None:
    changes = ("--seed", "1", "--optimizer.learning-rate", "0.05", "--num-steps", "12")
    operational = ("--log-every-steps", "3", "--data.data-dir", "elsewhere")
    assert run("train", "tiny.py", *changes, *operational).status == 0
    assert fake_train.calls[0][1] == Path("runs/tiny-learning_rate=0.05-seed=1")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--optimizer.learning-rat", "1"], ["--optimizer.learning-rat", "Perhaps you meant"]),
        (["--optimizer.learning-rat", "1"], ["--optimizer.learning-rate FLOAT"]),
        (["--nonsense"], ["Unrecognized", "--nonsense"]),
        (["--data.batch-size", "many"], ["--data.batch-size", "'many'"]),
        (["--data.batch-size", "1.5"], ["--data.batch-size", "'1.5'"]),
        (["--schedule.name", "cosin"], ["--schedule.name", "cosin", "constant"]),
        (["--model.batch-norm", "globl"], ["--model.batch-norm", "globl"]),
        (["--optimizer.options", "momentum"], ["--optimizer.options", "momentum"]),
        (["--seed"], ["--seed"]),
    ],
)
def test_an_unknown_or_mistyped_override_is_explained(
    message: Message, fake_train: FakeTrain, arguments: list[str], parts: list[str]
) -> None:
    text = message("train", "tiny.py", *arguments)
    for part in parts:
        assert part in text
    assert fake_train.calls == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--data.batch-size", "0"], "data.batch_size: must be at least 1, got 0"),
        (
            ["--data.stage-image-sizes", "32", "16"],
            "data.stage_image_sizes: sizes must not fall from stage to stage, got [32, 16]",
        ),
        (["--model.dropout", "1"], "model.dropout: must be at least 0 and below 1, got 1.0"),
        (["--optimizer.learning-rate", "-1"], "optimizer.learning_rate: must be at least 0"),
        (["--optimizer.learning-rate", "nan"], "optimizer.learning_rate: must be finite, got nan"),
        (["--num-epochs", "3"], "num_epochs, num_steps: give exactly one of the two"),
        (["--num-steps", "None"], "num_epochs, num_steps: give exactly one of the two"),
        (
            ["--optimizer.micro-batches", "3"],
            "data.batch_size: 32 does not split evenly over 3 micro-batches",
        ),
        (["--model.batch-norm", "5"], "model.batch_norm: groups of 5 do not divide the 32"),
        (["--schedule.warmup", "0.7"], "schedule.warmup, schedule.hold: the sum of these shares"),
    ],
)
@pytest.mark.parametrize("command", ["train", "benchmark"])
def test_an_override_that_breaks_a_rule_names_the_field(
    message: Message, fake_train: FakeTrain, command: str, arguments: list[str], expected: str
) -> None:
    assert message(command, "tiny.py", *arguments).startswith(f"jaxcls: {expected}")
    assert fake_train.calls == []


# What training refuses before it begins, and how it ends


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["--data.batch-size", "30"],
            "data.batch_size: 30 does not split evenly over 8 devices; use 24 or 32",
        ),
        (["--model.batch-norm", "8"], "model.batch_norm: groups of 8 do not divide the 4 examples"),
        (["--compute-dtype", "float64"], "compute_dtype: JAX would silently compute float64 as"),
        (["--model.name", "tinny"], "model.name: unknown model 'tinny'; did you mean 'tiny'?"),
        (["--data.source", "digit"], "data.source: unknown source 'digit'; did you mean 'digits'?"),
        (["--data.train-split", "trian"], "data.train_split: 'trian' of digits"),
        (
            ["--data.batch-size", "8000"],
            "data.batch_size: 8000 takes 8000 examples, more than the 1442",
        ),
        (
            ["--optimizer.name", "sdg"],
            "optimizer.name: unknown optimizer 'sdg'; did you mean 'sgd'",
        ),
        (
            ["--optimizer.options", "momentun", "0.9"],
            "optimizer.options: sgd has no option 'momentun'; did you mean 'momentum'?; it",
        ),
    ],
)
def test_training_refuses_what_does_not_fit_and_makes_no_run(
    message: Message, arguments: list[str], expected: str
) -> None:
    assert message("train", "tiny.py", *arguments).startswith(f"jaxcls: {expected}")
    assert not Path("runs").exists()


@pytest.mark.parametrize("workdir", ["tiny.py", "tiny.py/run"])
def test_a_run_directory_that_cannot_be_written_is_named(message: Message, workdir: str) -> None:
    text = message("train", "tiny.py", "--workdir", workdir)
    assert text.startswith(f"jaxcls: run directory '{workdir}' cannot be written (")
    assert text.endswith("use another --workdir\n")


def test_a_run_does_not_resume_under_another_config(message: Message) -> None:
    info = RunInfo(config=load_config("tiny.py"), class_names=tuple("0123456789"))
    prepare_run(Path("runs/tiny"), info, allow_changes=False)
    record_run(Path("runs/tiny"), info)
    before = Path("runs/tiny/config.json").read_text()
    text = message(
        *("train", "tiny.py", "--seed", "3", "--log-every-steps", "1"),
        *("--workdir", "runs/tiny"),
    )
    assert text == (
        "jaxcls: run 'runs/tiny' was started with another config; changed:\n"
        "  seed: 0 -> 3\n"
        "use another --workdir, or --allow-changes to resume with the new values (the network "
        "and the optimizer's state must keep their shapes)\n"
    )
    assert Path("runs/tiny/config.json").read_text() == before


def test_a_training_stopped_by_a_signal_ends_in_status_75(run: Run, fake_train: FakeTrain) -> None:
    fake_train.stopped_by = "SIGTERM"
    result = run("train", "tiny.py")
    assert (result.status, result.out) == (75, "")
    assert result.err == (
        "stopped by SIGTERM after step 7 of 12, which is saved; the same command resumes the run\n"
    )


def test_a_mistake_found_in_training_is_a_message(message: Message, fake_train: FakeTrain) -> None:
    fake_train.error = UserError("loss is nan at step 3")
    assert message("train", "tiny.py") == "jaxcls: loss is nan at step 3\n"


def test_a_fault_of_ours_is_not_hidden(run: Run, fake_train: FakeTrain) -> None:
    fake_train.error = ValueError("a fault")
    with pytest.raises(ValueError, match="a fault"):
        run("train", "tiny.py")


FAULT = """
import os, sys, threading
from jaxcls import __main__ as program
from jaxcls.commands import cli

def fail(*_):
    raise RuntimeError("https://me:hidden@host \\x1b]0;x\\x07")

def fail_in_thread(_):
    thread = threading.Thread(target=fail, name="background")
    thread.start()
    thread.join()
    return lambda: 0

cli.joined = lambda: sys.argv[1] == "joined"
cli.leave = lambda status: status
cli.find_command = fail_in_thread if sys.argv[1] == "thread" else fail
program.run()
"""


@pytest.mark.parametrize(("place", "status"), [("alone", 1), ("joined", 1), ("thread", 0)])
def test_a_traceback_has_no_secrets_and_does_nothing_to_a_terminal(place: str, status: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FAULT, place],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"},
    )
    assert done.returncode == status, done.stderr
    assert "Traceback (most recent call last):\n" in done.stderr
    assert "in fail\n" in done.stderr
    assert "RuntimeError: " in done.stderr
    assert "https://***@host" in done.stderr
    assert "hidden" not in done.stderr
    assert "\x1b" not in done.stderr
    assert ("Exception in thread background:\n" in done.stderr) == (place == "thread")


# Runs


@pytest.mark.parametrize("command", [["evaluate", "gone"], ["predict", "gone", "tiny.py"]])
def test_a_missing_run_is_named(message: Message, command: list[str]) -> None:
    assert message(*command) == "jaxcls: weights 'gone': no such run, preset or weights file\n"


@pytest.mark.parametrize("rest", [["evaluate"], ["predict", "tiny.py"]])
def test_a_folder_that_is_no_run_is_named(
    message: Message, tmp_path: Path, rest: list[str]
) -> None:
    command, *images = rest
    text = message(command, tmp_path, *images)
    assert text.startswith(
        f"jaxcls: folder {str(tmp_path)!r} is not a run, so it has no checkpoint"
    )


@pytest.mark.parametrize("step", ["latest", "best", "3"])
def test_a_run_without_a_checkpoint_is_named(message: Message, step: str) -> None:
    info = RunInfo(config=load_config("tiny.py"), class_names=("a", "b"))
    prepare_run(Path("started"), info, allow_changes=False)
    record_run(Path("started"), info)
    text = message("evaluate", "started", "--step", step)
    folder = Path("started/checkpoints").absolute()
    if step == "3":
        expected = f"checkpoint {folder}/3 cannot be used: it is missing (existing steps: none)"
    else:
        expected = f"there is no checkpoint in {folder}; train until one is saved"
    assert text.startswith(f"jaxcls: {expected}")


@pytest.mark.parametrize("step", ["newest", "-1", "1.5", "", "²"])
@pytest.mark.parametrize(
    "command",
    [["evaluate", "efficientnet_lite0_imagenet"], ["predict", "gone", "tiny.py"]],
)
def test_a_step_is_latest_best_or_a_number(
    message: Message, command: Sequence[str], step: str
) -> None:
    assert message(*command, f"--step={step}") == (
        f"jaxcls: --step: expected latest, best or the number of a step, got {step!r}\n"
    )


# Pictures


def test_show_schedule_draws_a_picture(run: Run) -> None:
    result = run("show", "schedule", "tiny.py", "-o", "rate.png", "--schedule.name", "cosine")
    assert (result.status, result.out, result.err) == (0, "wrote rate.png\n", "")
    assert Path("rate.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "show: expected one of augment, data, run, schedule"),
        (["shedule", "tiny.py"], "show: unknown picture 'shedule'; did you mean 'schedule'?"),
        (["schedule", "gone.py"], "config file 'gone.py' does not exist"),
        (
            ["schedule", "tiny.py", "-o", "a.docx"],
            "cannot write picture 'a.docx': Format 'docx' is not supported (supported formats: ",
        ),
        (["schedule", "tiny.py", "-o", "gone/a.png"], "cannot write picture 'gone/a.png': "),
    ],
)
def test_a_picture_that_cannot_be_drawn_is_explained(
    message: Message, arguments: list[str], expected: str
) -> None:
    assert message("show", *arguments).startswith(f"jaxcls: {expected}")


@pytest.mark.parametrize("what", ["augment", "data", "schedule"])
@pytest.mark.parametrize("output", ["a.xyz", "gone/a.png", "."])
def test_a_picture_that_cannot_be_written_is_refused_before_the_data_is_read(
    message: Message, what: str, output: str
) -> None:
    """The data does not exist, which would be the message if it was read first."""
    text = message("show", what, "tiny.py", "--data.source", "folder:gone", "-o", output)
    assert text.startswith(f"jaxcls: cannot write picture '{output}': ")


def test_a_picture_needs_a_file(message: Message) -> None:
    assert "--output" in message("show", "schedule", "tiny.py")


def test_show_data_draws_a_picture(run: Run, message: Message) -> None:
    result = run("show", "data", "tiny.py", "-o", "raw.svg", "--count", "3")
    assert (result.status, result.out, result.err) == (0, "wrote raw.svg\n", "")
    assert Path("raw.svg").read_bytes().startswith(b"<?xml")
    text = message("show", "data", "tiny.py", "-o", "raw.svg", "--count", "0")
    assert text == "jaxcls: --count: must be at least 1, got 0\n"


# Data


def test_data_is_told_as_lines_and_as_json(run: Run) -> None:
    result = run("data", "tiny.py", "--split", "test", "--limit", "40", "--json")
    assert (result.status, result.err) == (0, "")
    lines = result.out.splitlines()
    assert lines[0] == "digits 'test': 355 images (40 of them read)"
    found = json.loads(lines[-1])
    assert sum(found["classes"].values()) == found["num_seen"] == 40
    assert found["formats"] == {"PNG": 40}
    assert lines[-2] == "read only the split 'test'; to read the other one: --split train"


def test_the_split_in_the_hint_can_be_pasted(run: Run) -> None:
    splits = ["--data.train-split", "train[:50%]", "--data.eval-split", "train[50%:]"]
    result = run("data", "tiny.py", *splits, "--limit", "4")
    assert result.out.endswith(
        "read only the split 'train[:50%]'; to read the other one: --split 'train[50%:]'\n"
    )
    result = run("data", "tiny.py", "--data.eval-split", "train", "--limit", "4")
    assert result.out.endswith("read only the split 'train'\n")


def test_data_with_a_mistake(message: Message) -> None:
    assert message("data", "tiny.py", "--limit", "0").startswith(
        "jaxcls: --limit: must be at least"
    )
    text = message("data", "tiny.py", "--data.source", "folder:gone")
    assert text == "jaxcls: data.source: folder 'gone' does not exist; name a folder of images\n"


def test_prepare_says_where_the_data_is(run: Run, message: Message) -> None:
    result = run("prepare", "digits", "--data-dir", "sets")
    assert result.status == 0
    assert result.out == "digits is ready in sets/digits/1.0.0: train 1,442, test 355\n"
    assert "unknown source 'digit'; did you mean 'digits'" in message("prepare", "digit")


def test_a_benchmark_refuses_what_does_not_fit(message: Message) -> None:
    text = message("benchmark", "tiny.py", "--synthetic", "--data.batch-size", "30")
    assert text.startswith("jaxcls: data.batch_size: 30 does not split evenly over 8 devices")


def test_nothing_is_written_where_the_command_runs(run: Run) -> None:
    before = sorted(os.listdir())
    run("train", "tiny.py", "--data.batch-size", "30")
    run("evaluate", "gone")
    assert sorted(os.listdir()) == before
