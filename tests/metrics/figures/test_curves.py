import itertools
import math

import pytest

from recall_lightning.metrics.figures import curves_figure
from tests.metrics.figures.examples import LONG, NAN, TASKS, curves, texts


def test_curves_have_a_line_a_task_in_different_styles():
    figure = curves(tasks=LONG)
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 17]
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 20


def test_curves_show_scores_over_steps_with_gaps_for_nan():
    figure = curves_figure([0, 5, 9], [[1.0], [NAN], [3.0]], ["a"], "loss", [], {})
    (line,) = figure.axes[0].lines
    assert line.get_xdata().tolist() == [0, 5, 9]
    assert line.get_ydata()[[0, 2]].tolist() == [1, 3]
    assert math.isnan(line.get_ydata()[1])
    assert line.get_marker() == "o"  # or a score between two gaps would be invisible


def test_curves_label_axes_tasks_and_marks():
    figure = curves(marks={"merge": [450, 550], "snapshot": [400]})
    axes = figure.axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("optimizer step", "loss")
    assert texts(figure.legends[0].get_texts()) == [*TASKS, "merge", "snapshot"]
    assert texts(axes.texts) == TASKS
    assert [text.get_position()[0] for text in axes.texts] == [0, 425, 850, 1275]


def test_curves_mark_steps_below_every_score():
    figure = curves(marks={"merge": [450, 550], "snapshot": [400]})
    axes = figure.axes[0]
    figure.draw_without_rendering()
    merge, snapshot = axes.lines[-2:]
    assert list(merge.get_xdata()) == [450, 550]
    assert list(snapshot.get_xdata()) == [400]
    lowest = axes.transData.transform((0, 1.2))[1]
    assert snapshot.get_window_extent().y1 < lowest


def test_names_of_boundaries_that_are_close_move_apart():
    figure = curves(boundaries=[(0, "documentation"), (5, "source"), (5, "names"), (9, "bytecode")])
    at = [text.get_position()[0] for text in figure.axes[0].texts]
    assert min(b - a for a, b in itertools.pairwise(at)) > 50


def test_a_boundary_may_name_something_that_is_no_curve():
    assert texts(curves(boundaries=[(300, "another corpus")]).axes[0].texts) == ["another corpus"]


@pytest.mark.filterwarnings("error")  # matplotlib warns when a layout does not fit
def test_long_names_leave_the_axes_their_size():
    for figure in (curves(), curves(tasks=[3 * name for name in LONG[:4]])):
        figure.draw_without_rendering()
        box = figure.axes[0].get_window_extent()
        assert box.width / figure.dpi > 5
        assert box.height / figure.dpi > 2.8


def test_a_tasks_name_stands_at_its_start_even_before_the_first_score():
    figure = curves_figure([40, 80], [[0.5], [0.6]], ["a"], "val/acc", [(0, "a")])
    name = next(text for text in figure.axes[0].texts if text.get_text() == "a")
    assert name.get_position()[0] == 0
