"""How gke.sh, tpu_pod.sh and tpu_gce.sh read their options, in the loop that they share."""

import shlex
from pathlib import Path

import pytest
from fakes import ROOT, Fakes
from secret_texts import SECRETS

PROGRAM = """\
set -euo pipefail
usage() { echo "usage: ..."; }
name='' data_dir='' chips_per_host=4 spot=false dry_run=false training=()
. "$OPTIONS"
take_options "--name --data-dir --chips-per-host" "--spot --dry-run" "$@"
printf '%s\\n' "$name" "$data_dir" "$chips_per_host" "$spot" "$dry_run" "${training[@]}"
"""


@pytest.fixture
def shell(tmp_path: Path) -> Fakes:
    (tmp_path / "launcher.sh").write_text(PROGRAM)
    return Fakes(tmp_path / "fakes", ())


def read(shell: Fakes, *arguments: str):
    script = shell.folder.parent / "launcher.sh"
    return shell.run(str(script), *arguments, OPTIONS=str(ROOT / "launch/options.sh"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--name a --chips-per-host 8 --spot", ["a", "", "8", "true", "false"]),
        ("--name=a --data-dir=gs://b/c=d --dry-run", ["a", "gs://b/c=d", "4", "false", "true"]),
        ("--data-dir 'my data' -- c.py --name b", ["", "my data", "4", "false", "false", "c.py",
                                                   "--name", "b"]),
        ("--name a --name b", ["b", "", "4", "false", "false"]),
        ("--name=-a --", ["-a", "", "4", "false", "false"]),
        ("-- --help -- ''", ["", "", "4", "false", "false", "--help", "--", ""]),
    ],
)  # fmt: skip
def test_what_is_given(shell: Fakes, arguments: str, expected: list[str]) -> None:
    result = read(shell, *shlex.split(arguments))
    assert result.returncode == 0, result.stderr
    assert result.stdout.split("\n")[:-1] == expected


def test_home_is_expanded_where_a_shell_leaves_it(shell: Fakes) -> None:
    for arguments in (["--data-dir=~/sets"], ["--data-dir", "~/sets"]):
        assert read(shell, *arguments).stdout.splitlines()[1] == f"{shell.folder}/sets"
    assert read(shell, "--data-dir=~nobody/$HOME").stdout.splitlines()[1] == "~nobody/$HOME"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--name", "--name: give a value"),
        ("--name --spot", "--name: give a value"),
        ("--name -- c.py", "--name: give a value"),
        ("--name -x", "--name: give a value (a value that begins with - as --name=VALUE)"),
        ("--name ''", "--name: give a value, got ''"),
        ("--name=", "--name: give a value, got ''"),
        ("--name ' '", "--name: give a value, got ' '"),
        ("--spot=false", "--spot takes no value, got 'false'"),
        ("--spott", "unknown option --spott; see bash launch/launcher.sh --help"),
        ("--nam=a", "unknown option --nam;"),
        ("'--name --data-dir' a", "unknown option --name --data-dir;"),
        ("-n a", "unknown option -n;"),
        ("--spot c.py", "'c.py' is not an option; give the config and arguments of jaxcls train"),
        ("''", "'' is not an option"),
        ("-", "'-' is not an option"),
    ],
)
def test_mistakes(shell: Fakes, arguments: str, message: str) -> None:
    result = read(shell, *shlex.split(arguments))
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"launcher: {message}")


def test_help_in_any_place(shell: Fakes) -> None:
    result = read(shell, "--name", "a", "--help")
    assert (result.returncode, result.stdout) == (0, "usage: ...\n")


@pytest.mark.parametrize(
    "command",
    [
        "gke.sh apply --name b0 --image --dry-run --accelerator tpu --topology 2x2 -- c.py",
        "tpu_pod.sh create --name b0 --accelerator-type --dry-run --runtime-version v",
        "tpu_pod.sh create --name b0 --zone --dry-run --accelerator-type v4-8",
        "tpu_gce.sh create --name b0 --zone z-a --machine-type --dry-run --topology 4x4",
        "gke.sh delete --name --dry-run",
    ],
)
def test_a_launcher_runs_nothing_where_a_value_is_missing(command: str, tmp_path: Path) -> None:
    fakes = Fakes(tmp_path / "fakes", ("gcloud", "kubectl"))
    script, *arguments = command.split()
    result = fakes.run(f"launch/{script}", *arguments)
    assert result.returncode == 2
    assert ": give a value" in result.stderr
    assert fakes.calls() == []


ARGUMENTS = (
    "configs/digits.py",
    "--workdir",
    "gs://bucket/runs/a@b",
    "--data.source",
    "tfds:a:1.2",
)


@pytest.mark.parametrize(
    "command",
    [
        "gke.sh apply --name b0 --image registry/jaxcls:1 --accelerator tpu --topology 2x2",
        "tpu_pod.sh start --name b0",
        "tpu_gce.sh start --name b0 --zone z-a",
    ],
)
@pytest.mark.parametrize(
    "arguments",
    [
        ("--model.weights", "https://me:TOKEN@host/w.safetensors"),
        ("--data.data-dir=gs://bucket/sets?access_token=TOKEN",),
        ("--x", "Authorization: token TOKEN"),
        ("--x", f"hf_TOKEN{'a1' * 16}"),
        ("--data.data-dir=me:TOKEN@host",),
        ("me:TOKEN@host",),
        ("HF_TOKEN=TOKEN",),
    ],
)
def test_no_secret_in_an_argument_leaves_this_machine(
    command: str, arguments: tuple[str, ...], tmp_path: Path
) -> None:
    fakes = Fakes(tmp_path / "fakes", ("gcloud", "kubectl"))
    script, *options = command.split()
    result = fakes.run(f"launch/{script}", *options, "--", *ARGUMENTS, *arguments)
    assert (result.returncode, result.stdout) == (2, ""), result.stderr
    option = arguments[0].partition("=")[0] if arguments[0].startswith("--") else "--data.source"
    assert f"{option}: this has a password or token in it, which would stay" in result.stderr
    assert "TOKEN" not in result.stderr
    assert fakes.calls() == []


def test_a_launcher_refuses_what_jaxcls_would_mask(shell: Fakes) -> None:
    """One table for both, so that they know the same kinds of secrets."""
    words = list(SECRETS)
    program = shell.folder.parent / "refuse.sh"
    program.write_text(
        """. "$OPTIONS"
for word in "$@"; do if has_secret "$word"; then echo yes; else echo no; fi; done
"""
    )
    result = shell.run(str(program), *words, OPTIONS=str(ROOT / "launch/options.sh"))
    found = dict(zip(words, result.stdout.split(), strict=True))
    assert result.stderr == ""
    assert found == {word: "no" if SECRETS[word] == word else "yes" for word in words}
