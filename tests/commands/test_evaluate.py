"""`jaxcls evaluate --per-class --predictions` and `jaxcls show run`."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from jaxcls.commands.cli import main
from jaxcls.config import Config
from jaxcls.data.sources import Source, open_source
from jaxcls.inference.classifier import ImageClassifier
from jaxcls.inference.report import Evaluation
from jaxcls.pictures import plots
from jaxcls.system.errors import DataError
from jaxcls.training.loop import Outcome


@pytest.fixture
def run(tiny_run: tuple[Path, Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run, in the folder where commands are given."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(tiny_run[0], "run"))


@pytest.fixture(scope="module")
def evaluation(tiny_run: tuple[Path, Outcome]) -> Evaluation:
    evaluation = ImageClassifier.from_run(tiny_run[0]).examine()
    assert isinstance(evaluation, Evaluation)
    return evaluation


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are written."""
    figures: list[Figure] = []
    save = plots.save_figure

    def note(figure: Figure, path: Path) -> None:
        figures.append(figure)
        save(figure, path)

    monkeypatch.setattr(plots, "save_figure", note)
    return figures


@pytest.fixture
def no_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is restored: mistakes must be found before that."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("restored")

    monkeypatch.setattr(ImageClassifier, "from_run", fail)


def lose_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> Source:
        raise DataError("data.source: folder 'photos' does not exist")

    monkeypatch.setattr("jaxcls.inference.classifier.open_source", fail)


def panels(figure: Figure) -> list[str]:
    """Labels of the vertical axes, from the first panel to the last."""
    figure.draw_without_rendering()
    return [axes.get_ylabel() for axes in figure.axes]


CURVES = ["loss", "accuracy", "learning rate"]


def test_classes_and_predictions_beside_the_metrics(
    run: Path,
    tiny_config: Config,
    evaluation: Evaluation,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["evaluate", str(run), "--per-class", "--predictions", "guesses.csv", "--json"]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    report = json.loads(lines[-1])
    classes = report.pop("classes")
    assert json.loads((run / "eval.json").read_text()) == report
    assert report == pytest.approx(dict(evaluation.metrics))
    assert lines[-2] == "wrote guesses.csv"
    assert lines[2].split()[:3] == ["class", "examples", "top1"]
    assert [line.split()[0] for line in lines[3:13]] == [entry["name"] for entry in classes]
    assert sorted(entry["id"] for entry in classes) == list(range(10))
    assert sum(entry["num_examples"] for entry in classes) == 355
    hits = sum(entry["top1"] * entry["num_examples"] for entry in classes)
    assert hits == pytest.approx(report["top1"] * 355)
    with Path("guesses.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    source = open_source(tiny_config.data, "test")
    assert [row["example"] for row in rows] == [str(index) for index in range(355)]
    assert [row["label"] for row in rows] == [str(source[index].label) for index in range(355)]
    right = [row["label"] == row["predicted"] for row in rows]
    assert sum(right) / 355 == report["top1"]
    guesses = ["predicted", *(f"predicted_{rank}" for rank in range(2, 6))]
    among = [row["label"] in [row[guess] for guess in guesses] for row in rows]
    assert sum(among) / 355 == report["top5"]
    assert sorted(path.name for path in Path().iterdir()) == ["guesses.csv", "run"]


@pytest.mark.usefixtures("no_evaluation")
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["evaluate", "run", "--predictions", "gone/a.csv"], "cannot write 'gone/a.csv': No such"),
        (["show", "run", "run", "-o", "a.docx"], "cannot write picture 'a.docx': Format 'docx' is"),
        (["show", "run", "run", "-o", "gone/a.png"], "cannot write picture 'gone/a.png': "),
        (["show", "run", "run", "-o", "run/.png"], "cannot write picture 'run/.png': Format ''"),
        (["show", "run", "run", "-o", "a.png", "--step", "x"], "--step: expected latest, best or"),
    ],
)
def test_a_mistake_is_found_before_the_evaluation(
    run: Path, arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"jaxcls: {expected}")


