import csv
import dataclasses
import io
import os
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, precision_score, recall_score

from jaxcls.data.source import Record, Source
from jaxcls.inference.predict_split import Predictions
from jaxcls.inference.report import (
    Confused,
    Evaluation,
    describe_classes,
    require_writable,
    whole_file,
)
from jaxcls.system.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Named(Source):
    """A source of files, which are never read."""

    name: str = "photos"
    split: str = "test"
    files: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Record:
        raise AssertionError("not read")

    def example_name(self, index: int) -> str:
        return self.files[index] if self.files else super().example_name(index)


def evaluation_of(
    labels: np.ndarray,
    classes: np.ndarray,
    *,
    class_names: tuple[str, ...],
    source: Source | None = None,
    class_map: tuple[int, ...] | None = None,
) -> Evaluation:
    """Of these guesses, [examples] or [examples, top], each half as probable as the one before."""
    classes = classes.reshape(len(labels), -1)
    probabilities = np.tile(0.5 ** np.arange(1, 1 + classes.shape[1]), (len(labels), 1))
    return Evaluation(
        metrics={},
        source=source or Named(class_names=class_names),
        class_names=class_names,
        predictions=Predictions(
            index=np.arange(len(labels)),
            labels=labels,
            classes=classes,
            probabilities=probabilities.astype(np.float32),
        ),
        class_map=class_map,
    )


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    """Class 4 has no examples, and nothing is taken for class 2."""
    rng = np.random.default_rng(0)
    labels = rng.choice([0, 1, 2, 3, 5], size=300)
    guesses = np.where(rng.random(300) < 0.6, labels, rng.integers(6, size=300))
    guesses = np.where(guesses == 2, 0, guesses)
    return evaluation_of(labels, guesses, class_names=tuple("abcdef"))


def test_the_classes_are_those_of_scikit_learn(evaluation: Evaluation) -> None:
    labels, guesses = evaluation.predictions.labels, evaluation.predictions.predicted
    options = {"labels": range(6), "average": None, "zero_division": np.nan}
    recalls = np.asarray(recall_score(labels, guesses, **options))
    precisions = np.asarray(precision_score(labels, guesses, **options))
    assert np.isnan(recalls).tolist() == [False, False, False, False, True, False]
    assert np.isnan(precisions).tolist() == [False, False, True, False, False, False]
    matrix = confusion_matrix(labels, guesses, labels=range(6))
    np.testing.assert_array_equal(evaluation.confusion_matrix(), matrix)
    results = sorted(evaluation.per_class(), key=lambda result: result.id)
    assert [result.name for result in results] == list("abcdef")
    for result, recall, precision, row in zip(results, recalls, precisions, matrix, strict=True):
        assert result.num_examples == row.sum()
        assert result.top1 == (None if np.isnan(recall) else pytest.approx(recall))
        assert result.precision == (None if np.isnan(precision) else pytest.approx(precision))
        row[result.id] = 0
        if result.confused_with is None:
            assert row.sum() == 0
        else:
            assert result.confused_with.id == row.argmax()  # the first of several
            assert result.confused_with.count == row.max() > 0
            assert result.confused_with.name == "abcdef"[row.argmax()]


def test_the_worst_class_comes_first_and_those_without_examples_last(
    evaluation: Evaluation,
) -> None:
    results = evaluation.per_class()
    shares = [result.top1 for result in results[:-1]]
    assert None not in shares
    assert shares == sorted(shares, key=lambda share: share or 0.0)
    assert results[0].name == "c"
    assert results[0].top1 == 0
    assert results[-1].name == "e"
    assert results[-1].top1 is None


def test_the_table_lines_up() -> None:
    labels, guesses = np.array([0, 0, 1, 1, 1]), np.array([0, 1, 1, 1, 1])
    evaluation = evaluation_of(labels, guesses, class_names=("a cat", "dog", "horse"))
    assert describe_classes(evaluation.per_class()).splitlines() == [
        "class  examples     top1  precision  most confused with",
        "a cat         2   50.00%    100.00%  dog (1)",
        "dog           3  100.00%     75.00%  -",
        "horse         0        -          -  -",
    ]


