from pathlib import Path
from typing import cast

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from jaxcls.config import ScheduleConfig
from jaxcls.pictures.gallery import Row
from jaxcls.pictures.plots import (
    plot_comparison,
    plot_confusion,
    plot_curves,
    plot_gallery,
    plot_images,
    plot_run,
    plot_schedule,
    require_picture,
    save_figure,
)
from jaxcls.system.errors import UserError
from jaxcls.training.schedules import Plan, make_schedule


def make_plan(num_steps: int, *, learning_rate: float = 0.5) -> Plan:
    schedule = make_schedule(
        ScheduleConfig(), learning_rate=learning_rate, num_steps=num_steps, steps_per_epoch=10
    )
    return Plan(steps_per_epoch=10, num_steps=num_steps, learning_rate=schedule, stage_ends=())


@pytest.fixture(scope="module")
def figure() -> Figure:
    return plot_schedule(make_plan(200))


def test_the_curve_is_the_schedule_from_step_0_to_the_last(figure: Figure) -> None:
    plan = make_plan(200)
    (axes,) = figure.axes
    (line,) = axes.lines
    steps, rates = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
    np.testing.assert_array_equal(steps, np.arange(201))
    expected = np.array([plan.learning_rate(step) for step in steps])
    np.testing.assert_allclose(rates, expected, atol=1e-6)
    assert rates.max() == 0.5
    assert axes.get_xlim() == (0, 200)
    assert axes.get_ylim()[0] == 0
    assert axes.get_xlabel() == "step"
    assert axes.get_ylabel() == "learning rate"


def test_an_evaluation_far_above_all_of_training_does_not_flatten_the_curves() -> None:
    far = METRICS | {"eval_loss": np.array([NAN, NAN, 900.0, NAN])}
    for figure in (plot_curves(far), plot_comparison([("a", far), ("b", METRICS)])):
        assert figure.axes[0].get_ylim() == (0, 3.0)
    assert plot_curves(METRICS).axes[0].get_ylim()[1] < 2.5


def test_epochs_are_marked_above_the_steps(figure: Figure) -> None:
    figure.draw_without_rendering()
    (epochs,) = figure.axes[0].child_axes
    assert epochs.get_xlabel() == "epoch"
    assert tuple(epochs.get_xlim()) == (0, 20)


@pytest.mark.parametrize(("num_steps", "learning_rate"), [(1, 0.1), (3, 0.0), (10**7, 0.1)])
def test_very_short_very_long_and_flat_schedules_are_drawn(
    tmp_path: Path, num_steps: int, learning_rate: float
) -> None:
    figure = plot_schedule(make_plan(num_steps, learning_rate=learning_rate))
    steps = np.asarray(figure.axes[0].lines[0].get_xdata())
    assert (steps[0], steps[-1]) == (0, num_steps)
    assert len(steps) == min(num_steps, 1000) + 1
    save_figure(figure, tmp_path / "schedule.svg")
    assert (tmp_path / "schedule.svg").stat().st_size > 1000


@pytest.mark.parametrize(
    ("name", "start"),
    [("a.png", b"\x89PNG"), ("a.PNG", b"\x89PNG"), ("a.svg", b"<?xml"), ("a.pdf", b"%PDF")],
)
def test_the_name_decides_the_format(
    figure: Figure, tmp_path: Path, name: str, start: bytes
) -> None:
    save_figure(figure, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes().startswith(start)


@pytest.mark.parametrize("name", ["a.docx", "a"])
def test_an_unknown_format_is_refused_with_the_known_ones(
    figure: Figure, tmp_path: Path, name: str
) -> None:
    with pytest.raises(UserError) as caught:
        save_figure(figure, tmp_path / name)
    message = str(caught.value)
    assert message.startswith(f"cannot write picture {str(tmp_path / name)!r}: Format ")
    assert "is not supported" in message
    assert "png" in message
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError) as before:
        require_picture(tmp_path / name)
    assert str(before.value) == message


