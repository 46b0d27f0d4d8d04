import math

import pytest

from recall_lightning.metrics.figures import front_figure
from tests.metrics.figures.examples import NAN, front, point, texts


def line_of(figure):
    return figure.axes[0].lines[0].get_xydata().tolist()


def rings(figure):
    return [
        line.get_xydata()[0].tolist() for line in figure.axes[0].lines if line.get_markersize() > 10
    ]


def test_divergence_is_drawn_over_what_is_left_from_the_live_weights_to_the_snapshot():
    figure = front([3.0, 1.0], live=1.5)
    assert line_of(figure) == [[100, 1.5], [50, 0.5], [25, 0.125], [0, 0]]
    axes = figure.axes[0]
    assert axes.get_xlabel() == "share of the task's gain that is left (%)"
    assert axes.get_ylabel() == "divergence from the snapshot (nats a prediction)"


def test_without_divergences_what_is_left_is_drawn_over_keep():
    figure = front([3.0, 1.0], chosen=1.0, divergence=False)
    assert line_of(figure) == [[1, 50], [3, 25]]
    assert figure.axes[0].get_xscale() == "log"
    assert texts(figure.axes[0].texts) == ["merged: 50 % left, keep 1"]


@pytest.mark.parametrize("divergence", [True, False])
def test_a_ring_marks_what_was_merged(divergence):
    figure = front(chosen=0.25, divergence=divergence)
    assert rings(figure) == [[80, pytest.approx(1.28)] if divergence else [0.25, 80]]
    assert texts(figure.axes[0].texts)[0] == "merged: 80 % left, keep 0.25"


def test_both_ends_have_names():
    assert {"live weights", "snapshot"} < set(texts(front().axes[0].texts))


def test_live_weights_may_be_unknown():
    for live in (None, NAN):
        figure = front([1.0], live=live)
        assert line_of(figure) == [[50, 0.5], [0, 0]]
        assert "live weights" not in texts(figure.axes[0].texts)


def test_keeps_are_written_with_two_digits_where_there_is_room():
    assert texts(front([0.2345]).axes[0].texts)[3:] == ["keep 0.23"]
    names = texts(front([0.2345 + i / 1e5 for i in range(10)]).axes[0].texts)
    assert 1 <= names.count("keep 0.23") < 5


def test_the_title_is_optional():
    assert front().axes[0].get_title() == ""
    assert front(title="after cats").axes[0].get_title() == "after cats"


@pytest.mark.parametrize("name", ["keep", "plasticity", "divergence"])
@pytest.mark.parametrize("value", [NAN, math.inf, -math.inf, None])
def test_points_that_are_not_finite_are_left_out(name, value):
    broken = point(2.0) | {name: value}
    figure = front_figure([broken, point(1.0)], broken)
    assert line_of(figure) == [[50, 0.5], [0, 0]]
    assert rings(figure) == []


@pytest.mark.filterwarnings("error")
def test_a_figure_without_any_finite_point_can_be_drawn():
    for divergence in (NAN, None):
        broken = {"keep": 1.0, "plasticity": NAN, "divergence": divergence}
        front_figure([broken], broken).draw_without_rendering()


@pytest.mark.parametrize("left", [-400.0, 400.0])
def test_a_merge_that_broke_the_model_does_not_stretch_the_axes(left):
    broken = {"keep": 9.0, "plasticity": left, "divergence": 1e6}
    axes = front_figure([point(1.0), broken], point(1.0), live_divergence=2.0).axes[0]
    assert axes.get_xlim() == (-7, 107)
    assert axes.get_ylim()[1] == pytest.approx(2.2)
    unknown = [each | {"divergence": None} for each in (point(1.0), broken)]
    assert front_figure(unknown, unknown[0]).axes[0].get_ylim() == (-7, 107)


def test_what_was_merged_is_always_in_sight():
    figure = front_figure([point(1.0)], point(9.0, left=-3.0), live_divergence=2.0)
    ((x, y),) = rings(figure)
    assert x == -5
    assert y < figure.axes[0].get_ylim()[1]
    assert texts(figure.axes[0].texts)[0] == "merged: -300 % left, keep 9"