def test_of_two_confusions_as_frequent_the_lower_class_is_told() -> None:
    labels, guesses = np.zeros(5, int), np.array([2, 1, 2, 1, 3])
    evaluation = evaluation_of(labels, guesses, class_names=tuple("abcd"))
    assert evaluation.per_class()[0].confused_with == Confused(id=1, name="b", count=2)


def test_classes_that_the_data_does_not_have_are_left_out() -> None:
    labels, guesses = np.array([7, 2, 2]), np.array([7, 2, 9])
    names = tuple(f"class {index}" for index in range(10))
    evaluation = evaluation_of(labels, guesses, class_names=names, class_map=(7, 2, 7))
    assert [result.id for result in evaluation.per_class()] == [2, 7]
    assert evaluation.per_class()[0].confused_with == Confused(id=9, name="class 9", count=1)


def test_many_classes_need_no_matrix() -> None:
    """A matrix of so many would take 180 GB."""
    count = 150_000
    evaluation = evaluation_of(
        np.array([count - 1, 5]), np.array([count - 2, 5]), class_names=("",) * count
    )
    results = evaluation.per_class()
    assert len(results) == count
    assert results[0].confused_with == Confused(id=count - 2, name="", count=1)


def rows_of(evaluation: Evaluation) -> list[list[str]]:
    file = io.StringIO()
    evaluation.write_predictions(file)
    assert "\r" not in file.getvalue()
    return list(csv.reader(io.StringIO(file.getvalue())))


def test_predictions_are_a_row_an_example() -> None:
    names = ("cat, tabby", 'a "dog"', "horse")
    evaluation = evaluation_of(np.array([0, 2]), np.array([[0, 2], [1, 2]]), class_names=names)
    assert rows_of(evaluation) == [
        ["example", "label", "predicted", "probability", "predicted_2", "probability_2"],
        ["0", "cat, tabby", "cat, tabby", "0.500000", "horse", "0.250000"],
        ["1", "horse", 'a "dog"', "0.500000", "horse", "0.250000"],
    ]


def test_the_file_of_an_example_is_told_even_if_its_name_is_not_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"photos/caf\xe9.jpg")
    source = Named(class_names=("a",), files=(name, "photos/naïve.jpg"))
    evaluation = evaluation_of(
        np.zeros(2, int), np.zeros(2, int), class_names=("a",), source=source
    )
    with whole_file(tmp_path / "guesses.csv") as file:
        evaluation.write_predictions(file)
    assert (tmp_path / "guesses.csv").read_bytes().splitlines()[1:] == [
        b"photos/caf\xe9.jpg,a,a,0.500000",
        "photos/naïve.jpg,a,a,0.500000".encode(),
    ]


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "guesses.csv"
    path.write_text("old")

    def fail() -> None:
        with whole_file(path) as file:
            file.write("half")
            file.flush()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_text() == "old"
    link = tmp_path / "link.csv"
    link.symlink_to(path)
    with whole_file(link) as file:
        file.write("new")
    assert path.read_text() == "new"
    assert link.is_symlink()
    assert sorted(tmp_path.iterdir()) == [path, link]


def test_what_cannot_be_written_is_known_before(tmp_path: Path) -> None:
    for path, why in [
        (tmp_path / "gone/guesses.csv", "No such file or directory"),
        (tmp_path, "it is not a file"),
        (Path("/dev/null"), "it is not a file"),
    ]:
        with pytest.raises(UserError) as caught:
            require_writable(path)
        assert str(caught.value) == f"cannot write {str(path)!r}: {why}"
    require_writable(tmp_path / "guesses.csv")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="cannot write"), whole_file(tmp_path / "gone/a.csv"):
        pass