def test_a_run_is_drawn_with_its_confusion(
    run: Path,
    evaluation: Evaluation,
    drawn: list[Figure],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["show", "run", str(run), "-o", "run.png"]) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("wrote run.png\n", "")
    assert Path("run.png").read_bytes().startswith(b"\x89PNG")
    (figure,) = drawn
    assert panels(figure) == [*CURVES, "class"]
    matrix = evaluation.confusion_matrix()
    texts = [int(text.get_text()) for text in figure.axes[-1].texts]
    assert texts == matrix[matrix > 0].tolist()
    title = figure.axes[-1].get_title()
    assert title.startswith("step 12: top-1 ")
    assert title.endswith("of 355 examples of digits 'test'")


def test_several_runs_are_drawn_in_one_picture(
    run: Path, drawn: list[Figure], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, "other")
    record = json.loads(Path("other/config.json").read_text())
    record["config"]["seed"] = 5
    Path("other/config.json").write_text(json.dumps(record))
    assert main(["show", "run", str(run), "other", "-o", "runs.png"]) == 0
    assert capsys.readouterr().out == "wrote runs.png\n"
    (figure,) = drawn
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["seed=0", "seed=5"]
    assert main(["show", "run", str(run), "other", "-o", "runs.png", "--step", "8"]) == 2
    assert capsys.readouterr().err.startswith("jaxcls: --step: concerns the confusion matrix")
    assert main(["show", "run", str(run), "gone", "-o", "runs.png"]) == 2
    assert capsys.readouterr().err.startswith("jaxcls: run 'gone' does not exist")
    assert main(["show", "run", "-o", "runs.png"]) == 2


def test_without_its_data_a_run_is_drawn_without_confusion(
    run: Path,
    drawn: list[Figure],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lose_the_data(monkeypatch)
    assert main(["show", "run", str(run), "-o", "run.svg"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "wrote run.svg\n"
    assert captured.err == (
        "the picture is without confusion matrix: data.source: folder 'photos' does not exist\n"
    )
    assert panels(drawn[0]) == CURVES


def test_data_that_is_asked_for_must_be_there(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lose_the_data(monkeypatch)
    assert main(["show", "run", str(run), "-o", "run.svg", "--split", "test"]) == 2
    assert capsys.readouterr().err == "jaxcls: data.source: folder 'photos' does not exist\n"
    assert not Path("run.svg").exists()


def empty_metrics(path: Path) -> str:
    path.write_text(path.read_text().splitlines(keepends=True)[0])
    return f"{path} has no rows"


def no_metrics(path: Path) -> str:
    path.unlink()
    return f"{path}: No such file or directory"


def damaged_metrics(path: Path) -> str:
    path.write_text(path.read_text().replace("\n2,", "\ntwo,", 1))
    return f"{path} is damaged (could not convert string to float: 'two')"


def metrics_without_steps(path: Path) -> str:
    path.write_text(path.read_text().replace("\n2,", "\n,", 1))
    return f"{path} is damaged (a row has no step)"


@pytest.mark.parametrize(
    "lose", [empty_metrics, no_metrics, damaged_metrics, metrics_without_steps]
)
def test_without_its_metrics_a_run_is_drawn_without_curves(
    run: Path,
    lose: Callable[[Path], str],
    drawn: list[Figure],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    why = lose(run / "metrics.csv")
    arguments = ["show", "run", str(run), "-o", "run.svg"]
    assert main([*arguments, "--split", "test[:20]", "--step", "8"]) == 0
    assert capsys.readouterr().err == f"the picture is without curves: {why}\n"
    assert panels(drawn[0]) == ["class"]
    assert drawn[0].axes[0].get_title().startswith("step 8: top-1 ")
    lose_the_data(monkeypatch)
    assert main(arguments) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "jaxcls: show run: 'run' has nothing that can be drawn"
    )
