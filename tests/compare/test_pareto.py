from itertools import combinations

import pytest

from recall_lightning.compare.pareto import pareto_figure, pareto_front
from recall_lightning.compare.results import Interval, Summary


def row(label, plasticity, forgetting, width=0.01, **changes):
    values = {
        "plasticity": Interval(plasticity, width, 5),
        "forgetting": Interval(forgetting, width, 5),
    }
    fields = {"method": label, "needs_old_data": False, "swept": {}, "runs": 5, "values": values}
    return Summary(label, **(fields | changes))


def boxes(figure):
    figure.canvas.draw()
    return [text.get_window_extent() for text in figure.axes[0].texts]


def lines(figure):
    return [line.get_xydata().tolist() for line in figure.axes[0].lines]


def test_the_front_of_a_loss_is_that_of_its_negative():
    plasticity, forgetting = [0.9, 0.5, 0.7, 0.4], [0.6, 0.1, 0.1, 0.0]
    front = pareto_front(plasticity, forgetting, higher_is_better=True)
    assert front == [3, 2, 0]
    of_loss = pareto_front([-p for p in plasticity], forgetting, higher_is_better=False)
    assert of_loss == front[::-1]


def test_equal_points_are_both_on_the_front():
    assert sorted(pareto_front([1.0, 1.0], [0.0, 0.0], True)) == [0, 1]


def test_labels_overlap_neither_each_other_nor_leave_the_axes():
    crowd = [row(f"method number {i}", 0.8 + i / 1000, 0.3 + i % 3 / 200) for i in range(12)]
    figure = pareto_figure([*crowd, row("far", 0.1, 0.9)], "val/acc", True)
    room = figure.axes[0].get_window_extent()
    found = boxes(figure)
    assert len(found) == 13
    assert not any(a.overlaps(b) for a, b in combinations(found, 2))
    assert all(room.x0 <= box.x0 and box.x1 <= room.x1 for box in found)
    assert all(room.y0 <= box.y0 and box.y1 <= room.y1 for box in found)


def test_a_point_on_another_lies_in_a_ring():
    figure = pareto_figure([row("a", 0.5, 0.1), row("b", 0.5, 0.1), row("c", 0.6, 0.1)], "x", True)
    a, b, c = (each.lines[0].get_markersize() for each in figure.axes[0].containers)
    assert a > b == c


def test_points_of_a_sweep_are_connected():
    swept = [row(f"ewc {i}", 0.1 * i, 0.2 * i, method="ewc", swept={"s": str(i)}) for i in (1, 2)]
    figure = pareto_figure([*swept, row("other", 0.5, 0.0)], "val/acc", True)
    assert [[0.1, 0.2], [0.2, 0.4]] in lines(figure)


def test_the_front_leaves_out_what_needs_old_data():
    rows = [row("a", 0.5, 0.1), row("b", 0.9, 0.4), row("joint", 1.0, 0.0, needs_old_data=True)]
    figure = pareto_figure(rows, "val/acc", True)
    assert [[0.5, 0.1], [0.9, 0.4]] in lines(figure)
    hollow = [c.lines[0].get_markerfacecolor() for c in figure.axes[0].containers]
    assert hollow[2] == "white"
    assert "white" not in hollow[:2]


@pytest.mark.parametrize(("higher", "toward"), [(True, "higher is better →"), (False, "← lower")])
def test_the_axes_say_what_is_better(higher, toward):
    figure = pareto_figure([row("a", 0.5, 0.1, width=float("nan"))], "val/x", higher)
    assert toward in figure.axes[0].get_xlabel()
    assert "less is better" in figure.axes[0].get_ylabel()


def test_wide_intervals_do_not_push_the_points_together():
    figure = pareto_figure([row("a", 0.5, 0.1, width=50), row("b", 0.6, 0.2, width=50)], "x", True)
    low, high = figure.axes[0].get_xlim()
    assert high - low < 0.5


def test_without_a_point_there_is_no_figure():
    assert pareto_figure([row("a", 0.5, 0.1, values={})], "val/acc", True) is None