def test_a_folder_that_is_not_there_is_named(figure: Figure, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot write picture '.*/gone/a\.png': .*No such file"):
        save_figure(figure, tmp_path / "gone" / "a.png")
    with pytest.raises(UserError, match=r"cannot write picture '.*/gone/a\.png': there is no f"):
        require_picture(tmp_path / "gone" / "a.png")
    (tmp_path / "b.png").mkdir()
    with pytest.raises(UserError, match=r"cannot write picture '.*/b\.png': it is a folder"):
        require_picture(tmp_path / "b.png")
    require_picture(tmp_path / "a.PNG")


def test_images_are_shown_with_their_titles_and_sizes() -> None:
    images = [np.full((4 + i, 9, 3), 20 * i, np.uint8) for i in range(8)]
    figure = plot_images(images, [f"class {i}" for i in range(7)] + ["a very long name " * 9])
    shown = [axes for axes in figure.axes if axes.images]
    assert len(shown) == 8
    for i, axes in enumerate(shown):
        np.testing.assert_array_equal(np.asarray(axes.images[0].get_array()), images[i])
        assert axes.get_title().endswith(f"\n9 × {4 + i}")
    assert shown[3].get_title() == "class 3\n9 × 7"
    assert len(shown[7].get_title().splitlines()[0]) <= 24
    figure.draw_without_rendering()


# Runs


NAN = float("nan")


def make_metrics(**columns: list[float]) -> dict[str, np.ndarray]:
    names = ["step", "epoch", "learning_rate"]
    names += [
        prefix + name
        for prefix in ("", "eval_", "eval_raw_")
        for name in ("loss", "top1", "top5", "map")
    ]
    rows = len(columns["step"])
    return {name: np.array(columns.get(name, [NAN] * rows), float) for name in names}


METRICS = make_metrics(
    step=[10, 20, 25, 30],
    epoch=[0.4, 0.8, 1.0, 1.2],
    loss=[2.0, 1.5, NAN, 1.0],
    top1=[0.1, 0.2, NAN, 0.3],
    top5=[0.5, 0.6, NAN, 0.7],
    learning_rate=[0.1, 0.2, NAN, 0.1],
    eval_loss=[NAN, NAN, 1.75, NAN],
    eval_top1=[NAN, NAN, 0.25, NAN],
    eval_top5=[NAN, NAN, 0.75, NAN],
    eval_raw_top1=[NAN, NAN, 0.125, NAN],
)


def points(line: Line2D) -> list[tuple[float, float]]:
    pairs = zip(np.asarray(line.get_xdata()), np.asarray(line.get_ydata()), strict=True)
    return [(float(x), float(y)) for x, y in pairs]


def test_curves_of_training_and_evaluation_are_drawn_where_they_have_values() -> None:
    figure = plot_curves(METRICS)
    loss, accuracy, rate = figure.axes
    assert {line.get_label(): points(line) for line in loss.lines} == {
        "training": [(10, 2.0), (20, 1.5), (30, 1.0)],
        "evaluation": [(25, 1.75)],
    }
    assert {line.get_label(): points(line) for line in accuracy.lines} == {
        "training top-1": [(10, 0.1), (20, 0.2), (30, 0.3)],
        "training top-5": [(10, 0.5), (20, 0.6), (30, 0.7)],
        "evaluation top-1": [(25, 0.25)],
        "evaluation top-5": [(25, 0.75)],
        "evaluation top-1 without averaging": [(25, 0.125)],
    }
    assert points(rate.lines[0]) == [(10, 0.1), (20, 0.2), (30, 0.1)]
    assert rate.get_xlabel() == "step"
    assert [line.get_marker() for line in loss.lines] == ["o", "o"]  # a point alone has no line


def test_epochs_are_marked_above_the_curves() -> None:
    figure = plot_curves(METRICS)
    figure.draw_without_rendering()
    (epochs,) = figure.axes[0].child_axes
    low, high = figure.axes[0].get_xlim()
    assert (epochs.get_xlabel(), low) == ("epoch", 0)
    assert high >= 30
    assert epochs.get_xlim() == pytest.approx((0, high / 25))


def test_a_single_row_and_a_row_of_the_first_step_are_drawn(tmp_path: Path) -> None:
    for step, epoch in [(1, 0.0), (1, 0.25)]:
        metrics = make_metrics(step=[step], epoch=[epoch], loss=[2.0], top1=[0.5], top5=[1.0])
        figure = plot_curves(metrics)
        assert points(figure.axes[0].lines[0]) == [(1, 2.0)]
        save_figure(figure, tmp_path / "curves.svg")


def make_confusion(count: int) -> np.ndarray:
    """All of a class right but one that is taken for the next; class 1 has no examples."""
    matrix = 9 * np.eye(count, dtype=int) + np.roll(np.eye(count, dtype=int), 1, axis=1)
    matrix[1] = 0
    return matrix


@pytest.mark.parametrize("name", [r"$\frac{1}{$", "$x$", "<b>", "a\\"])
def test_a_name_is_drawn_as_it_is(name: str) -> None:
    """Matplotlib would read what is between dollar signs as mathematics."""
    image = np.zeros((4, 4, 3), np.uint8)
    figures = [
        plot_images([image], [name]),
        plot_gallery([Row(title=name, images=[image], captions=[name])]),
        plot_comparison([(name, METRICS), ("b", METRICS)]),
        plot_confusion(make_confusion(2), [name, "b"], title=name),
        plot_confusion(make_confusion(102), [name] * 102, title=name),
    ]
    for figure in figures:
        figure.draw_without_rendering()
        found = figure.findobj(lambda one: isinstance(one, Text) and name in one.get_text())
        assert found
        assert not any(cast(Text, text).get_parse_math() for text in found)


@pytest.mark.parametrize("count", [2, 10, 20, 21, 40, 41, 102])
def test_a_confusion_matrix_shows_the_shares_of_each_class(count: int) -> None:
    matrix = make_confusion(count)
    names = [f"class {index} with a very long name" for index in range(count)]
    figure = plot_confusion(matrix, names, title="all $of it")
    figure.draw_without_rendering()
    (axes,) = (axes for axes in figure.axes if axes.images)
    shown = np.ma.filled(np.ma.asarray(axes.images[0].get_array()), NAN)
    assert np.isnan(shown[1]).all()  # no examples, no shares
    np.testing.assert_allclose(shown[2:].sum(axis=1), 1)
    assert shown[0, 0] == pytest.approx(0.9)
    assert shown[0, 1] == pytest.approx(0.1)
    assert axes.get_title() == "all $of it"
    texts = [text.get_text() for text in axes.texts]
    assert texts == ([str(number) for number in matrix[matrix > 0]] if count <= 20 else [])
    labels = [label.get_text() for label in axes.get_yticklabels()]
    if count <= 40:
        assert len(labels) == count
        assert labels[1] == "class 1 with a ve…"
    else:
        assert not any("class" in label for label in labels)


def test_with_many_classes_the_most_confused_pairs_are_listed() -> None:
    matrix = make_confusion(50)
    matrix[7, 30], matrix[49, 3] = 10, 5
    names = [f"class {index}" for index in range(50)]
    bars, _ = plot_confusion(matrix, names).axes
    listed = [label.get_text() for label in bars.get_yticklabels()]
    assert len(listed) == 20
    assert listed[:3] == ["class 7 → class 30", "class 49 → class 3", "class 0 → class 1"]
    lengths = [patch.get_width() for patch in bars.patches if isinstance(patch, Rectangle)]
    assert lengths[:3] == [10, 5, 1]
    assert [text.get_text() for text in bars.texts[:3]] == [" 50%", " 33%", " 10%"]


def test_a_perfect_network_confuses_nothing() -> None:
    names = [f"class {index}" for index in range(50)]
    figure = plot_confusion(np.eye(50, dtype=int), names)
    assert [text.get_text() for text in figure.axes[0].texts] == [
        "no class is confused with another"
    ]
    figure.draw_without_rendering()


@pytest.mark.parametrize("count", [2, 12])
def test_runs_are_compared_in_one_figure(count: int) -> None:
    runs = [(f"seed={number}", METRICS) for number in range(count)]
    figure = plot_comparison(runs)
    loss, accuracy, rate = figure.axes
    assert [len(axes.lines) for axes in figure.axes] == [3 * count, 2 * count, count]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [name for name, _ in runs]
    colors = [line.get_color() for line in legend.get_lines()]
    assert len({str(color) for color in colors}) == count
    for number, color in enumerate(colors):
        thin, bold = accuracy.lines[2 * number : 2 * number + 2]
        there = np.isfinite(METRICS["eval_top1"])
        np.testing.assert_array_equal(bold.get_ydata(), METRICS["eval_top1"][there])
        assert thin.get_linewidth() < bold.get_linewidth()
        for line in (thin, bold, rate.lines[number], loss.lines[3 * number + 1]):
            np.testing.assert_array_equal(line.get_color(), color)
    figure.draw_without_rendering()


def test_a_run_is_curves_beside_confusion() -> None:
    names = ["cat", "dog", "horse"]
    figure = plot_run(METRICS, make_confusion(3), names, title="step 30")
    labels = [axes.get_ylabel() for axes in figure.axes]
    assert labels == ["loss", "accuracy", "learning rate", "class"]
    assert figure.axes[-1].get_title() == "step 30"
    assert len(plot_run(METRICS, None, names).axes) == 3
    assert len(plot_run(None, make_confusion(3), names).axes) == 1


@pytest.mark.parametrize(("height", "width"), [(8, 12), (8, 8), (16, 8)])
def test_rows_are_as_high_as_their_images_need(height: int, width: int) -> None:
    images = [np.zeros((height, width, 3), np.uint8)] * 6
    row = Row(title="raw", images=images, captions=["a"] * 6)
    for figure in (plot_gallery([row] * 3), plot_images(images * 3, ["a"] * 18)):
        figure.draw_without_rendering()
        drawn = [axes.get_window_extent() for axes in figure.axes]
        assert sum(box.height for box in drawn) / 6 > 0.6 * figure.bbox.height
        assert sum(box.width for box in drawn) / 3 > 0.7 * figure.bbox.width
