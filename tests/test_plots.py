from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from jaxcls.config import ScheduleConfig
from jaxcls.errors import UserError
from jaxcls.plots import plot_images, plot_schedule, save_figure
from jaxcls.training.schedules import Plan, make_schedule


def make_plan(num_steps: int, *, learning_rate: float = 0.5) -> Plan:
    schedule = make_schedule(
        ScheduleConfig(), learning_rate=learning_rate, num_steps=num_steps, steps_per_epoch=10
    )
    return Plan(steps_per_epoch=10, num_steps=num_steps, learning_rate=schedule)


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


def test_a_folder_that_is_not_there_is_named(figure: Figure, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot write picture '.*/gone/a\.png': .*No such file"):
        save_figure(figure, tmp_path / "gone" / "a.png")


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
