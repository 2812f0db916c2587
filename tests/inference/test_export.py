"""`jaxcls export`: the folder, and what a process makes of it that knows nothing of jaxcls."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.export
import numpy as np
import pytest

from jaxcls.commands.cli import main
from jaxcls.inference import export
from jaxcls.inference.classifier import ImageClassifier
from jaxcls.training.loop import Outcome

SERVE = """
import pathlib, sys
import jax, jax.export
import numpy as np

program = jax.export.deserialize(bytearray(pathlib.Path("model.stablehlo").read_bytes()))
predict = jax.jit(program.call)
inputs = np.load(sys.argv[1])
np.savez(sys.argv[2], **{name: predict(images) for name, images in inputs.items()})
loaded = {name.partition(".")[0] for name in sys.modules}
assert not loaded & {"jaxcls", "flax", "safetensors", "PIL", "orbax"}, loaded
"""


@pytest.fixture(scope="module")
def folder(
    run_of_all_blocks: tuple[Path, Outcome], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("export") / "digits"
    assert main(["export", str(run_of_all_blocks[0]), "-o", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def classifier(run_of_all_blocks: tuple[Path, Outcome]) -> ImageClassifier:
    return ImageClassifier.from_run(run_of_all_blocks[0])


KILLED = """
import os, pathlib, signal, sys
from jaxcls.system.whole_files import replacing_folder
with replacing_folder(pathlib.Path(sys.argv[1])) as temporary:
    (temporary / "weights.safetensors").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def run_python(code: str, *arguments: str, folder: Path) -> str:
    """Runs code in a process of its own, as a reader of the folder would."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        cwd=folder,
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout


def test_a_fresh_process_with_jax_alone_predicts_the_same(
    folder: Path, classifier: ImageClassifier, tmp_path: Path
) -> None:
    generator = np.random.default_rng(0)
    shapes = {"one": (1, 8, 8), "five": (5, 16, 16), "wide": (2, 30, 45), "tall": (1, 40, 9)}
    inputs = {
        name: generator.integers(256, size=(*shape, 3), dtype=np.uint8)
        for name, shape in shapes.items()
    }
    np.savez(tmp_path / "in.npz", **inputs)  # pyright: ignore[reportArgumentType]
    run_python(SERVE, str(tmp_path / "in.npz"), str(tmp_path / "out.npz"), folder=folder)
    outputs = np.load(tmp_path / "out.npz")
    for name, images in inputs.items():
        assert outputs[name].dtype == np.float32
        np.testing.assert_allclose(outputs[name], classifier.predict(images), atol=1e-5, rtol=0)


def test_one_program_for_three_platforms(folder: Path) -> None:
    program = jax.export.deserialize(bytearray((folder / "model.stablehlo").read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    assert str(program.in_avals[0]).startswith("uint8[batch,height,width,3]")
    assert str(program.out_avals[0]) == "float32[batch,10]"


def test_the_weights_are_the_runs_to_the_bit(folder: Path, classifier: ImageClassifier) -> None:
    """The moving averages, since the run keeps some."""
    stored = ImageClassifier.from_file(folder / "weights.safetensors")
    jax.tree.map(np.testing.assert_array_equal, stored.variables, classifier.variables)
    images = np.random.default_rng(1).integers(256, size=(3, 8, 8, 3), dtype=np.uint8)
    np.testing.assert_array_equal(stored.predict(images), classifier.predict(images))
    assert stored.class_names == classifier.class_names


def test_what_lies_beside(
    folder: Path, run_of_all_blocks: tuple[Path, Outcome], classifier: ImageClassifier
) -> None:
    names = ["README.md", "classes.json", "config.json", "model.stablehlo", "weights.safetensors"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert [path.name for path in folder.parent.iterdir()] == ["digits"]
    assert json.loads((folder / "classes.json").read_text()) == list(classifier.class_names)
    recorded = json.loads((run_of_all_blocks[0] / "config.json").read_text())
    assert json.loads((folder / "config.json").read_text()) == recorded


def test_the_card(folder: Path, run_of_all_blocks: tuple[Path, Outcome]) -> None:
    card = (folder / "README.md").read_text()
    metrics = run_of_all_blocks[1].metrics
    assert f"top-1 {metrics['top1']:.2%}, top-5 {metrics['top5']:.2%}" in card
    assert "`digits`" in card
    assert "this is step 12" in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.S)
    name, probability = run_python(code, folder=folder).split()
    assert name in json.loads((folder / "classes.json").read_text())
    assert 0.1 <= float(probability) <= 1


def test_another_step_and_platform_into_an_empty_folder(
    run_of_all_blocks: tuple[Path, Outcome], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(run_of_all_blocks[0], tmp_path / "run")
    (run / "metrics.csv").unlink()
    (tmp_path / "out").mkdir()
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "out")], check=False)
    assert len(list(tmp_path.glob(".out.*"))) == 1
    arguments = ["export", str(run), "-o", str(tmp_path / "out"), "--step", "8"]
    assert main([*arguments, "--platforms", "tpu"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]
    assert not (tmp_path / "out/.written-by").exists()
    assert "step 8, for tpu" in capsys.readouterr().out
    program = jax.export.deserialize(bytearray((tmp_path / "out/model.stablehlo").read_bytes()))
    assert program.platforms == ("tpu",)
    assert "Not evaluated at this step" in (tmp_path / "out/README.md").read_text()


def test_mistakes_are_one_message(
    run_of_all_blocks: tuple[Path, Outcome], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(run_of_all_blocks[0])
    (tmp_path / "no_checkpoint").mkdir()
    (tmp_path / "used").mkdir()
    (tmp_path / "used/file").write_text("")
    for arguments, message in (
        ([str(tmp_path / "no_checkpoint"), "-o", "new"], "has no checkpoint"),
        ([str(tmp_path / "missing"), "-o", "new"], "does not exist"),
        ([run, "-o", "new", "--step", "7"], "it is missing (existing steps: "),
        ([run, "-o", "new", "--step", "last"], "expected latest, best or the number of a step"),
        ([run, "-o", "new", "--platforms", "gpu"], "'gpu'"),
        ([run, "-o", "new", "--platforms", "cpu", "tpus"], "known: cpu, cuda, tpu"),
        ([run, "-o", str(tmp_path / "used")], "is not empty"),
        ([run, "-o", str(tmp_path / "used/file")], "Not a directory"),
        ([run, "-o", str(tmp_path / "used/file/new")], "Not a directory"),
    ):
        assert main(["export", *arguments]) == 2, arguments
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1, captured.err
        assert message in captured.err
    assert not Path("new").exists()


def test_a_failure_leaves_nothing(
    run_of_all_blocks: tuple[Path, Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "write_weights", fail)
    assert main(["export", str(run_of_all_blocks[0]), "-o", str(tmp_path / "out")]) == 2
    assert list(tmp_path.iterdir()) == []
