"""What tyro does not know by itself: values of switches, single entries of tables, home folders."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import pytest
import tyro
from command_line import Message, Run

from jaxcls.commands.benchmark import Benchmark
from jaxcls.commands.compile import Compile
from jaxcls.commands.data import Data
from jaxcls.commands.evaluate import Evaluate
from jaxcls.commands.options import _normalise_switches, _options, parse
from jaxcls.commands.predict import Predict
from jaxcls.commands.runs import Runs
from jaxcls.commands.show import ShowRun
from jaxcls.commands.sweep import Sweep
from jaxcls.commands.train import Train
from jaxcls.config import Config, OptimizerConfig, load_config
from jaxcls.system.errors import UserError
from jaxcls.training.optimizers import make_optimizer, optimizer_names

CONFIGS = sorted((Path(__file__).parents[2] / "configs").rglob("*.py"))
BASE = Config(
    optimizer=OptimizerConfig(
        options={"momentum": 0.9, "nesterov": True}, freeze={"stem.*": 1.0}, rates={"head.*": 2.0}
    ),
    num_steps=3,
)


def train(*arguments: str, config: Config = BASE) -> Train:
    return parse(Train, "x", arguments, default=Train(config=config))


def get(value: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        value = getattr(value, name)
    return value


# Switches

KINDS = [Train, Data, Benchmark, Compile, Evaluate, Sweep, Runs, Predict, ShowRun]
ON = ("true", "True", "1", "YES", "on")
OFF = ("false", "False", "0", "no", "OFF")


@pytest.mark.parametrize("kind", KINDS)
def test_every_switch_takes_every_spelling(kind: type) -> None:
    options = list(_options(kind))
    switches = [option for option in options if option.type is bool]
    assert switches or kind is ShowRun
    for option in switches:
        under = option.on.replace("-", "_").replace("__", "--", 1)
        for words, expected in ((ON, option.on), (OFF, option.off)):
            spellings = [[f"{option.on}={word}"] for word in words]
            spellings += [[option.on, word] for word in words]
            spellings += [
                [f"{under}={words[0]}"],
                [f"{option.off}={expected == option.off}"],
                [expected],
            ]
            for spelling in spellings:
                assert _normalise_switches(spelling, options) == [expected], spelling


@pytest.mark.parametrize("kind", [Train, Evaluate])
def test_switches_reach_their_fields(kind: type) -> None:
    default = Train(config=BASE) if kind is Train else Evaluate(data=BASE.data)
    switches = [option for option in _options(kind) if option.type is bool]
    every = parse(kind, "x", [f"{option.on}=yes" for option in switches], default=default)
    assert all(get(every, option.path) is True for option in switches)
    none = parse(kind, "x", [f"{option.on}=0" for option in switches], default=every)
    assert not any(get(none, option.path) for option in switches)


@pytest.mark.parametrize(
    "words", [["--model.remat=maybe"], ["--model.remat", "maybe"], ["--model.remat="],
              ["--model.no-remat", "2"], ["--model.remat=truee", "--seed", "1"]]
)  # fmt: skip
def test_another_value_names_the_field_and_both_switches(words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        train(*words)
    name = words[0].partition("=")[0]
    assert str(caught.value).startswith(f"{name}: expected true or false, got ")
    assert "--model.remat turns it on, --model.no-remat off" in str(caught.value)


def test_what_follows_a_switch_is_left_where_it_may_be_something_else() -> None:
    parsed = train("--model.remat", "--seed", "1", "--num-steps=0")
    assert (parsed.config.model.remat, parsed.config.seed) == (True, 1)
    assert parse(Runs, "x", ["--json", "elsewhere"]).folder == "elsewhere"
    assert parse(Runs, "x", ["--json", "yes", "elsewhere"]).folder == "elsewhere"
    assert train("--workdir", "true").workdir == "true"


# Tables


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ([], {"momentum": 0.9, "nesterov": True}),
        (["--optimizer.options"], {}),
        (["--optimizer.options", "None"], {}),
        (["--optimizer.options", "{}"], {}),
        (["--optimizer.options={}"], {}),
        (["--optimizer.options", "b1", "0.8"], {"b1": 0.8}),
        (["--optimizer.options", "b1", "1", "momentum", "None"], {"b1": 1}),
        (["--optimizer.options.momentum", "None"], {"nesterov": True}),
        (["--optimizer.options.momentum=None", "--optimizer.options.nesterov=None"], {}),
        (["--optimizer.options.nesterov", "false"], {"momentum": 0.9, "nesterov": False}),
        (["--optimizer.options.momentum", "-1"], {"momentum": -1, "nesterov": True}),
        (
            ["--optimizer.options.mu-dtype=bfloat16", "--optimizer.options", "b1", "0.8"],
            {"b1": 0.8, "mu_dtype": "bfloat16"},
        ),
        (["--optimizer.options.b1", "1", "--optimizer.options.b1", "None"], BASE.optimizer.options),
        (["--optimizer.options.absent", "None"], BASE.optimizer.options),
    ],
)
def test_options_of_an_optimizer(words: list[str], options: dict[str, Any]) -> None:
    found = train("--seed", "2", *words, "--num-steps", "7").config
    assert found.optimizer.options == options
    assert {name: type(value) for name, value in found.optimizer.options.items()} == {
        name: type(value) for name, value in options.items()
    }
    assert (found.seed, found.num_steps) == (2, 7)


def test_all_tables_take_single_entries() -> None:
    found = train("--optimizer.freeze.stem.*", "None", "--optimizer.freeze.block[1-3].*", "0.5",
                  "--optimizer.rates.head.*=0.1").config.optimizer  # fmt: skip
    assert found.freeze == {"block[1-3].*": 0.5}
    assert found.rates == {"head.*": 0.1}
    assert train("--optimizer.freeze", "(a|b).*", "1").config.optimizer.freeze == {"(a|b).*": 1}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--optimizer.options.momentum"], "--optimizer.options.momentum: give a value, or None"),
        (["--optimizer.options.b1="], "--optimizer.options.b1: give a value, or None"),
        (["--optimizer.options.b1", "--seed", "1"], "--optimizer.options.b1: give a value"),
        (["--optimizer.options.", "1"], "--optimizer.options.NAME: give a value"),
    ],
)
def test_an_entry_without_a_value_is_named(words: list[str], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        train(*words)
    assert str(caught.value).startswith(expected)


def test_a_table_is_explained(run: Run, message: Message) -> None:
    text = message("train", "tiny.py", "--optimizer.options", "momentum")
    assert "'momentum' has no value" in text
    assert "optimizer.freeze.a: expected a number, got" in message(
        "train", "tiny.py", "--optimizer.freeze.a", "x"
    )
    out = run("train", "tiny.py", "--help").out
    assert "--optimizer.options [NAME VALUE ...]" in out


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_can_be_trained_with_every_optimizer(path: Path) -> None:
    config = load_config(path)
    drop = [
        word
        for name in config.optimizer.options
        for word in (f"--optimizer.options.{name}", "None")
    ]
    for words in (drop, ["--optimizer.options"]):
        switched = train(*words, config=config).config.optimizer
        assert switched.options == {}
        for name in optimizer_names():
            make_optimizer(dataclasses.replace(switched, name=name), lambda _: 0.1)


# Paths


@dataclasses.dataclass(frozen=True, kw_only=True)
class Paths:
    images: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    other: Path | None = None


def test_paths_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    found = parse(Paths, "x", ["~/a", "$b", "--output=~/my c", "--other", "~"])
    assert found.images == (tmp_path / "a", Path("$b"))
    assert (found.output, found.other) == (tmp_path / "my c", tmp_path)
    assert parse(Paths, "x", ["-o", "~/c", "--other", "None"]).other is None


def test_a_home_that_is_not_there_is_the_options_mistake(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(Paths, "x", ["-o", "~no-such-user/c"])
    assert ended.value.code == 2
    assert "no home folder ~no-such-user" in " ".join(capsys.readouterr().err.split())
